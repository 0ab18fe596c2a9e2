"""Which history was bought, for every machine: begun, ordered as a batch job, or stored with its proof.

The proof is a copy of the one beside the files. A second machine finds out here that a span is being bought,
that a job was ordered for it, or that another machine has paid for it and has not stored it yet.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Literal

import sqlalchemy as sa

from nq_pipeline.clock import real_now
from nq_pipeline.leases.leases import PATIENCE_S, Lease, Leases
from nq_pipeline.leases.tables import PURCHASES, insert_into
from nq_pipeline.settings import Settings
from nq_pipeline.spend.database import open_engine, open_row_engine, row_transaction
from nq_pipeline.spend.tables import LINES, Kind

PurchaseState = Literal["sent", "ordered", "stored"]


@dataclass(frozen=True, slots=True)
class PurchaseRecord:
    """The purchase of a span.

    Attributes
    ----------
    state
        `sent`: a stream was requested; `ordered`: a batch job was, or is about to be, submitted; `stored`:
        its files are in the store.
    first_ns, last_ns
        The span, nanoseconds UTC, the end exclusive.
    request_id
        The ledger's request, or the batch job.
    proof
        The proof as it is beside the files, JSON; empty until it is stored.
    """

    digest: str
    dataset: str
    schema: str
    first_ns: int
    last_ns: int
    state: PurchaseState
    run_id: str
    request_id: str | None = None
    proof: str | None = None
    host: str = ""


class PurchaseRecords:
    """The purchases of one environment. `LedgerError` from every method when the database fails."""

    def __init__(self, engine: sa.Engine, environment: str, leases: Leases) -> None:
        self._engine, self._environment, self._leases = engine, environment, leases

    @classmethod
    def of(cls, settings: Settings) -> PurchaseRecords:
        open_engine(settings)  # creates the tables
        return cls(open_row_engine(settings, PATIENCE_S), settings.environment, Leases.of(settings))

    @property
    def shared(self) -> bool:
        """Whether other machines may buy, too."""
        return self._leases.shared

    @contextmanager
    def hold(self, digest: str, *, run_id: str, wait_s: float) -> Iterator[Lease]:
        """Hold the lease to buy a span, where other machines may; `LeaseHeld` after waiting in vain."""
        name = f"purchase/{digest}"
        if not self.shared:
            yield Lease.without_database(name)
            return
        with self._leases.acquire(name, run_id=run_id, wait_s=wait_s) as lease:
            yield lease

    def find(self, digest: str) -> PurchaseRecord | None:
        """The record of a span; None without one."""
        columns = [PURCHASES.c[column.name] for column in fields(PurchaseRecord)]
        query = sa.select(*columns).where(*self._is(digest))
        with row_transaction(self._engine, writes=False) as connection:
            row = connection.execute(query).mappings().one_or_none()
        return PurchaseRecord(**row) if row else None

    def write(self, record: PurchaseRecord) -> None:
        """Replace the record of a span; its host and time are this machine's and now."""
        given = {**asdict(record), "host": socket.gethostname(), "changed_at": real_now()}
        statement = insert_into(PURCHASES, self._engine).values(environment=self._environment, **given)
        key = [PURCHASES.c.environment, PURCHASES.c.digest]
        with row_transaction(self._engine) as connection:
            connection.execute(statement.on_conflict_do_update(index_elements=key, set_=given))

    def forget(self, digest: str) -> None:
        """Remove the record of a purchase that provably did not take place."""
        with row_transaction(self._engine) as connection:
            connection.execute(sa.delete(PURCHASES).where(*self._is(digest)))

    def is_paid(self, request_id: str) -> bool:
        """Whether the ledger has committed a request: all its bytes had arrived."""
        query = sa.select(sa.func.count()).where(
            LINES.c.environment == self._environment,
            LINES.c.kind == Kind.COMMITTED,
            LINES.c.request_id == request_id,
        )
        with row_transaction(self._engine, writes=False) as connection:
            return bool(connection.scalar(query))

    def _is(self, digest: str) -> tuple[sa.ColumnElement[bool], ...]:
        return PURCHASES.c.environment == self._environment, PURCHASES.c.digest == digest
