"""Buying from Databento's historical API: reserve, ask once, commit what came.

    price ── the vendor's own, free ──► reserve ── refused: `OverBudget`, nothing is asked
                                           │
                                      ask once ── refused: the money is back
                                           │  └── broke off, or nobody knows: it stays reserved
                                         commit   the bytes of the records that came

After a fault that passes by itself the question may be asked again, each time with a reservation of
its own: the vendor bills what it sent, also when it arrived in pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TypeVar

from nq_pipeline.clock import from_ns
from nq_pipeline.dbn.decode import decode
from nq_pipeline.errors import BadPayload, OverBudget
from nq_pipeline.sources.databento.client import (
    BatchJob,
    HistoricalClient,
    Passing,
    Price,
    Query,
)
from nq_pipeline.spend.ledger import Charge, Ledger, Mode, Purpose, Reservation, Spending
from nq_pipeline.spend.money import ZERO, format_usd

T = TypeVar("T")


@dataclass
class Purchases:
    """What one run buys for one purpose.

    Parameters
    ----------
    attempts
        How often a question is asked at most, counting faults that pass by themselves.
    max_usd
        What all of it may cost, beside the ledger's budgets; None for no more than those.

    Attributes
    ----------
    cost_usd
        Committed, and still reserved for what failed.
    """

    client: HistoricalClient
    ledger: Ledger
    purpose: Purpose
    run_id: str
    attempts: int = 1
    max_usd: Decimal | None = None
    cost_usd: Decimal = field(default=ZERO, init=False)

    def grant(self, priced: Sequence[tuple[Query, Price]]) -> None:
        """Raise `OverBudget`, noted in the ledger, when all of it together would not fit now.

        It reserves nothing: that is done for each question when it is asked.
        """
        if not priced:
            return
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
            # Made room for by somebody else meanwhile: then it may go on.
            self.ledger.release(self.ledger.reserve(whole), "each question is reserved on its own")

    def body(self, query: Query, price: Price, *, request_id: str) -> bytes:
        """An answer in memory, as it came; one that cannot be read stays reserved."""

        def ask(spending: Spending) -> bytes:
            body = self.client.download(query, spending)
            with suppress(BadPayload):  # whoever archives it will say so
                size = decode(body, query.schema).array.nbytes
                spending.commit(billed_bytes=size, request_id=request_id)
            return body

        return self._buy(query, price, "historical-streaming", ask, self.attempts)

    def file(
        self,
        query: Query,
        price: Price,
        path: Path,
        size: Callable[[], int],
        request_id: str,
        *,
        records: int,
    ) -> None:
        """An answer as a file at `path`. `size` reads it and gives the bytes of its records, or raises
        `BadPayload`: then what was reserved stays so. `records` is the vendor's count of them."""

        def ask(spending: Spending) -> None:
            path.unlink(missing_ok=True)
            self.client.download_to(query, spending, path, records)
            spending.commit(billed_bytes=size(), request_id=request_id)

        self._buy(query, price, "historical-streaming", ask, self.attempts)

    def job(self, query: Query, price: Price) -> BatchJob:
        """A batch job for the query, paid by its submission."""

        def ask(spending: Spending) -> BatchJob:
            job = self.client.submit(query, spending)
            spending.commit(billed_bytes=price.size or 0, request_id=job.id)
            return job

        return self._buy(query, price, "historical", ask, attempts=1)

    def _buy(
        self,
        query: Query,
        price: Price,
        mode: Mode,
        ask: Callable[[Spending], T],
        attempts: int,
    ) -> T:
        charge = charge_for(query, price, purpose=self.purpose, mode=mode, run_id=self.run_id)
        for last in (n + 1 == attempts for n in range(attempts)):
            if self.max_usd is not None and self.cost_usd + price.usd > self.max_usd:
                raise OverBudget(
                    f"{charge} would cost {format_usd(price.usd)}, and of the "
                    f"{format_usd(self.max_usd)} allowed "
                    f"{format_usd(self.max_usd - self.cost_usd)} is left; raise --max-usd or ask for less"
                )
            spending = _Spending(self.ledger, self.ledger.reserve(charge))
            try:
                return ask(spending)
            except Passing:
                if last:
                    raise
            finally:
                self.cost_usd += spending.cost_usd
        raise ValueError("a question is asked at least once")


class _Spending(Spending):
    """A reservation in use that tells what it has come to: all of it until it is known better."""

    def __init__(self, ledger: Ledger, reservation: Reservation) -> None:
        super().__init__(ledger, reservation)
        self.cost_usd = reservation.reserved_usd

    def commit(self, *, billed_bytes: int, request_id: str | None = None) -> Decimal:
        self.cost_usd = super().commit(billed_bytes=billed_bytes, request_id=request_id)
        return self.cost_usd

    def release(self, reason: str) -> None:
        super().release(reason)
        self.cost_usd = ZERO


def charge_for(query: Query, price: Price, *, purpose: Purpose, mode: Mode, run_id: str) -> Charge:
    """What the ledger is to reserve for a query."""
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
    """A few symbols by name, many by number."""
    few = len(query.symbols) <= 3
    return ", ".join(query.symbols) if few else f"{query.symbols[0]} and {len(query.symbols) - 1} more"
