"""The ledger's database: SQLite in a file by default, PostgreSQL by URL.

Every transaction takes its turn before it reads: `BEGIN IMMEDIATE` in SQLite, one advisory lock in
PostgreSQL. So what a reservation was granted on cannot change before it is written, and it is on
the disk before the request leaves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from nq_pipeline.errors import LedgerError
from nq_pipeline.lake.files import make_folder
from nq_pipeline.settings import Settings

NAME = "ledger.sqlite"
HEAD = "0001"
"""Revision of the newest file in `migrations/versions`."""
VERSIONS = sa.table("nq_spend_version", sa.column("version_num", sa.String))
PATIENCE_S = 30
"""How long a transaction waits for its turn."""
POSTGRES_LOCK = 0x6E715F7370656E64
"""The advisory lock all ledgers of one PostgreSQL database share ("nq_spend")."""


def open_engine(settings: Settings) -> sa.Engine:
    """The database of these settings, with its tables brought up to date.

    Raises
    ------
    LedgerError
        It cannot be reached, or a newer release of this program has changed its tables.
    """
    engine = _engine(settings)
    with transaction(engine) as connection:
        found = _revision(connection)
        if found != HEAD:
            _migrate(connection, found)
    return engine


@contextmanager
def transaction(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction that runs alone; whatever the database says against it is a `LedgerError`."""
    try:
        with engine.begin() as connection:
            yield connection
    except sa.exc.SQLAlchemyError as error:
        said = str(getattr(error, "orig", None) or type(error).__name__).strip().splitlines()[0]
        raise LedgerError(
            f"the spend ledger in {_named(engine.url)} cannot be used: {said}; without it nothing metered is "
            "asked for"
        ) from None


def _engine(settings: Settings) -> sa.Engine:
    if settings.ledger_url is None:
        path = settings.environment_dir / NAME
        make_folder(path.parent)
        return _sqlite(path.absolute())
    try:
        url = sa.make_url(settings.ledger_url.get_secret_value())
    except sa.exc.ArgumentError:
        raise LedgerError(
            "NQ_LEDGER_URL is no address of a database; write postgresql://user@host/name"
        ) from None
    if url.drivername == "sqlite" and url.database:
        path = Path(url.database)
        make_folder(path.parent)
        return _sqlite(path.absolute())
    if url.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return _postgresql(url.set(drivername="postgresql+psycopg"))
    raise LedgerError(
        f"NQ_LEDGER_URL names {url.drivername}; the ledger is kept in sqlite:///file or postgresql://"
    )


@cache  # one of a database per process: it compiles every statement once, and keeps no connection
def _sqlite(path: Path) -> sa.Engine:
    engine = sa.create_engine(sa.URL.create("sqlite", database=str(path)), poolclass=sa.pool.NullPool)

    @sa.event.listens_for(engine, "connect")
    def configure(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver would begin transactions of its own
        # First of all: switching to WAL waits for nobody otherwise.
        connection.execute(f"PRAGMA busy_timeout = {PATIENCE_S * 1000}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


@cache
def _postgresql(url: sa.URL) -> sa.Engine:
    try:
        engine = sa.create_engine(url, poolclass=sa.pool.NullPool, isolation_level="READ COMMITTED")
    except ImportError:
        raise LedgerError(
            "NQ_LEDGER_URL names PostgreSQL, whose driver is not installed; run pip install "
            "'nq_pipeline[postgres]'"
        ) from None

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{PATIENCE_S}s'")
        connection.exec_driver_sql("SET LOCAL synchronous_commit = on")
        # Each later statement sees all that was committed before the lock was got.
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({POSTGRES_LOCK})")

    return engine


def _revision(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table(VERSIONS.name):
        return None
    return connection.scalar(sa.select(VERSIONS.c.version_num))


def _migrate(connection: sa.Connection, found: str | None) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise LedgerError(
            f"the spend ledger in {_named(connection.engine.url)} was written by a newer release (revision "
            f"{found}, this one knows {HEAD}); update nq_pipeline"
        )
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _named(url: sa.URL) -> str:
    """Where the ledger is, for a message: without user and password."""
    return url.database or "?" if url.host is None else f"{url.host}/{url.database}"
