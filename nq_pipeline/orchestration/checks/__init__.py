"""Asset checks by subject: findings of the library as Dagster shows them."""
