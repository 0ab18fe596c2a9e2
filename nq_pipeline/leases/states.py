"""Small states that all machines read and change: of breakers, rate limits and alerts.

With a ledger in SQLite there is one machine, and each of these has a file of its own there instead.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import sqlalchemy as sa

from nq_pipeline.errors import LedgerError
from nq_pipeline.leases.leases import PATIENCE_S
from nq_pipeline.leases.tables import STATES, insert_into
from nq_pipeline.settings import Settings
from nq_pipeline.spend.database import is_shared, open_engine, open_row_engine, row_transaction

QUIET_S = 30.0
"""After a failure, the database is not tried again for this long: a run must not wait at every step."""


log = logging.getLogger(__name__)


@dataclass
class SharedState:
    """A state that is being changed: its text, and the database's clock in milliseconds since 1970."""

    body: str
    now_ms: int


class SharedStates:
    """The states of one environment, in PostgreSQL.

    `LedgerError` from every method when the database cannot be used.
    """

    _failed: ClassVar[dict[str, tuple[float, str]]] = {}
    """When each database failed last, and how."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._environment = settings, settings.environment
        self._engine = open_row_engine(settings, PATIENCE_S)
        self._is_migrated = False

    @classmethod
    def of(cls, settings: Settings) -> SharedStates | None:
        """The states of the settings' environment; None where one machine has them in files.

        Does not ask the database yet, so that whoever can do without it does.
        """
        try:
            return cls(settings) if is_shared(settings) else None
        except LedgerError as error:  # the setting names no database
            log.warning("nothing is shared with other machines: %s", error)
            return None

    def read(self, name: str) -> str:
        """The text of a state; empty if there is none yet."""
        query = sa.select(STATES.c.body).where(*self._is(name))
        with self._opened(), row_transaction(self._engine, writes=False) as connection:
            return connection.scalar(query) or ""

    @contextmanager
    def changing(self, name: str, initial: Callable[[], str] = str) -> Iterator[SharedState]:
        """A state, locked for everybody else; its text is saved at the end, if it has changed.

        Parameters
        ----------
        initial
            Gives the text of a new state.
        """
        now: sa.ColumnElement[int] = sa.literal_column(
            "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
        )
        given = {"environment": self._environment, "name": name, "body": "", "changed_at": sa.func.now()}
        with self._opened(), row_transaction(self._engine) as connection:
            connection.execute(insert_into(STATES, self._engine).values(given).on_conflict_do_nothing())
            locked = sa.select(STATES.c.body).where(*self._is(name)).with_for_update()
            before = connection.scalar(locked) or ""
            state = SharedState(before or initial(), connection.scalar(sa.select(now)) or 0)
            yield state
            if state.body != before:
                saved = {"body": state.body, "changed_at": sa.func.now()}
                connection.execute(sa.update(STATES).where(*self._is(name)).values(saved))

    def _is(self, name: str) -> tuple[sa.ColumnElement[bool], ...]:
        return STATES.c.environment == self._environment, STATES.c.name == name

    @contextmanager
    def _opened(self) -> Iterator[None]:
        """The database with its tables. A failure is remembered for a while: it then fails at once."""
        database = str(self._engine.url)
        at, reason = self._failed.get(database, (0.0, ""))
        if reason and time.monotonic() - at < QUIET_S:
            raise LedgerError(reason)
        try:
            if not self._is_migrated:
                open_engine(self._settings)
                self._is_migrated = True
            yield
        except LedgerError as error:
            self._failed[database] = time.monotonic(), str(error)
            raise
        self._failed.pop(database, None)
