"""Dagster over several hosts: the shared instance, the Celery worker, and leases of runs."""
