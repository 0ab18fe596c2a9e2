"""From DBN records to rows of the lake: symbols, contracts, prices, and what distinguishes equal trades.

A gateway session is read in order, and each row follows from what the session sent before it. So the rows
are the same wherever the stream is cut. Records become columns by copying fields; only instruments are
looked up one by one, once per trade date.

mbp-1 and mbo hold every trade as a record with action T, and `trades` is documented as exactly those. F
records describe the resting side of the same trade and are skipped. A T record of size 0 traded nothing and
stays in the table of its schema.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from nq_pipeline.dbn import columns
from nq_pipeline.dbn.framer import Frame, is_near, read_frames
from nq_pipeline.dbn.layout import (
    CONTROL,
    SCHEMAS,
    SYMBOL_MAPPING,
    VERSIONS,
    Array,
    RecordLayout,
    record_layout,
)
from nq_pipeline.lake.tables import MBO, MBP_1, TRADES, Table
from nq_pipeline.market import sessions
from nq_pipeline.market.contracts import MONTH_CODES
from nq_pipeline.market.listing import underlying_future
from nq_pipeline.market.products import PRODUCTS
from nq_pipeline.market.symbology import Unparsed, parse_globex

TABLE_OF: dict[int, Table] = {0: TRADES, 1: MBP_1, 160: MBO}
"""rtype to the table of its records; other records stay in the log."""
SNAPSHOT = 32
"""Flag of records that repeat the state of the book. History has them at the start of each UTC day; a
snapshot of mbp-1 has the key of the record that it repeats."""
BAD_TS_RECV = 8
"""Flag of records whose `ts_recv` Databento marks as unreliable."""
EPOCH = date(1970, 1, 1).toordinal()
NO_SESSION = 0
"""`log_session` of rows that did not pass through the capture log."""
BATCH_BYTES = 16 << 20
"""Bytes of bought records converted at a time, which bounds the memory."""
UNKNOWN = -1
"""Code of an instrument that has no symbol yet."""

_FUTURE = re.compile(rf"([A-Z0-9]{{1,3}})[{MONTH_CODES}][0-9]{{1,2}}")


@dataclass
class RowCounts:
    """What became of the records of market data that were read."""

    records: int = 0
    left: Counter[str] = field(default_factory=Counter)  # why records have no row and stay in the log

    def add(self, other: RowCounts) -> None:
        self.records += other.records
        self.left += other.left


class Origin(NamedTuple):
    """The origin of all rows of one batch."""

    environment: str
    run_id: str
    now_ns: int


class SessionRows:
    """Turns the frames of one session, added in order, into batches of rows.

    Within a batch, records are ordered by instrument, and otherwise as in the stream. That is nearly
    always the table's order, so the lake need not sort wide rows, and each instrument is looked up once.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.pending_bytes = self._passed = 0
        self._symbols = SymbolTable()
        self._instruments = Instruments(self._symbols.names)
        self._ordinals: dict[tuple[str, int], Ordinals] = {}
        self._pending: dict[int, list[tuple[int, Frame]]] = {}
        self._others: Counter[str] = Counter()

    def add(self, frame: Frame) -> None:
        if SYMBOL_MAPPING in frame.tallies:
            self._symbols.add_mappings(frame, self._passed)
        for rtype, tally in frame.tallies.items():
            if rtype in TABLE_OF:
                self._pending.setdefault(rtype, []).append((self._passed, frame))
            elif rtype not in CONTROL:
                self._others[f"rtype {rtype}"] += tally.count
        self._passed += len(frame.records)
        self.pending_bytes = self._passed if self._pending else 0

    def build(self, origin: Origin) -> tuple[list[tuple[Table, pl.DataFrame]], RowCounts]:
        """The rows of all frames added since the last call, by table; trades last."""
        counts = RowCounts(records=self._others.total(), left=self._others)
        tables: list[tuple[Table, pl.DataFrame]] = []
        for rtype, records, described in self._drain(counts):
            table = TABLE_OF[rtype]
            layout = record_layout(SCHEMAS[rtype], VERSIONS[-1])  # units are the same in every version
            shared = self._shared_columns(records, described, layout, origin)
            if table is not TRADES:
                tables.append((table, self._table_columns(table, layout, records, shared)))
                traded = records["action"] == b"T"
                records, shared = records[traded], shared.filter(traded)
            if len(records):
                trades = self._table_columns(TRADES, layout, records, shared)
                tables.append((TRADES, trades if table is TRADES else trades.filter(pl.col("size") > 0)))
        return sorted(tables, key=lambda each: each[0] is TRADES), counts

    def skip(self) -> None:
        """Count the frames added since the last call, without rows."""
        for rtype, records, _ in self._drain(RowCounts()):
            table = TABLE_OF[rtype]
            if table is not TRADES:
                self._ordinal(table, rtype, records)
                records = records[records["action"] == b"T"]
            self._ordinal(TRADES, rtype, records)

    def _drain(self, counts: RowCounts) -> Iterator[tuple[int, Array, pl.DataFrame]]:
        """rtype, records and their instruments of the pending frames, without records that have no row."""
        pending, self._pending, self._others = self._pending, {}, Counter()
        self._passed = self.pending_bytes = 0
        for rtype, parts in sorted(pending.items(), reverse=True):
            arrays = [frame.array(rtype) for _, frame in parts]
            records = np.concatenate([_as_bytes(array) for array in arrays]).view(arrays[0].dtype)
            days = sessions.trade_dates(filing_instants(records))
            counts.records += len(records)
            undated = np.isnat(days) | ~columns.is_instant(records["ts_event"])
            repeats = np.zeros(len(records), np.bool_)
            if TABLE_OF[rtype] is not TRADES:
                repeats = (records["flags"] & SNAPSHOT).astype(np.bool_) & ~undated
            counts.left["no ts_event within the calendar"] += int(undated.sum())
            counts.left["snapshot of the book"] += int(repeats.sum())
            order = _by_instrument(records["instrument_id"])
            if (dropped := undated | repeats).any():
                order = order[~dropped[order]]
            if not len(order):
                continue
            places = None
            if self._symbols.has_new:
                places = np.concatenate([passed + frame.starts(rtype) for passed, frame in parts])[order]
            records, days = _as_bytes(records).take(order).view(records.dtype), days[order]
            yield rtype, records, self._described(records["instrument_id"], days, places)
        self._symbols.end_batch()

    def _described(self, ids: Array, days: Array, places: Array | None) -> pl.DataFrame:
        """Trade date, symbol and contract of each record."""
        codes = self._symbols.find(ids, places) if places is not None else ids
        begins = np.flatnonzero(_changes(ids, days, codes))
        codes = codes[begins] if places is not None else self._symbols.find(ids[begins])
        described = self._instruments.on(days[begins], codes)
        each = np.repeat(np.arange(len(begins), dtype=np.uint32), np.diff(np.append(begins, len(ids))))
        return described.select(pl.all().gather(pl.Series(each)))

    def _shared_columns(
        self, records: Array, described: pl.DataFrame, layout: RecordLayout, origin: Origin
    ) -> pl.DataFrame:
        """The columns that all tables have."""
        ts_event, ts_recv = records["ts_event"].astype(np.int64), records["ts_recv"].astype(np.int64)
        received = columns.is_instant(records["ts_recv"])
        latencies = [
            columns.nulled(ts_recv - ts_event, received).alias("receive_latency_ns"),
            columns.nulled(origin.now_ns - ts_recv, received).alias("publish_latency_ns"),
        ]
        names = [n for n in TRADES.schema.names() if n in (records.dtype.names or ()) and n != "depth"]
        always = {"source_schema": layout.schema, "environment": origin.environment, "run_id": origin.run_id}
        return pl.DataFrame(
            [
                *(_column(layout, name, records[name]) for name in names),
                *latencies,
                pl.Series("is_misdated", is_misdated(records)),
                *described,
            ]
        ).with_columns(
            pl.lit(self.number, pl.Int64).alias("log_session"),
            *(pl.lit(text, pl.Enum([text])).alias(name) for name, text in always.items()),
        )

    def _table_columns(
        self, table: Table, layout: RecordLayout, records: Array, shared: pl.DataFrame
    ) -> pl.DataFrame:
        """The shared columns and those that depend on the table."""
        fields = records.dtype.names or ()
        own = [n for n in table.schema.names() if n in fields and n not in shared.columns]
        return shared.with_columns(
            pl.Series("ordinal", self._ordinal(table, layout.rtype, records)),
            *(_column(layout, name, records[name]) for name in own),
        )

    def _ordinal(self, table: Table, rtype: int, records: Array) -> npt.NDArray[np.uint32]:
        return self._ordinals.setdefault((table.name, rtype), Ordinals()).count(records)


def bought_rows(
    files: Iterable[Path], *, environment: str, run_id: str, counts: RowCounts
) -> Iterator[tuple[Table, pl.DataFrame]]:
    """The rows of bought DBN files, in batches with their table; `counts` receives what became of records.

    They did not pass through the capture log, so they have no latency of publication. Raises `BadStream`
    for a damaged file.
    """
    session = SessionRows(NO_SESSION)

    def drain() -> Iterator[tuple[Table, pl.DataFrame]]:
        tables, more = session.build(Origin(environment, run_id, 0))
        counts.add(more)
        for table, frame in tables:
            yield table, frame.with_columns(pl.lit(None, pl.Int64).alias("publish_latency_ns"))

    for file in files:
        for frame in read_frames(file):
            session.add(frame)
            if session.pending_bytes >= BATCH_BYTES:
                yield from drain()
    yield from drain()


def is_misdated(records: Array) -> npt.NDArray[np.bool_]:
    """Whether `ts_event` lies far from a `ts_recv` that is defined and reliable.

    Such rows are kept, and filed by `ts_recv`.
    """
    sound = columns.is_instant(records["ts_recv"]) & (records["flags"] & BAD_TS_RECV == 0)
    far: npt.NDArray[np.bool_] = ~is_near(records["ts_event"], records["ts_recv"]) & sound
    return far


def filing_instants(records: Array) -> Array:
    """The instant that decides each record's trade date."""
    misdated = is_misdated(records)
    if not misdated.any():
        return records["ts_event"]
    received = records["ts_recv"]
    return np.where(misdated & ~np.isnat(sessions.trade_dates(received)), received, records["ts_event"])


def record_keys(records: Array) -> pl.DataFrame:
    """The key of each record of one session and table; the records are in the order of the stream."""
    ordered = _as_bytes(records).take(_by_instrument(records["instrument_id"])).view(records.dtype)
    keys = {name: np.ascontiguousarray(ordered[name]) for name in _KEY}
    return pl.DataFrame({**keys, "ordinal": Ordinals().count(ordered)}).with_columns(
        pl.col("ts_event").cast(pl.Int64).cast(columns.INSTANT)
    )


def _as_bytes(records: Array) -> Array:
    """Records as bytes, which are copied several times faster than field by field."""
    return records.view(np.dtype((np.void, records.dtype.itemsize)))


def _by_instrument(ids: Array) -> npt.NDArray[np.intp]:
    """The order by instrument, and within each as in the stream.

    ID and place are sorted as one number, which is ten times faster than a stable argsort.
    """
    packed = ids.astype(np.uint64) << 32 | np.arange(len(ids), dtype=np.uint64)
    packed.sort()
    return (packed & 0xFFFF_FFFF).astype(np.intp)


def _changes(*columns: Array) -> npt.NDArray[np.bool_]:
    """Where a row differs from the one before; True for the first."""
    changed = np.ones(len(columns[0]), np.bool_)
    changed[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return changed


def _column(layout: RecordLayout, name: str, values: Array) -> pl.Series:
    """A field of DBN as a column of the lake."""
    if values.dtype.kind == "S":
        return columns.letters(values).alias(name)
    return columns.field_column(layout, name, values)


# ── which symbol ────────────────────────────────────────────────────────────────────────────────


class SymbolTable:
    """The symbol of each instrument_id at every place of a session.

    A mapping is in force from its position in the stream on.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        """All symbols, each once; codes are places in this list."""
        self.has_new = False
        """Whether the batch has mappings, so that places in it matter."""
        self._codes: dict[str, int] = {}
        # instrument_id and place in the batch in one number, in ascending order; and codes.
        self._keys: Array = np.empty(0, np.uint64)
        self._values: Array = np.empty(0, np.int32)

    def add_mappings(self, frame: Frame, passed: int) -> None:
        """Add the mappings of a frame that begins `passed` bytes into the batch."""
        mappings = frame.array(SYMBOL_MAPPING)
        texts = [text.decode("utf-8", "replace") for text in mappings["stype_out_symbol"].tolist()]
        for text in texts:
            if text not in self._codes:
                self._codes[text] = len(self.names)
                self.names.append(text)
        places = (passed + frame.starts(SYMBOL_MAPPING)).astype(np.uint64)
        keys = mappings["instrument_id"].astype(np.uint64) << 32 | places
        values = np.array([self._codes[text] for text in texts], np.int32)
        keys, values = np.concatenate([self._keys, keys]), np.concatenate([self._values, values])
        order = np.argsort(keys, kind="stable")
        self._keys, self._values, self.has_new = keys[order], values[order], True

    def find(self, instrument_ids: Array, places: Array | None = None) -> npt.NDArray[np.int32]:
        """The codes of records by their places in the batch, or at its end."""
        if not len(self._keys):
            return np.full(len(instrument_ids), UNKNOWN, np.int32)
        ids = instrument_ids.astype(np.uint64) << 32
        wanted = ids | (np.uint64(0xFFFF_FFFF) if places is None else places.astype(np.uint64))
        at = np.searchsorted(self._keys, wanted, side="right") - 1
        return np.where((at >= 0) & (self._keys[at] >= ids), self._values[at], UNKNOWN).astype(np.int32)

    def end_batch(self) -> None:
        """Keep the mappings in force now, from the beginning of the next batch on."""
        if self.has_new:
            ids = self._keys >> 32
            last = np.append(ids[1:] != ids[:-1], True)
            self._keys, self._values, self.has_new = ids[last] << 32, self._values[last], False


class Instruments:
    """The facts of a session's instruments; each is looked up once per trade date."""

    def __init__(self, symbols: list[str]) -> None:
        self._symbols = symbols
        self._rows: dict[tuple[int, int], int] = {}
        self._known = pl.DataFrame(schema=_FACTS)

    def on(self, days: Array, codes: npt.NDArray[np.int32]) -> pl.DataFrame:
        """One row for each pair of a trade date and a symbol's code."""
        pairs = list(zip(days.astype(np.int64).tolist(), codes.tolist(), strict=True))
        if fresh := [pair for pair in dict.fromkeys(pairs) if pair not in self._rows]:
            self._rows |= {pair: len(self._rows) + i for i, pair in enumerate(fresh)}
            facts = [_facts(self._symbols[code] if code >= 0 else None, day) for day, code in fresh]
            self._known.extend(pl.DataFrame(facts, schema=_FACTS, orient="row"))
        found = self._known.select(pl.all().gather([self._rows[pair] for pair in pairs]))
        texts = [found[name] for name in _TEXTS]
        return found.with_columns(t.cast(pl.Enum(t.drop_nulls().unique(maintain_order=True))) for t in texts)


_TEXTS = (
    "raw_symbol", "instrument_kind", "underlying_class", "underlying", "root", "series", "contract_key",
    "option_type",
)  # fmt: skip
_FACTS: dict[str, Any] = {"trade_date": pl.Date, **dict.fromkeys(_TEXTS, pl.String), "strike": pl.Float64}


@lru_cache(maxsize=1 << 17)
def _facts(symbol: str | None, day: int) -> tuple[Any, ...]:
    """The facts of an instrument on a trade date (days since 1970), in the order of `_FACTS`."""
    on = date.fromordinal(EPOCH + day)
    if symbol is None:
        return (on, *[None] * 9)
    if symbol.startswith("UD:") or "-" in symbol:
        return (on, symbol, "spread", *[None] * 7)
    option = parse_globex(symbol, on=on)
    if not isinstance(option, Unparsed):
        series = option.series
        underlying = (series.root_info.product.underlying_class, underlying_future(series))
        own = (series.root, series.key, option.key, option.option_type, option.strike)
        return (on, symbol, "option", *underlying, *own)
    future = _FUTURE.fullmatch(symbol)
    if future and future[1] in PRODUCTS:
        return (on, symbol, "future", PRODUCTS[future[1]].underlying_class, None, future[1], *[None] * 4)
    return (on, symbol, "other", *[None] * 7)


# ── which of several ────────────────────────────────────────────────────────────────────────────


class Ordinals:
    """Counts records of one key that follow one another in the stream of their instrument.

    One aggressor that meets several resting orders makes trades with the same `ts_event` and `sequence`,
    often equal in every field. A replay begins at a `ts_event`, so it counts as the first stream did, and a
    record sent twice has the same key. Each instrument's last key and count continue in the next batch.
    """

    def __init__(self) -> None:
        self._last: list[Array] = [np.empty(0, kind) for kind in _KEY.values()]
        self._seen = np.empty(0, np.int64)

    def count(self, records: Array) -> npt.NDArray[np.uint32]:
        """The ordinal of each record; records are ordered by instrument, then as in the stream."""
        if not len(records):
            return np.empty(0, np.uint32)
        keys = [np.ascontiguousarray(records[name]) for name in _KEY]
        begins = np.flatnonzero(_changes(*keys))
        firsts = np.flatnonzero(_changes(keys[0]))
        before = begins.copy()
        before[np.searchsorted(begins, firsts)] -= self._continued([key[firsts] for key in keys])
        ordinals = np.arange(len(records)) - np.repeat(before, np.diff(np.append(begins, len(records))))
        ends = np.append(firsts[1:], len(records)) - 1
        self._remember([key[ends] for key in keys], ordinals[ends] + 1)
        return ordinals.astype(np.uint32)

    def _continued(self, firsts: list[Array]) -> npt.NDArray[np.int64]:
        """How many records of earlier batches each instrument's first record continues."""
        if not len(self._seen):
            return np.zeros(len(firsts[0]), np.int64)
        at = np.minimum(np.searchsorted(self._last[0], firsts[0]), len(self._seen) - 1)
        same = np.logical_and.reduce([last[at] == key for last, key in zip(self._last, firsts, strict=True)])
        return np.where(same, self._seen[at], 0)

    def _remember(self, last: list[Array], seen: npt.NDArray[np.int64]) -> None:
        silent = ~np.isin(self._last[0], last[0])
        kept = [np.concatenate([key[silent], new]) for key, new in zip(self._last, last, strict=True)]
        order = np.argsort(kept[0])
        self._last = [key[order] for key in kept]
        self._seen = np.concatenate([self._seen[silent], seen])[order]


_KEY = {"instrument_id": "u4", "publisher_id": "u2", "ts_event": "u8", "sequence": "u4"}
