"""Recorded spans as the batches of the live stream, in order of time and at a chosen speed.

A batch has what one type of rows brought in a slice of a tenth of a second, as the live stream has it. Trades
come at their `ts_event`, gaps at `changed_at`, snapshots at `snapshot_ts`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import date
from heapq import merge
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

import polars as pl

from nq_pipeline.clock import NS_PER_S, from_ns
from nq_pipeline.errors import BadCursor
from nq_pipeline.lake.tables import DECISIONS, GAPS, INSTANT, MBP_1, TRADES, Table
from nq_pipeline.market import sessions
from nq_pipeline.stream.batch import Batch, BatchType, decode, encode
from nq_pipeline.stream.events import snapshots_won
from nq_pipeline.stream.log_tail import COLUMNS

if TYPE_CHECKING:
    import duckdb

SLICE_NS = NS_PER_S // 10
ROWS = 65_536
"""Rows that are read at a time."""
_TICKS: dict[BatchType, Table] = {"quotes": MBP_1, "trades": TRADES}
ORDER: tuple[BatchType, ...] = ("quotes", "trades", "gaps", "snapshot")
"""The order of the types within a slice."""
_INSTANTS: dict[BatchType, str] = {
    "quotes": "ts_event",
    "trades": "ts_event",
    "gaps": "changed_at",
    "snapshot": "snapshot_ts",
}
_CURSOR = re.compile(r"replay\.(\d+)\.(\d)")


@dataclass(frozen=True, slots=True)
class ReplayCursor:
    """A place in a replay: everything before an instant (nanoseconds UTC) was sent. As text it is opaque.

    `kinds` is how many types of the slice that begins there were sent, too, in the order of `ORDER`.
    """

    at_ns: int
    kinds: int = 0

    @classmethod
    def parse(cls, text: str) -> ReplayCursor:
        """The inverse of `str()`; raises `BadCursor` for any other text."""
        if (found := _CURSOR.fullmatch(decode(text))) is None:
            raise BadCursor("this is not a cursor of a replay; send one that came with a message, or none")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return encode(f"replay.{self.at_ns}.{self.kinds}")


def replay(
    connect: Callable[[], duckdb.DuckDBPyConnection],
    start: ReplayCursor,
    end_ns: int,
    types: Collection[BatchType],
) -> Iterator[tuple[int, Batch]]:
    """Batches from a place to before an instant (nanoseconds UTC), each with the end of its slice.

    Each type is read from a connection of its own to the catalog. DuckDB sorts a trade date at a time, on
    disk if it must.
    """
    first_ns = start.at_ns
    sources = []
    for kind in ORDER:
        if kind in types:
            read = _ticks if kind in _TICKS else _events
            sources.append(_slices(kind, read(connect(), kind, first_ns, end_ns)))
    for begin, number, rows in merge(*sources, key=itemgetter(0, 1)):
        if begin > first_ns or number >= start.kinds:
            cursor = ReplayCursor(max(begin, first_ns), number + 1)
            yield begin + SLICE_NS, Batch(ORDER[number], cursor, rows)


def _slices(kind: BatchType, frames: Iterator[pl.DataFrame]) -> Iterator[tuple[int, int, pl.DataFrame]]:
    """Rows of one type by slice, as they are needed: its begin (nanoseconds), place in `ORDER`, and rows."""

    def runs() -> Iterator[tuple[int, pl.DataFrame]]:
        for frame in frames:
            begins = frame[_INSTANTS[kind]].dt.epoch("ns") // SLICE_NS * SLICE_NS
            done = 0
            for length, begin in begins.rle().struct.unnest().iter_rows():
                yield begin, frame.slice(done, length)
                done += length

    for begin, parts in groupby(runs(), key=itemgetter(0)):  # a slice may reach into the next frame
        yield begin, ORDER.index(kind), pl.concat([rows for _, rows in parts])


def _days(start_ns: int, end_ns: int) -> list[date]:
    """The trade dates of a span."""
    first, last = (sessions.trade_date(from_ns(ns)) for ns in (start_ns, end_ns))
    return sorted({first, last, *(s.trade_date for s in sessions.sessions(first, last))})


def _ticks(
    connection: duckdb.DuckDBPyConnection, kind: BatchType, start_ns: int, end_ns: int
) -> Iterator[pl.DataFrame]:
    table = _TICKS[kind]
    instants = [name for name in COLUMNS[kind] if table.schema[name] == INSTANT]
    shown = ", ".join(f"{name}_ns AS {name}" if name in instants else name for name in COLUMNS[kind])
    sql = (
        f"SELECT {shown} FROM {table.name} WHERE trade_date = $day AND ts_event_ns >= $start AND "
        "ts_event_ns < $end ORDER BY ts_event_ns, sequence, instrument_id, ordinal"
    )
    for day in _days(start_ns, end_ns):
        values = {"day": day, "start": start_ns, "end": end_ns}
        for batch in connection.sql(sql, params=values).to_arrow_reader(ROWS):
            frame = pl.from_arrow(batch)
            assert isinstance(frame, pl.DataFrame)
            yield frame.with_columns(pl.col(instants).cast(INSTANT))


def _events(
    connection: duckdb.DuckDBPyConnection, kind: BatchType, start_ns: int, end_ns: int
) -> Iterator[pl.DataFrame]:
    """The gaps or snapshots of a span, which are few, in the table's own columns and types."""
    table, instant = (GAPS if kind == "gaps" else DECISIONS), _INSTANTS[kind]
    sql = f"FROM {table.name} WHERE {instant}_ns >= $start AND {instant}_ns < $end"
    rows = connection.sql(sql, params={"start": start_ns, "end": end_ns}).pl().lazy()
    exact = [
        pl.col(f"{name}_ns").cast(INSTANT).alias(name) for name, t in table.schema.items() if t == INSTANT
    ]
    rows = rows.with_columns(exact).select(table.schema.names())
    if table is GAPS:
        yield rows.sort(instant, *table.key).collect()
    else:
        yield snapshots_won(rows).sort(instant, maintain_order=True).collect()
