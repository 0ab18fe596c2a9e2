"""Buy from Databento's historical API: reserve, send once, commit the bytes received.

    price ── the vendor's own, free ──► reserve ── refused: `OverBudget`, no request is sent
                                           │
                                      send once ── refused: the money is released
                                           │  └── failed otherwise: the money stays reserved
                                         commit   the bytes of the records received

After a transient failure the request may be sent again, each time with a reservation of its own: the vendor
bills the bytes it sent, even if they never arrived whole.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TypeVar

from nq_pipeline.clock import from_ns
from nq_pipeline.dbn.stream import decode
from nq_pipeline.errors import BadPayload, LedgerError, OverBudget
from nq_pipeline.sources.databento.client import BatchJob, HistoricalClient
from nq_pipeline.sources.databento.query import Price, Query
from nq_pipeline.sources.databento.vendor_errors import TransientFailure
from nq_pipeline.spend.ledger import Charge, Ledger, Mode, Purpose, Reservation, Spending
from nq_pipeline.spend.money import ZERO, format_usd

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass
class Purchases:
    """The purchases of one run for one purpose.

    `attempts` is for requests that fail for a transient reason. `max_usd` limits the whole run, in addition
    to the ledger's budgets. `cost_usd` is committed, and still reserved for failed requests.
    """

    client: HistoricalClient
    ledger: Ledger
    purpose: Purpose
    run_id: str
    attempts: int = 1
    max_usd: Decimal | None = None
    cost_usd: Decimal = field(default=ZERO, init=False)

    def require_budget(self, priced: Sequence[tuple[Query, Price]]) -> None:
        """Raise `OverBudget`, recorded in the ledger, when the queries together do not fit the budgets.

        Nothing is reserved: each query reserves its own cost when it is sent.
        """
        usd = sum((price.usd for _, price in priced), ZERO)
        first = priced[0][0]
        parts = ", ".join(f"{query.schema} {format_usd(price.usd)}" for query, price in priced)
        whole = Charge(
            vendor="databento",
            purpose=self.purpose,
            dataset=first.dataset,
            schema=",".join(query.schema for query, _ in priced),
            mode="historical-streaming",
            description=f"{parts}; {_symbols(first)}",
            cost_usd=usd,
            billable_bytes=None,
            unit_price_usd=None,
            priced_at=min(price.at for _, price in priced),
            run_id=self.run_id,
        )
        if self.ledger.check(whole) is not None:
            # `reserve` raises and records it, unless another process has made room in the meantime.
            self.ledger.release(self.ledger.reserve(whole), "each query is reserved on its own")

    def buy_body(self, query: Query, price: Price, *, request_id: str) -> bytes:
        """Return the exact body of an answer; the cost of one that cannot be read stays reserved."""

        def send(spending: Spending) -> bytes:
            body = self.client.download(query, spending)
            with suppress(BadPayload):  # reported by whoever parses the archived body
                size = decode(body, query.schema).array.nbytes
                spending.commit(billed_bytes=size, request_id=request_id)
            return body

        return self._buy(query, price, "historical-streaming", send, self.attempts)

    def buy_file(
        self,
        query: Query,
        price: Price,
        path: Path,
        billed_bytes: Callable[[], int],
        request_id: str,
        *,
        records: int,
    ) -> None:
        """Write an answer to `path`; `records` is the vendor's count of its records.

        `billed_bytes` measures the records of the file; if it raises `BadPayload`, the cost stays reserved.
        """

        def send(spending: Spending) -> None:
            path.unlink(missing_ok=True)
            self.client.download_to(query, spending, path, records)
            spending.commit(billed_bytes=billed_bytes(), request_id=request_id)

        self._buy(query, price, "historical-streaming", send, self.attempts)

    def buy_job(self, query: Query, price: Price) -> BatchJob:
        """Submit a batch job for the query, which is paid then."""

        def send(spending: Spending) -> BatchJob:
            job = self.client.submit(query, spending)
            spending.commit(billed_bytes=price.size or 0, request_id=job.id)
            return job

        return self._buy(query, price, "historical", send, attempts=1)

    def _buy(self, query: Query, price: Price, mode: Mode, send: Callable[[Spending], T], attempts: int) -> T:
        charge = charge_for(query, price, purpose=self.purpose, mode=mode, run_id=self.run_id)
        while True:
            if self.max_usd is not None and self.cost_usd + price.usd > self.max_usd:
                raise OverBudget(
                    f"{charge} would cost {format_usd(price.usd)}, and of the "
                    f"{format_usd(self.max_usd)} allowed "
                    f"{format_usd(self.max_usd - self.cost_usd)} is left; raise --max-usd or ask for less"
                )
            spending = _TrackedSpending(self.ledger, self.ledger.reserve(charge))
            try:
                return send(spending)
            except TransientFailure:
                attempts -= 1
                if attempts < 1:
                    raise
            finally:
                self.cost_usd += spending.cost_usd


class _TrackedSpending(Spending):
    """An open reservation. Its cost is the full reserved amount until the vendor reports the actual one.

    If the ledger fails when an answer has arrived, the amount stays reserved and the answer is used: it is
    paid for.
    """

    def __init__(self, ledger: Ledger, reservation: Reservation) -> None:
        super().__init__(ledger, reservation)
        self.cost_usd = reservation.reserved_usd

    def commit(self, *, billed_bytes: int, request_id: str | None = None) -> Decimal:
        try:
            self.cost_usd = super().commit(billed_bytes=billed_bytes, request_id=request_id)
        except LedgerError as error:
            log.warning("the cost of %s stays reserved: %s", self.reservation.charge, error)
        return self.cost_usd

    def release(self, reason: str) -> None:
        super().release(reason)
        self.cost_usd = ZERO


def charge_for(query: Query, price: Price, *, purpose: Purpose, mode: Mode, run_id: str) -> Charge:
    """Return the charge to reserve for a query."""
    begin, end = from_ns(query.start), from_ns(query.end)
    return Charge(
        vendor="databento",
        purpose=purpose,
        dataset=query.dataset,
        schema=query.schema,
        mode=mode,
        description=f"{_symbols(query)}, {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC",
        cost_usd=price.usd,
        billable_bytes=price.size,
        unit_price_usd=price.unit_usd,
        priced_at=price.at,
        run_id=run_id,
    )


def _symbols(query: Query) -> str:
    """Up to three symbols by name, more by number."""
    few = len(query.symbols) <= 3
    return ", ".join(query.symbols) if few else f"{query.symbols[0]} and {len(query.symbols) - 1} more"
