"""What the live gateway no longer replays, from the historical API: the seam, and the repair of a gap.

Whoever hosts a capture hands in a `HistoricalRecords`; this room knows neither the vendor's client nor the
ledger. Prices and counts are free to ask. `fetch` spends money and is called only where the
operator has opted in (`NQ_CAPTURE_REPAIR=paid`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from nq_pipeline.capture.gaps import ALREADY_THERE, HISTORICAL, Gap, describe_difference
from nq_pipeline.capture.schema_fallback import RTYPES
from nq_pipeline.clock import NS_PER_S, Clock, from_ns, to_ns
from nq_pipeline.dbn import stream
from nq_pipeline.dbn.framer import (
    SYMBOL_MAPPING,
    Frame,
    Framer,
    Head,
)
from nq_pipeline.errors import BadStream, NqError
from nq_pipeline.market import sessions

if TYPE_CHECKING:
    from nq_pipeline.lake.store import Lake

EDGE_NS = NS_PER_S
"""A gap ends at a `ts_event` and history is asked for by `ts_recv`: what is received later than this
after its event would be left out."""
BATCH_BYTES = 8 * 1024 * 1024
NO_SESSION = 0
"""`log_session` of rows that did not come through the capture log."""


class HistoricalRecords(Protocol):
    """The historical API of one dataset.

    Spans are of `ts_recv`, nanoseconds UTC, start included, end not; symbols are parents (`NQ.OPT`).
    Calls block for as long as the vendor takes, and come from one thread at a time.

    Raises
    ------
    SourceError
        From every method, with a sentence for a person: there is no answer, or a refusal.
    LedgerError
        From `fetch`: the ledger cannot be used, so nothing was asked.
    """

    def price(self, schema: str, parents: tuple[str, ...], start_ns: int, end_ns: int) -> Decimal:
        """What the records of a span cost now, USD."""
        ...

    def count(self, schema: str, parents: tuple[str, ...], start_ns: int, end_ns: int) -> int:
        """How many records the vendor says a span has (`metadata.get_record_count`)."""
        ...

    def fetch(
        self, schema: str, parents: tuple[str, ...], start_ns: int, end_ns: int, *, run_id: str
    ) -> tuple[Path, Decimal]:
        """Buy the records of a span: a DBN file with the mappings of its instruments, and its cost in USD.

        Raises
        ------
        OverBudget
            The ledger refuses; nothing was asked of the vendor.
        """
        ...


class GapRepairer:
    """Fills gaps from the historical API, one after the other, on a thread of its own.

    Parameters
    ----------
    history
        None where there is none: gaps stay as they are.
    buys
        Whether records may be bought; otherwise the price is found out, and written to the gap.
    caught_up
        Waits until what the capture has logged is in the lake; raises where it does not get there.

    Leaving waits for the gap in hand, which may be paid for already, and drops the others: the
    next capture asks for them again.
    """

    def __init__(
        self,
        history: HistoricalRecords | None,
        lake: Lake,
        *,
        buys: bool,
        environment: str,
        run_id: str,
        clock: Clock,
        caught_up: Callable[[], None],
    ) -> None:
        self._history, self._lake, self._buys = history, lake, buys
        self._environment, self._run_id, self._clock = environment, run_id, clock
        self._caught_up = caught_up
        self._asked: deque[Future[Gap]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="capture-repairs")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    @property
    def busy(self) -> bool:
        return bool(self._asked)

    def ask(self, gap: Gap, parents: tuple[str, ...]) -> None:
        """Fill a gap of some parents; what becomes of it is handed out by `finished`."""
        if self._history is not None and parents and gap.last_ns is not None:
            self._asked.append(self._thread.submit(self._fill, self._history, gap, parents))

    def finished(self) -> Iterator[Gap]:
        while self._asked and self._asked[0].done():
            asked = self._asked.popleft()
            if not asked.cancelled():
                yield asked.result()

    def _fill(self, history: HistoricalRecords, gap: Gap, parents: tuple[str, ...]) -> Gap:
        """The next state of a gap; the gap itself where nothing has changed since it was asked for before."""
        changed = self._changed(history, gap, parents)
        told = (changed.state, changed.reason, changed.cost_usd)
        return gap if told == (gap.state, gap.reason, gap.cost_usd) else changed

    def _changed(self, history: HistoricalRecords, gap: Gap, parents: tuple[str, ...]) -> Gap:
        """Verified, or with the reason why it is not.

        A part of which the lake holds as many records as the vendor counts is not bought, so that
        nothing is paid for twice: a capture may have been killed between the purchase and its row.
        """
        cost, bought, counted, missing = Decimal(0), 0, 0, []
        try:
            self._caught_up()
            for first, last in _by_session(gap):
                number = history.count(gap.schema, parents, first, last)
                counted += number
                if number != _held(self._lake, gap.schema, first, last):
                    missing.append((first, last, number))
            if missing and not self._buys:
                price = sum((history.price(gap.schema, parents, a, b) for a, b, _ in missing), Decimal(0))
                return gap.change(reason=_offer(gap, price), counted=counted)
            for first, last, number in missing:
                path, paid = history.fetch(gap.schema, parents, first, last, run_id=self._run_id)
                cost += paid
                came = self._append(path)
                bought += came
                if came != number:
                    reason = f"the historical API gave {came:,} records where it counts {number:,}"
                    return gap.change(
                        reason=reason, filled_by=HISTORICAL, **_paid(gap, cost, bought, counted)
                    )
        except (NqError, OSError) as error:
            return gap.change(reason=str(error), cost_usd=gap.cost_usd + cost)
        filled_by = HISTORICAL if missing else gap.filled_by or ALREADY_THERE
        held = sum(_held(self._lake, gap.schema, first, last) for first, last in _by_session(gap))
        return gap.change(
            state="verified",
            reason=describe_difference(max(held - counted, 0), max(counted - held, 0)),
            filled_by=filled_by,
            published=held,
            **_paid(gap, cost, bought, counted),
        )

    def _append(self, path: Path) -> int:
        """The records of a DBN file to the lake, which leaves out what it has; returns how many came."""
        from nq_pipeline.capture.rows import Origin, SessionRows

        rows, came = SessionRows(NO_SESSION), 0

        def give() -> int:
            now = self._clock.now()
            tables, counts = rows.rows(Origin(self._environment, self._run_id, to_ns(now)))
            for table, frame in tables:
                self._lake.append(table, frame, run_id=self._run_id, now=now)
            return counts.records

        for frame in read_frames(path):
            rows.take(frame)
            if rows.gathered >= BATCH_BYTES:
                came += give()
        return came + give()


def _by_session(gap: Gap) -> list[tuple[int, int]]:
    """The span of a gap in `ts_recv`, divided where sessions open: within one, an id is one instrument."""
    assert gap.last_ns is not None
    first, last = gap.first_ns, gap.last_ns + EDGE_NS
    days = sessions.sessions(sessions.trade_date(from_ns(first)), sessions.trade_date(from_ns(last)))
    cuts = [ns for day in days if first < (ns := to_ns(day.open)) < last]
    return list(zip([first, *cuts], [*cuts, last], strict=True))


def _held(lake: Lake, schema: str, first: int, last: int) -> int:
    """How many records of a span of one session, received as `schema`, the lake has."""
    import polars as pl

    from nq_pipeline.capture.rows import SCHEMAS
    from nq_pipeline.lake.tables import INSTANT

    table = SCHEMAS[RTYPES[schema]][1]
    inside = pl.col("ts_recv").is_between(
        pl.lit(first).cast(INSTANT), pl.lit(last).cast(INSTANT), closed="left"
    )
    days = {sessions.trade_date(from_ns(first)), sessions.trade_date(from_ns(last))}
    rows = lake.scan(table, days).filter(inside, pl.col("source_schema") == schema)
    return int(rows.select(pl.len()).collect().item())


def _offer(gap: Gap, price: Decimal) -> str:
    why = gap.reason.partition(";")[0]
    return f"{why}; the historical API has it for ${price:.4f}: NQ_CAPTURE_REPAIR=paid buys it"


def _paid(gap: Gap, cost: Decimal, bought: int, counted: int) -> dict[str, Any]:
    """What is written to a gap of a purchase."""
    return {
        "cost_usd": gap.cost_usd + cost,
        "replayed": bought or gap.replayed,
        "counted": counted,
    }


def read_frames(path: Path) -> Iterator[Frame]:
    """The records of a DBN file of one session, after the mappings that its head has.

    Raises
    ------
    BadStream
        The file is cut off or damaged; what was whole before is yielded first.
    """
    framer, told = Framer(), False
    with path.open("rb") as file:
        try:
            for piece in stream.plain(file):
                for frame in framer.feed(piece):
                    if not told:
                        told = True
                        yield from Framer(frame.head).feed(_mappings(frame.head))
                    yield frame
        except stream.EndsEarly as error:
            raise BadStream(f"{path} {error}; delete it", offset=framer.offset) from None
    if framer.pending or framer.head is None:
        raise BadStream(f"{path} is cut off within a record; delete it", offset=framer.offset)


def _mappings(head: Head) -> bytes:
    """The mappings of a file's head as the records in which the live gateway says them."""
    import databento_dbn

    struct = getattr(databento_dbn, f"v{head.version}").SymbolMappingMsg
    dtype = np.dtype([*struct._dtypes, *([("ts_out", "<u8")] if head.ts_out else [])])
    named = databento_dbn.Metadata.decode(head.raw).mappings
    pairs = [(int(span["symbol"]), raw) for raw, spans in named.items() for span in spans if span["symbol"]]
    records = np.zeros(len(pairs), dtype)
    records["length"], records["rtype"] = dtype.itemsize // 4, SYMBOL_MAPPING
    records["instrument_id"] = [number for number, _ in pairs]
    records["stype_out_symbol"] = [symbol.encode() for _, symbol in pairs]
    return records.tobytes()
