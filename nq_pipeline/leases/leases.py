"""Leases: one holder at a time for each name, on all machines that share the ledger's database.

    acquire ──► renewed at every third of its time to live ──► released, or lapsed when the holder is gone
                       └── not renewed in time, or taken by another: `Lease.check` raises `LeaseLost`
                           (one that `resumes` is only lost to another; its next renewal also tells a
                           database that was restored from an earlier backup)

Each new holder gets a higher token. Whoever writes what a lease protects passes the token on, and the store
refuses a lower one: so a holder that was suspended and does not know that it lost the lease does no harm.

Whether a lease has lapsed is decided by the database's clock alone: in PostgreSQL the server's, in SQLite,
where all holders are on one machine, its monotonic clock, which no correction of the time moves. A holder
measures its own time by its machine's monotonic clock from before a renewal was sent, so it stops first.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa

from nq_pipeline.clock import real_now
from nq_pipeline.errors import LeaseHeld, LeaseLost, LedgerError
from nq_pipeline.leases.presence import Presence
from nq_pipeline.leases.tables import LEASES, insert_into
from nq_pipeline.settings import Settings
from nq_pipeline.spend.database import is_shared, open_engine, open_row_engine, row_transaction
from nq_pipeline.workspace import Workspace

TTL_S = 30.0
"""How long a lease lasts after its last renewal, seconds."""
RENEWALS = 3
"""Renewals within that time."""
MARGIN = 0.1
"""Share of that time by which a holder stops before the lease lapses."""
PATIENCE_S = 5.0
"""Longest statement, seconds: shorter than the ledger's, so that a failed renewal is tried again in time."""
TESTED_S = 0.5
"""`holder` locks a presence file for a moment to test it; `acquire` waits this long for it."""
POLL_S = 0.1, 1.0
"""Seconds between two attempts to acquire a lease: short at first, then longer."""
RESTARTED_US = 1_000_000
"""A renewal that is this far ahead of the monotonic clock is from before the machine was restarted."""
ONE_TIME = ("run/", "purchase/", "worker/")
"""Names that are never used again: their rows are removed, at once if they had one holder only."""
NAME = re.compile(r"[a-z_]+(/[\w.:-]+)?")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LeaseHolder:
    """Who holds a lease.

    Attributes
    ----------
    process
        Its process ID on `host`.
    since
        When it acquired the lease, UTC by the database's clock.
    heartbeat_s
        Seconds since its last renewal, by the database's clock.
    """

    name: str
    token: int
    host: str
    process: int
    run_id: str
    since: datetime
    heartbeat_s: float

    def __str__(self) -> str:
        run = f", run {self.run_id[:8]}," if self.run_id else ""
        return (
            f"process {self.process} on {self.host}{run} since {self.since:%Y-%m-%d %H:%M:%S} UTC, "
            f"last heard {self.heartbeat_s:.0f} s ago"
        )


class Lease:
    """A lease that was acquired; see `Leases.acquire`. As a context, it is kept, and released at the end.

    Attributes
    ----------
    token
        Grows with each new holder of the name.
    """

    def __init__(
        self,
        leases: Leases | None,
        name: str,
        token: int,
        *,
        holder: str = "",
        presence: Presence | None = None,
        ttl_s: float = TTL_S,
        renewed: float = 0.0,
        run_id: str = "",
        resumes: bool = False,
        on_lost: Callable[[], object] = lambda: None,
    ) -> None:
        self.name, self.token, self.ttl_s = name, token, ttl_s
        self._leases, self._holder, self._presence = leases, holder, presence
        self._renewed, self._run_id, self._resumes = renewed, run_id, resumes
        self._ends = leases is not None and leases.shared and not resumes
        self._lost = ""
        self._released = threading.Event()
        self._thread: threading.Thread | None = None
        self._on_lost = on_lost

    @classmethod
    def without_database(cls, name: str, token: int = 0) -> Lease:
        """A lease that nothing renews, for one machine whose own locks already keep others away."""
        return cls(None, name, token)

    def __enter__(self) -> Self:
        self.keep()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def check(self) -> None:
        """Raise `LeaseLost` unless the lease was renewed in time. Asks no database, so it costs nothing."""
        if not self._lost and self._ends and self.left_s <= 0:
            self._lose(f"it could not be renewed for {self.ttl_s * (1 - MARGIN):.0f} s")
        if self._lost:
            raise LeaseLost(f"the lease {self.name!r} is lost: {self._lost}; another process may have it now")

    @property
    def left_s(self) -> float:
        """Seconds until the lease counts as lost, unless it is renewed."""
        now = self._leases.monotonic() if self._leases else 0.0
        return self._renewed + self.ttl_s * (1 - MARGIN) - now

    def renew(self) -> None:
        """Renew the lease now.

        Raises
        ------
        LeaseLost
            Another process has it, or it was lost before.
        LedgerError
            The database did not answer. The lease is still held as long as `check` says so.
        """
        self.check()
        if self._leases is None:
            return
        sent = self._leases.monotonic()
        if not self._leases._renew(self):
            self._lose("another process has acquired it")
            self.check()
        self._renewed = sent

    def keep(self) -> None:
        """Renew the lease on a thread until it is released."""
        if self._leases is None:
            return
        self._thread = threading.Thread(target=self._keep, name=f"lease-{self.name}", daemon=True)
        self._thread.start()
        if self._ends:  # on a thread of its own, because a renewal may hang when the time is up
            threading.Thread(target=self._watch, name=f"lease-watch-{self.name}", daemon=True).start()

    def release(self) -> None:
        """Give the lease up, so that the next holder need not wait for it to lapse. Never raises."""
        if self._released.is_set() or self._leases is None:
            return
        self._released.set()
        if self._thread and self._thread is not threading.current_thread():
            self._thread.join()
        try:
            self._leases._release(self.name, self._holder, self.token)
        except LedgerError as error:
            log.warning("the lease %r is not released and lapses by itself: %s", self.name, error)
        finally:
            if self._presence:
                self._presence.unlock(remove=self.name.startswith(ONE_TIME))

    def _keep(self) -> None:
        every_s = pause = self.ttl_s / RENEWALS
        while not self._released.wait(max(pause, 0.01)):
            try:
                self.renew()
                pause = every_s
            except LedgerError as error:
                log.warning("the lease %r could not be renewed: %s", self.name, error)
                pause = every_s / 4
                if self._ends:
                    pause = min(1.0, pause, max(self.left_s, 0.0))
            except LeaseLost as error:
                log.error("%s", error)
                return

    def _watch(self) -> None:
        while not (self._lost or self._released.wait(max(self.left_s, 0.01))):
            if self.left_s <= 0:
                with suppress(LeaseLost):
                    self.check()

    def _lose(self, reason: str) -> None:
        """Remember why it is lost, and tell whoever asked to know; once."""
        if self._lost:
            return
        self._lost = reason
        try:
            self._on_lost()
        except Exception:
            log.exception("what follows the loss of the lease %r failed", self.name)


class Leases:
    """The leases of one environment.

    Parameters
    ----------
    folder
        For the presence files of this machine.
    monotonic
        Seconds that only ever grow; tests replace it.

    Attributes
    ----------
    shared
        Whether other machines can hold leases, too: the database is not a file on this one.
    """

    def __init__(
        self,
        engine: sa.Engine,
        environment: str,
        folder: Path,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.shared = engine.dialect.name != "sqlite"
        self.monotonic = monotonic
        self._engine, self._environment, self._folder = engine, environment, folder

    @classmethod
    def of(cls, settings: Settings, *, monotonic: Callable[[], float] = time.monotonic) -> Leases:
        """The leases of the settings' environment, in the ledger's database.

        Raises
        ------
        LedgerError
            The database cannot be used.
        """
        open_engine(settings)  # creates the tables
        folder = Workspace.of(settings).leases
        engine = open_row_engine(settings, PATIENCE_S)
        return cls(engine, settings.environment, folder, monotonic=monotonic)

    def acquire(
        self,
        name: str,
        *,
        ttl_s: float = TTL_S,
        wait_s: float = 0.0,
        run_id: str = "",
        above: int = 0,
        resumes: bool = False,
        on_lost: Callable[[], object] = lambda: None,
    ) -> Lease:
        """Acquire a lease, which the caller renews and releases, or enters as a context.

        Parameters
        ----------
        ttl_s
            How long it lasts after a renewal.
        wait_s
            How long to wait for another holder.
        run_id
            Shown to others as its holder.
        above
            The token is greater than this one, which a store has already seen, even if the database was
            restored from an earlier backup.
        resumes
            A lapsed lease is not lost until another process has taken it: for a lease that only shows that
            its holder lives, and protects nothing.
        on_lost
            Called if the lease is lost, perhaps on a thread of the lease; a context ends only by itself.

        Raises
        ------
        LeaseHeld
            Another process holds it.
        LedgerError
            The database cannot be used.
        """
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of a lease")
        presence, holder = Presence(self._folder, name), uuid.uuid4().hex
        ends, tested = self.monotonic() + wait_s, self.monotonic() + TESTED_S
        pause = POLL_S[0]
        try:
            while True:
                if present := presence.lock():
                    sent = self.monotonic()
                    # Whoever wrote its name here and has no lock any more is dead.
                    dead = presence.names()
                    presence.write(holder, *dead)
                    token = self._take(name, [holder, *dead], holder, ttl_s, run_id, above)
                    if token is not None:
                        presence.write(holder)
                        break
                    presence.write(*dead)
                    presence.unlock()
                left = ends - self.monotonic()
                if left <= 0 and (present or self.monotonic() >= tested):
                    raise LeaseHeld(self._held_by(name))
                time.sleep(min(pause, max(left, POLL_S[0] / 2)))
                pause = min(2 * pause, POLL_S[1])
        except BaseException:
            presence.unlock()
            raise
        return Lease(
            self,
            name,
            token,
            holder=holder,
            presence=presence,
            ttl_s=ttl_s,
            renewed=sent,
            run_id=run_id,
            resumes=resumes,
            on_lost=on_lost,
        )

    def holder(self, name: str) -> LeaseHolder | None:
        """Who holds a lease; None if it is free, has lapsed, or its holder on this machine has died."""
        return self.holders(name).get(name)

    def holders(self, prefix: str = "") -> dict[str, LeaseHolder]:
        """The holders of all leases whose names begin so, by name."""
        lapsed = sa.case((self._lapsed, 1), else_=0).label("lapsed")
        query = sa.select(LEASES, self._now.label("now_us"), lapsed).where(
            LEASES.c.environment == self._environment,
            LEASES.c.name.startswith(prefix, autoescape=True),
            LEASES.c.holder.is_not(None),
        )
        with row_transaction(self._engine, writes=False) as connection:
            rows = connection.execute(query).all()
        found = (self._alive(row) for row in rows)
        return {holder.name: holder for holder in found if holder}

    def prune(self, after_s: float = 86_400.0) -> int:
        """Remove the one-time leases that lapsed long ago; returns how many."""
        with row_transaction(self._engine) as connection:
            statement = sa.delete(LEASES).where(
                LEASES.c.environment == self._environment,
                sa.or_(*(LEASES.c.name.startswith(prefix) for prefix in ONE_TIME)),
                self._lapsed,
                sa.func.abs(self._now - LEASES.c.renewed_us) > round(after_s * 1e6),
            )
            return connection.execute(statement).rowcount

    # ── the database ────────────────────────────────────────────────────────────────────────────

    @property
    def _now(self) -> sa.ColumnElement[int]:
        """The database's clock, microseconds. Built within the transaction, which may have waited."""
        if self.shared:  # not now(), which stands still while a statement waits for a row
            return sa.literal_column("(extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
        return sa.literal(round(self.monotonic() * 1e6), sa.BigInteger)

    @property
    def _lapsed(self) -> sa.ColumnElement[bool]:
        columns, now = LEASES.c, self._now
        lapsed = columns.renewed_us + columns.ttl_us <= now
        # A monotonic clock begins again when the machine starts.
        return lapsed if self.shared else sa.or_(lapsed, columns.renewed_us > now + RESTARTED_US)

    def _is(self, name: str) -> tuple[sa.ColumnElement[bool], ...]:
        return LEASES.c.environment == self._environment, LEASES.c.name == name

    def _take(
        self, name: str, over: list[str], holder: str, ttl_s: float, run_id: str, above: int
    ) -> int | None:
        """Become the holder in one statement; None while another one holds the lease.

        Parameters
        ----------
        over
            Holders that count as gone: this one, should its last attempt have succeeded unheard.
        """
        highest: Any = sa.func.greatest if self.shared else sa.func.max
        with row_transaction(self._engine) as connection:
            given = self._values(holder, ttl_s, run_id)
            free = sa.or_(LEASES.c.holder.is_(None), LEASES.c.holder.in_(over), self._lapsed)
            token = highest(LEASES.c.token, sa.literal(above, sa.BigInteger)) + 1
            statement = (
                insert_into(LEASES, self._engine)
                .values(environment=self._environment, name=name, token=above + 1, **given)
                .on_conflict_do_update(
                    index_elements=[LEASES.c.environment, LEASES.c.name],
                    set_={"token": token, **given},
                    where=free,
                )
                .returning(LEASES.c.token)
            )
            return connection.scalar(statement)  # type: ignore[no-any-return]

    def _values(self, holder: str, ttl_s: float, run_id: str) -> dict[str, Any]:
        """The columns of a holder. Built within the transaction, as `_now` is."""
        return {
            "holder": holder,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "run_id": run_id,
            "since": sa.func.clock_timestamp() if self.shared else real_now(),
            "ttl_us": round(ttl_s * 1e6),
            "renewed_us": self._now,
        }

    def _renew(self, lease: Lease) -> bool:
        """Renew a lease, also one that has lapsed and that nobody has taken since.

        One that `resumes` is written again where its row is missing: a row stays after another holder.
        """
        ours = (*self._is(lease.name), LEASES.c.holder == lease._holder, LEASES.c.token == lease.token)
        with row_transaction(self._engine) as connection:
            statement = sa.update(LEASES).where(*ours).values(renewed_us=self._now)
            is_ours = connection.execute(statement).rowcount == 1
            if not is_ours and lease._resumes:
                given = self._values(lease._holder, lease.ttl_s, lease._run_id)
                again = insert_into(LEASES, self._engine).values(
                    environment=self._environment, name=lease.name, token=lease.token, **given
                )
                made = again.on_conflict_do_nothing().returning(LEASES.c.token)
                is_ours = connection.scalar(made) is not None
            return is_ours

    def _release(self, name: str, holder: str, token: int) -> None:
        ours = (*self._is(name), LEASES.c.holder == holder)
        statement: sa.Update | sa.Delete = sa.update(LEASES).where(*ours).values(holder=None)
        if name.startswith(ONE_TIME) and token == 1:  # else it tells the holder before that it has lost it
            statement = sa.delete(LEASES).where(*ours)
        with row_transaction(self._engine) as connection:
            connection.execute(statement)

    def _alive(self, row: Any) -> LeaseHolder | None:
        alive = Presence(self._folder, row.name).is_alive(row.holder)
        if alive is False or (row.lapsed and (self.shared or alive is None)):
            return None
        return LeaseHolder(
            row.name,
            row.token,
            row.host,
            row.process,
            row.run_id,
            row.since if row.since.tzinfo else row.since.replace(tzinfo=UTC),
            max(0.0, (row.now_us - row.renewed_us) / 1e6),
        )

    def _held_by(self, name: str) -> str:
        holder = self.holder(name)
        return f"the lease {name!r} is held by {holder or 'a process that has just released it'}"


@contextmanager
def hold_if_shared(
    settings: Settings, name: str, *, wait_s: float = 0.0, run_id: str = "", unknown: bool | None = None
) -> Iterator[bool]:
    """Hold a lease for the block where several machines share the ledger; one machine has its own locks.

    Yields whether it is held or not needed; False if another process has it. If the database cannot be used,
    yields `unknown` or raises `LedgerError`.
    """
    with ExitStack() as held:
        try:
            if is_shared(settings):
                held.enter_context(Leases.of(settings).acquire(name, wait_s=wait_s, run_id=run_id))
            ours = True
        except LeaseHeld:
            ours = False
        except LedgerError as error:
            if unknown is None:
                raise
            log.warning("the lease %r is not known: %s", name, error)
            ours = unknown
        yield ours
