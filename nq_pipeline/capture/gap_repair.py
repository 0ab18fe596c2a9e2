"""Filling gaps that the live gateway no longer replays, from the historical API.

The host of a capture passes in a `HistoricalRecords`; this package knows neither the vendor's client nor
the ledger.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol, Self

import polars as pl

from nq_pipeline.capture.gaps import ALREADY_THERE, HISTORICAL, Gap, describe_difference
from nq_pipeline.capture.rows import TABLE_OF, RowCounts, bought_rows
from nq_pipeline.clock import NS_PER_S, Clock, from_ns, to_ns
from nq_pipeline.dbn.layout import RTYPES
from nq_pipeline.errors import NqError
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import INSTANT
from nq_pipeline.market import sessions

EDGE_NS = NS_PER_S
"""A gap ends at a `ts_event`, history is requested by `ts_recv`: records received later than this after
their event would be left out."""


class HistoricalRecords(Protocol):
    """The historical API of one dataset.

    Spans are of `ts_recv`, nanoseconds UTC, end excluded; symbols are parents (`NQ.OPT`). Calls
    block as long as the vendor takes, and come from one thread at a time. All raise `SourceError`
    without an answer or after a refusal.
    """

    def price(self, schema: str, parents: tuple[str, ...], start_ns: int, end_ns: int) -> Decimal:
        """The current price of the records of a span, USD; free."""
        ...

    def count(self, schema: str, parents: tuple[str, ...], start_ns: int, end_ns: int) -> int:
        """The number of records of a span (`metadata.get_record_count`); free."""
        ...

    def fetch(
        self, schema: str, parents: tuple[str, ...], start_ns: int, end_ns: int, *, run_id: str
    ) -> tuple[Path, Decimal]:
        """Buy the records of a span: a DBN file with its symbol mappings, and the cost in USD.

        Raises
        ------
        OverBudget, LedgerError
            The ledger refuses or cannot be used; nothing was requested from the vendor.
        """
        ...


@dataclass
class GapRepairer:
    """Fills gaps from the historical API, one at a time, on a thread of its own.

    Leaving the context waits for the gap being filled, which may already be paid for, and drops the others:
    the next capture requests them again.

    Without `history` gaps stay as they are. Unless it `buys` (`NQ_CAPTURE_REPAIR=paid`), the price is written
    to the gap. `wait_for_publication` returns when everything logged is in the lake, and raises if publishing
    fails.
    """

    history: HistoricalRecords | None
    lake: Lake
    buys: bool
    run_id: str
    clock: Clock
    wait_for_publication: Callable[[], None]

    def __post_init__(self) -> None:
        self._requests: deque[Future[Gap]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="capture-repairs")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.history = None
        self._thread.shutdown(wait=True, cancel_futures=True)

    @property
    def busy(self) -> bool:
        return bool(self._requests)

    def request(self, gap: Gap, parents: tuple[str, ...]) -> None:
        """Fill a gap of some parents; `finished` yields the outcome. Does nothing after the context."""
        if self.history is not None and parents and gap.last_ns is not None:
            self._requests.append(self._thread.submit(self._fill, self.history, gap, parents))

    def finished(self) -> Iterator[Gap]:
        """The outcomes so far, in the order of the requests."""
        while self._requests and self._requests[0].done():
            request = self._requests.popleft()
            if not request.cancelled():
                yield request.result()

    def _fill(self, history: HistoricalRecords, gap: Gap, parents: tuple[str, ...]) -> Gap:
        """The next state of a gap, or the gap itself if that would be the same."""
        changed = self._fill_from(history, gap, parents)
        outcome = (changed.state, changed.reason, changed.cost_usd)
        return gap if outcome == (gap.state, gap.reason, gap.cost_usd) else changed

    def _fill_from(self, history: HistoricalRecords, gap: Gap, parents: tuple[str, ...]) -> Gap:
        """The gap verified, or with the reason why it is not.

        A part of which the lake has as many records as the vendor counts is not bought. So nothing is
        paid for twice, even if a capture was killed between a purchase and its row.
        """
        cost, bought, counted = Decimal(0), 0, 0
        missing: list[tuple[int, int, int]] = []

        def outcome(**changes: Any) -> Gap:
            return gap.change(
                cost_usd=gap.cost_usd + cost, replayed=bought or gap.replayed, counted=counted, **changes
            )

        try:
            self.wait_for_publication()
            for first, last in _by_session(gap):
                number = history.count(gap.schema, parents, first, last)
                counted += number
                if number != _rows_in_lake(self.lake, gap.schema, first, last):
                    missing.append((first, last, number))
            if missing and not self.buys:
                price = sum((history.price(gap.schema, parents, a, b) for a, b, _ in missing), Decimal(0))
                return gap.change(reason=_offer(gap, price), counted=counted)
            for first, last, number in missing:
                path, paid = history.fetch(gap.schema, parents, first, last, run_id=self.run_id)
                cost += paid
                received = self._append(path)
                bought += received
                if received != number:
                    reason = f"the historical API gave {received:,} records but counts {number:,}"
                    return outcome(reason=reason, filled_by=HISTORICAL)
        except (NqError, OSError) as error:
            return gap.change(reason=str(error), cost_usd=gap.cost_usd + cost)
        rows = sum(_rows_in_lake(self.lake, gap.schema, first, last) for first, last in _by_session(gap))
        return outcome(
            state="verified",
            reason=describe_difference(max(rows - counted, 0), max(counted - rows, 0)),
            filled_by=HISTORICAL if missing else gap.filled_by or ALREADY_THERE,
            published=rows,
        )

    def _append(self, path: Path) -> int:
        """Append the records of a DBN file to the lake, which skips known rows; returns their number."""
        counts, environment = RowCounts(), self.lake.environment
        for table, frame in bought_rows([path], environment=environment, run_id=self.run_id, counts=counts):
            self.lake.append(table, frame, run_id=self.run_id, now=self.clock.now())
        return counts.records


def _by_session(gap: Gap) -> list[tuple[int, int]]:
    """The span of a gap in `ts_recv`, split where sessions open: within one, an ID is one instrument."""
    assert gap.last_ns is not None
    first, last = gap.first_ns, gap.last_ns + EDGE_NS
    days = sessions.sessions(sessions.trade_date(from_ns(first)), sessions.trade_date(from_ns(last)))
    cuts = [ns for day in days if first < (ns := to_ns(day.open)) < last]
    return list(zip([first, *cuts], [*cuts, last], strict=True))


def _rows_in_lake(lake: Lake, schema: str, first: int, last: int) -> int:
    """How many rows of a span of one session, received as `schema`, the lake has."""
    table = TABLE_OF[RTYPES[schema]]
    inside = pl.col("ts_recv").is_between(
        pl.lit(first).cast(INSTANT), pl.lit(last).cast(INSTANT), closed="left"
    )
    days = {sessions.trade_date(from_ns(first)), sessions.trade_date(from_ns(last))}
    rows = lake.scan(table, days).filter(inside, pl.col("source_schema") == schema)
    return int(rows.select(pl.len()).collect().item())


def _offer(gap: Gap, price: Decimal) -> str:
    why = gap.reason.partition(";")[0]
    return f"{why}; the historical API has it for ${price:.4f}: NQ_CAPTURE_REPAIR=paid buys it"
