"""The ledger's database: SQLite in a file by default, PostgreSQL by URL.

Transactions run one at a time: each waits for its turn before it reads (`BEGIN IMMEDIATE` in SQLite, one
advisory lock in PostgreSQL). So the budgets cannot change between the check of a reservation and its
write, and the reservation is on disk before the request is sent.

A PostgreSQL that freezes blocks nobody: the server ends a statement that takes too long and a
transaction whose client is silent, and this side closes a connection that lasts too long.

The same database holds the leases, the proofs of purchases and the state that several machines share. Their
transactions touch rows of their own and do not wait for the ledger's turn (`row_transaction`).
"""

from __future__ import annotations

import math
import os
import shutil
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
import sqlalchemy as sa

from nq_pipeline.errors import LakeError, LedgerError, StoreError
from nq_pipeline.files import make_folder
from nq_pipeline.lake.tables import SPEND
from nq_pipeline.settings import Settings
from nq_pipeline.spend.lake_identity import adopt_lake, check_lake
from nq_pipeline.spend.tables import LINES
from nq_pipeline.workspace import Workspace

HEAD = "0003"
"""Revision of the newest file in `migrations/versions`."""
VERSIONS = sa.table("nq_spend_version", sa.column("version_num", sa.String))
LOCK_TIMEOUT_S = 30
"""How long a transaction waits for its turn in SQLite, seconds."""
LIMIT = "nq_limit_s"
"""Execution option: how long a whole transaction may take, seconds."""
TURN = "nq_turn"
"""Execution option: whether a transaction waits for the ledger's turn (the default), or only locks the rows
that it changes (`ROWS`), or changes nothing (`READS`)."""
ROWS, READS = "rows", "reads"
COPIED = "nq_copied"
"""Execution option: the file that a database in memory was copied from."""
CONNECT_S = 10
"""Timeout of connecting, seconds."""
_checked: set[tuple[str, str]] = set()
"""Databases and lakes that were found to belong together, and ledgers that lack no line."""
POSTGRES_LOCK = 0x6E715F7370656E64
"""The advisory lock all ledgers of one PostgreSQL database share ("nq_spend")."""


def open_engine(settings: Settings, *, restoring: bool = False) -> sa.Engine:
    """The database of these settings, its tables migrated.

    Parameters
    ----------
    restoring
        Create the ledger also where one was lost, because its lines are about to be restored.

    Raises
    ------
    LedgerError
        It cannot be reached, or a newer release of this program has migrated it.
    OtherLake
        Several machines share it, and it belongs to another lake than this one sees.
    """
    engine = _migrated(_engine(settings), settings, restoring=restoring)
    if is_shared(settings) and not restoring:
        lake = engine.url.render_as_string(hide_password=True), Workspace.of(settings).objects.uri()
        if lake not in _checked:
            with row_transaction(engine) as connection:
                check_lake(connection, settings)
            _checked.add(lake)
    return engine


def refuse_other_lake(settings: Settings) -> None:
    """Raise `OtherLake`, before anything is requested or written, if the shared ledger has another lake.

    While the database is out of reach that is not known, and nothing is raised.
    """
    with suppress(LedgerError):
        if is_shared(settings):
            open_engine(settings)


def adopt_this_lake(settings: Settings) -> str:
    """Make the lake that this machine sees that of the shared ledger; returns where it is.

    Raises `LedgerError` where the ledger is a file of this machine, which has no other lake.
    """
    if not is_shared(settings):
        raise LedgerError(
            "a ledger in a file belongs to the lake beside it; only one in PostgreSQL adopts a lake"
        )
    with row_transaction(_migrated(_engine(settings), settings)) as connection:
        return adopt_lake(connection, settings)


def refuse_older_copy(settings: Settings) -> None:
    """Raise `LedgerError` if the ledger lacks lines that it had exported, as one from a backup does.

    It would spend the money of these lines again.
    """
    lake, engine = Workspace.of(settings).lake, open_engine(settings)
    ledger = engine.url.render_as_string(hide_password=True), settings.environment
    if ledger in _checked:
        return
    try:
        copy = lake.scan(SPEND).filter(pl.col("line") == pl.col("line").max().over("ledger"))
        exported = {row["ledger"]: row for row in copy.collect().iter_rows(named=True)}
    except (LakeError, StoreError, OSError, pl.exceptions.PolarsError):
        return  # the export reports it
    ours = LINES.c.environment == settings.environment
    with row_transaction(engine, writes=False) as connection:
        began = connection.scalar(sa.select(LINES.c.recorded_at).where(ours).order_by(LINES.c.line_id))
        if (newest := exported.get(began)) is not None:
            line = ours & (LINES.c.line_id == newest["line"])
            if connection.scalar(sa.select(LINES.c.recorded_at).where(line)) != newest["recorded_at"]:
                raise LedgerError(
                    f"the spend ledger in {_named(engine)} is older than its copy in the table spend, as one "
                    "from a backup is; add the lines that it lacks with `nq budget restore`"
                )
    _checked.add(ledger)


def is_shared(settings: Settings) -> bool:
    """Whether the ledger's database serves several machines: it is not a file on this one."""
    return _file(settings) is None


def open_row_engine(settings: Settings, patience_s: float) -> sa.Engine:
    """The database of these settings, already migrated, for `row_transaction`.

    Parameters
    ----------
    patience_s
        Most seconds of a statement in PostgreSQL; also for connecting, rounded up.
    """
    if _file(settings) is not None:
        return _engine(settings)
    return _engine(settings, patience_s)


def open_copy(settings: Settings) -> sa.Engine | None:
    """A copy in memory of the SQLite ledger, for reading where the file cannot be written.

    What is written to the copy is lost. None when there is no file, or it cannot be read either.

    Raises
    ------
    LedgerError
        A newer release of this program has migrated it.
    """
    path = _file(settings)
    if path is None or not path.is_file():
        return None
    try:
        memory = _copied(path)
    except (OSError, sqlite3.Error):
        return None
    return _migrated(
        _serialized(
            sa.create_engine(
                "sqlite://",
                creator=lambda: memory,
                poolclass=sa.StaticPool,
                execution_options={COPIED: str(path.absolute())},
            )
        ),
        settings,
    )


def _copied(path: Path) -> sqlite3.Connection:
    """A database in memory. One with a write-ahead log is copied first, because reading it takes writing."""
    log = path.with_name(f"{path.name}-wal")
    if not (log.is_file() and log.stat().st_size):
        return _in_memory(f"{path.absolute().as_uri()}?mode=ro&immutable=1")
    with TemporaryDirectory(prefix="nq-ledger-") as folder:
        shutil.copy(log, folder)
        return _in_memory(Path(shutil.copy(path, folder)).as_uri())


def _in_memory(uri: str) -> sqlite3.Connection:
    memory = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
    with closing(sqlite3.connect(uri, uri=True)) as source:
        source.backup(memory)
    return memory


def _migrated(engine: sa.Engine, settings: Settings, *, restoring: bool = False) -> sa.Engine:
    with exclusive_transaction(engine) as connection:
        found = _revision(connection)
        if found is None and settings.spend.ledger_url is None and not restoring:
            _check_not_lost(settings)
        if found != HEAD:
            _migrate(connection, found)
    return engine


@contextmanager
def exclusive_transaction(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A database transaction during which no other reads or writes the ledger.

    Raises
    ------
    LedgerError
        The database failed.
    """
    with _transaction(engine, "no metered request is sent without it") as connection:
        yield connection


@contextmanager
def row_transaction(engine: sa.Engine, *, writes: bool = True) -> Iterator[sa.Connection]:
    """A short transaction on rows beside the ledger. In PostgreSQL it never waits for the ledger's turn; in
    SQLite, where one process writes at a time, it waits only if it writes.

    Raises
    ------
    LedgerError
        The database failed.
    """
    engine = engine.execution_options(**{TURN: ROWS if writes else READS})
    with _transaction(engine, "it also holds the leases") as connection:
        yield connection


@contextmanager
def _transaction(engine: sa.Engine, needed_for: str) -> Iterator[sa.Connection]:
    started, limit_s = time.monotonic(), engine.get_execution_options().get(LIMIT, math.inf)
    try:
        with engine.begin() as connection:
            yield connection
    except sa.exc.SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or type(error).__name__).strip().splitlines()[0]
        if _is_damage(error.__cause__):
            name = _named(engine)
            raise LedgerError(
                f"the spend ledger {name} is damaged ({reason}); restore it from a backup, or move {name}* "
                "away and restore it from the table spend with `nq budget restore`"
            ) from None
        if time.monotonic() - started >= limit_s:  # closed by this side, unknown to the driver
            reason = f"it did not answer within {limit_s:g} s"
        raise LedgerError(
            f"the spend ledger in {_named(engine)} cannot be used: {reason}; {needed_for}"
        ) from None


def _engine(settings: Settings, patience_s: float = math.inf) -> sa.Engine:
    if (path := _file(settings)) is not None:
        make_folder(path.parent)
        return _sqlite(path.absolute())
    url = _url(settings)
    if url.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        patience_s = min(patience_s, settings.spend.ledger_timeout_s)
        return _postgresql(url.set(drivername="postgresql+psycopg"), patience_s)
    raise LedgerError(
        f"NQ_LEDGER_URL names {url.drivername}, which the ledger does not support; write sqlite:///file or "
        "postgresql://user@host/name"
    )


def _file(settings: Settings) -> Path | None:
    """The file of a ledger in SQLite; None for another database."""
    if settings.spend.ledger_url is None:
        return Workspace.of(settings).ledger
    url = _url(settings)
    return Path(url.database) if url.drivername == "sqlite" and url.database else None


def _url(settings: Settings) -> sa.URL:
    assert settings.spend.ledger_url is not None
    try:
        return sa.make_url(settings.spend.ledger_url.get_secret_value())
    except sa.exc.ArgumentError:
        raise LedgerError(
            "NQ_LEDGER_URL is not the address of a database; write postgresql://user@host/name"
        ) from None


@cache  # one per database and process: it compiles every statement once and keeps no connection
def _sqlite(path: Path) -> sa.Engine:
    engine = sa.create_engine(sa.URL.create("sqlite", database=str(path)), poolclass=sa.pool.NullPool)

    @sa.event.listens_for(engine, "connect")
    def configure(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # else the driver begins transactions of its own
        # Set before WAL: without a timeout, the switch fails at once if another process holds the lock.
        connection.execute(f"PRAGMA busy_timeout = {LOCK_TIMEOUT_S * 1000}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")

    return _serialized(engine)


def _serialized(engine: sa.Engine) -> sa.Engine:
    """An SQLite engine whose transactions wait for their turn before they read."""

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        reads = connection.get_execution_options().get(TURN) == READS
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


@cache
def _postgresql(url: sa.URL, patience_s: float) -> sa.Engine:
    connect_s = url.query.get("connect_timeout", math.ceil(min(CONNECT_S, patience_s)))
    try:
        engine = sa.create_engine(
            url,
            poolclass=sa.pool.NullPool,
            isolation_level="READ COMMITTED",
            connect_args={"connect_timeout": connect_s},
            execution_options={LIMIT: 2 * patience_s},
        )
    except ImportError:
        raise LedgerError(
            "NQ_LEDGER_URL names PostgreSQL, whose driver is not installed; run pip install "
            "'nq_pipeline[postgres]'"
        ) from None

    # Here, because the dialect queries each new connection before any other event. A connection serves one
    # transaction.
    @sa.event.listens_for(engine, "do_connect")
    def connect(dialect: Any, record: Any, arguments: Any, parameters: Any) -> Any:
        connection = dialect.connect(*arguments, **parameters)
        watch = record.info["watch"] = threading.Timer(2 * patience_s, _shut, [connection])
        watch.daemon = True
        watch.start()
        return connection

    @sa.event.listens_for(engine, "close")
    def close(_: Any, record: Any) -> None:
        record.info["watch"].cancel()

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        for name, factor in (("lock", 1), ("statement", 1), ("idle_in_transaction_session", 2)):
            connection.exec_driver_sql(f"SET LOCAL {name}_timeout = {round(patience_s * factor * 1000)}")
        connection.exec_driver_sql("SET LOCAL synchronous_commit = on")
        if TURN in connection.get_execution_options():
            return
        # Each later statement sees all that was committed before the lock was acquired.
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({POSTGRES_LOCK})")

    return engine


def _shut(connection: Any) -> None:
    """Shut a connection whose server does not answer; its user gets an error."""
    with (
        suppress(Exception),  # closed meanwhile
        socket.socket(fileno=os.dup(connection.pgconn.socket)) as handle,
    ):
        handle.shutdown(socket.SHUT_RDWR)


def _check_not_lost(settings: Settings) -> None:
    """Refuse an empty ledger where the lake has lines of one: it would count as nothing spent."""
    if lines := Workspace.of(settings).lake.manifest(SPEND).rows:
        raise LedgerError(
            f"the spend ledger {Workspace.of(settings).ledger} is missing, and the table spend has "
            f"{lines:,} of its lines; restore it from a backup, or restore it from the table with "
            "`nq budget restore`"
        )


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
            f"the spend ledger in {_named(connection.engine)} was written by a newer release (revision "
            f"{found}, this one knows {HEAD}); update nq_pipeline"
        )
    config.attributes["connection"] = connection
    command.upgrade(config, HEAD)


def _is_damage(error: BaseException | None) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the higher bits only add detail
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _named(engine: sa.Engine) -> str:
    """Where the ledger is, for a message, without user and password."""
    url, copied = engine.url, engine.get_execution_options().get(COPIED)
    return copied or url.database or "?" if url.host is None else f"{url.host}/{url.database}"
