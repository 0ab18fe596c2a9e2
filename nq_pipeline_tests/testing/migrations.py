"""Hundreds of tests make a ledger or a Dagster instance; a worker runs their migrations once."""

from __future__ import annotations

import sqlalchemy as sa
from alembic.config import Config
from alembic.script import ScriptDirectory

from nq_pipeline.spend import database

_migrate, _from_config = database._migrate, ScriptDirectory.from_config
_ledgers: dict[str, list[str]] = {}
"""The statements of a new ledger in SQLite, by its revision."""
_folders: dict[str | None, ScriptDirectory] = {}


def remember_migrations() -> None:
    """Copy the tables of the first ledger in SQLite to later ones, and read a folder of migrations once."""
    database._migrate = _migrate_or_copy
    ScriptDirectory.from_config = _read_once  # type: ignore[method-assign]


def _migrate_or_copy(connection: sa.Connection, found: str | None) -> None:
    new = found is None and connection.dialect.name == "sqlite"
    if new and (known := _ledgers.get(database.HEAD)):
        for statement in known:
            connection.exec_driver_sql(statement)
        connection.execute(sa.insert(database.VERSIONS).values(version_num=database.HEAD))
        return
    _migrate(connection, found)
    if new:
        # The rest is SQLite's own.
        made = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name <> 'sqlite_sequence'"
        _ledgers[database.HEAD] = list(connection.exec_driver_sql(f"{made} ORDER BY rowid").scalars())


def _read_once(config: Config) -> ScriptDirectory:
    folder = config.get_main_option("script_location")
    if folder not in _folders:
        _folders[folder] = _from_config(config)
    return _folders[folder]
