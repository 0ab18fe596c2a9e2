"""Alembic's entry point: migrates over the connection it is handed, inside its transaction."""

from __future__ import annotations

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    version_table="nq_spend_version",
    transaction_per_migration=False,
)
context.run_migrations()
