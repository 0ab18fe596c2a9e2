"""From DBN records to rows of the lake: symbols, contracts, prices, and what tells equal trades apart.

A session of the gateway is read in order, and every row follows from what the session said up to
it: cut the stream anywhere, the rows are the same. Records become columns by copying fields; only
instruments are looked at one by one, once per trade date.

**Ordinals.** One aggressor that meets several resting orders makes trades with one `ts_event` and
one `sequence`, often equal in every field. An ordinal counts such records, as long as they follow
one another in the stream of their instrument. A replay begins at a `ts_event`, so it counts as the
stream before it did, and what came twice has the same key. So has what a session sends again after
something later; two equal records in a row are two trades.

**Trades of other schemas.** mbp-1 and mbo hold every trade as a record with action T, and `trades`
is documented as just those. F records are not taken: they tell the resting side of the same trade.
A record T of size 0 traded nothing: it stays in the table of its schema.

**Times.** `ts_event` and `ts_recv` of one record lie close together. Where they do not, the row is
kept and marked (`is_misdated`), and its trade date is that of `ts_recv`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from nq_pipeline.dbn import columns
from nq_pipeline.dbn.framer import Frame, is_near
from nq_pipeline.dbn.layout import CONTROL, SYMBOL_MAPPING, Array
from nq_pipeline.lake.tables import MBO, MBP_1, TRADES, Table
from nq_pipeline.market import sessions
from nq_pipeline.market.contracts import MONTH_CODES
from nq_pipeline.market.listing import underlying_future
from nq_pipeline.market.products import PRODUCTS
from nq_pipeline.market.symbology import Unparsed, parse_globex

SCHEMAS: dict[int, tuple[str, Table]] = {0: ("trades", TRADES), 1: ("mbp-1", MBP_1), 160: ("mbo", MBO)}
"""rtype to its schema and the table of its records; others stay in the log."""
SNAPSHOT = 32
"""Flag of records that repeat the book as it is and tell no event. History has them at the start of each
UTC day; one of mbp-1 has the key of the record that it repeats."""
BAD_TS_RECV = 8
"""Flag of records whose `ts_recv` Databento calls doubtful."""
EPOCH = date(1970, 1, 1).toordinal()
UNKNOWN = -1
"""Code of an instrument that has no symbol yet."""

_FUTURE = re.compile(rf"([A-Z0-9]{{1,3}})[{MONTH_CODES}][0-9]{{1,2}}")


@dataclass
class RowCounts:
    """What became of the records that were read.

    Attributes
    ----------
    records
        Market data of every schema.
    unmapped
        Of those published, how many have no symbol, because the session had not said it before.
    unreadable
        Of those published, how many have a symbol that is neither option, future nor spread.
    left
        Why records have no row, and how many: they stay in the log.
    """

    records: int = 0
    unmapped: int = 0
    unreadable: int = 0
    left: Counter[str] = field(default_factory=Counter)

    def add(self, other: RowCounts) -> None:
        self.records += other.records
        self.unmapped += other.unmapped
        self.unreadable += other.unreadable
        self.left += other.left


class Origin(NamedTuple):
    """Where rows come from; the same for all rows of one batch."""

    environment: str
    run_id: str
    now_ns: int


class SessionRows:
    """The rows of one session, of which frames are taken in order and rows given out in batches.

    Within a batch, records are put in the order of their instruments, which otherwise is that of
    the stream. That nearly always is the table's order already, so that the lake need not sort
    wide rows, and what depends on the instrument is looked up once per instrument.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.gathered = 0
        """Bytes of records taken since the last batch."""
        self._passed = 0
        self._symbols = SymbolTable()
        self._instruments = Instruments(self._symbols.names)
        self._ordinals: dict[tuple[str, int], Ordinals] = {}
        self._taken: dict[int, list[tuple[int, Frame]]] = {}
        self._others: Counter[str] = Counter()

    def take(self, frame: Frame) -> None:
        if SYMBOL_MAPPING in frame.tallies:
            self._symbols.hear(frame, self._passed)
        for rtype, tally in frame.tallies.items():
            if rtype in SCHEMAS:
                self._taken.setdefault(rtype, []).append((self._passed, frame))
            elif rtype not in CONTROL:
                self._others[f"rtype {rtype}"] += tally.count
        self._passed += len(frame.records)
        self.gathered = self._passed if self._taken else 0

    def rows(self, origin: Origin) -> tuple[list[tuple[Table, pl.DataFrame]], RowCounts]:
        """The rows of all frames taken since the last call, by table; trades last."""
        counts = RowCounts(records=self._others.total(), left=self._others)
        tables: list[tuple[Table, pl.DataFrame]] = []
        for rtype, records, described in self._drained(counts):
            schema, table = SCHEMAS[rtype]
            shared = self._shared(records, described, schema, origin)
            counts.unmapped += described["raw_symbol"].null_count()
            counts.unreadable += int((described["instrument_kind"] == "other").sum())
            if table is not TRADES:
                tables.append((table, self._of(table, rtype, records, shared)))
                traded = records["action"] == b"T"
                records, shared = records[traded], shared.filter(traded)
            if len(records):
                trades = self._of(TRADES, rtype, records, shared)
                tables.append((TRADES, trades if table is TRADES else trades.filter(pl.col("size") > 0)))
        return sorted(tables, key=lambda each: each[0] is TRADES), counts

    def skip(self) -> None:
        """Count the frames taken since the last call as given out."""
        for rtype, records, _ in self._drained(RowCounts()):
            table = SCHEMAS[rtype][1]
            if table is not TRADES:
                self._ordinal(table, rtype, records)
                records = records[records["action"] == b"T"]
            self._ordinal(TRADES, rtype, records)

    def _drained(self, counts: RowCounts) -> Iterator[tuple[int, Array, pl.DataFrame]]:
        """rtype, records and their instruments, of what was taken, as far as it can have rows."""
        taken, self._taken, self._others = self._taken, {}, Counter()
        self._passed = self.gathered = 0
        for rtype, parts in sorted(taken.items(), reverse=True):
            records = _joined([frame.array(rtype) for _, frame in parts])
            days = sessions.trade_dates(_filed_by(records))
            counts.records += len(records)
            nowhere = np.isnat(days) | ~columns.is_instant(records["ts_event"])
            repeats = np.zeros(len(records), np.bool_)
            if SCHEMAS[rtype][1] is not TRADES:
                repeats = (records["flags"] & SNAPSHOT).astype(np.bool_) & ~nowhere
            counts.left["no ts_event within the calendar"] += int(nowhere.sum())
            counts.left["snapshot of the book"] += int(repeats.sum())
            order = _by_instrument(records["instrument_id"])
            if (gone := nowhere | repeats).any():
                order = order[~gone[order]]
            if not len(order):
                continue
            places = None
            if self._symbols.heard:
                places = np.concatenate([passed + frame.starts(rtype) for passed, frame in parts])[order]
            records, days = _reordered(records, order), days[order]
            yield rtype, records, self._described(records["instrument_id"], days, places)
        self._symbols.settle()

    def _described(self, ids: Array, days: Array, places: Array | None) -> pl.DataFrame:
        """Trade date, symbol and contract of each record."""
        codes = self._symbols.find(ids, places) if places is not None else ids
        begins = np.flatnonzero(_changes(ids, days, codes))
        codes = codes[begins] if places is not None else self._symbols.find(ids[begins])
        described = self._instruments.on(days[begins], codes)
        each = np.repeat(np.arange(len(begins), dtype=np.uint32), np.diff(np.append(begins, len(ids))))
        return described.select(pl.all().gather(pl.Series(each)))

    def _shared(self, records: Array, described: pl.DataFrame, schema: str, origin: Origin) -> pl.DataFrame:
        """The columns that all tables have."""
        ts_event, ts_recv = records["ts_event"].astype(np.int64), records["ts_recv"].astype(np.int64)
        received = columns.is_instant(records["ts_recv"])
        latencies = [
            columns.nulled(ts_recv - ts_event, received).alias("receive_latency_ns"),
            columns.nulled(origin.now_ns - ts_recv, received).alias("publish_latency_ns"),
        ]
        names = [n for n in TRADES.schema.names() if n in (records.dtype.names or ()) and n != "depth"]
        always = {"source_schema": schema, "environment": origin.environment, "run_id": origin.run_id}
        return pl.DataFrame(
            [
                *(_column(name, records[name]) for name in names),
                *latencies,
                pl.Series("is_misdated", is_misdated(records)),
                *described,
            ]
        ).with_columns(
            pl.lit(self.number, pl.Int64).alias("log_session"),
            *(pl.lit(text, pl.Enum([text])).alias(name) for name, text in always.items()),
        )

    def _of(self, table: Table, rtype: int, records: Array, shared: pl.DataFrame) -> pl.DataFrame:
        """The shared columns and those that depend on the table."""
        own = [
            n for n in table.schema.names() if n in (records.dtype.names or ()) and n not in shared.columns
        ]
        return shared.with_columns(
            pl.Series("ordinal", self._ordinal(table, rtype, records)),
            *(_column(name, records[name]) for name in own),
        )

    def _ordinal(self, table: Table, rtype: int, records: Array) -> npt.NDArray[np.uint32]:
        return self._ordinals.setdefault((table.name, rtype), Ordinals()).count(records)


def is_misdated(records: Array) -> npt.NDArray[np.bool_]:
    """Whether `ts_event` lies far from a `ts_recv` that is defined and not called doubtful by Databento."""
    sound = columns.is_instant(records["ts_recv"]) & (records["flags"] & BAD_TS_RECV == 0)
    far: npt.NDArray[np.bool_] = ~is_near(records["ts_event"], records["ts_recv"]) & sound
    return far


def _filed_by(records: Array) -> Array:
    """The instant that gives each record its trade date."""
    misdated = is_misdated(records)
    if not misdated.any():
        return records["ts_event"]
    received = records["ts_recv"]
    return np.where(misdated & ~np.isnat(sessions.trade_dates(received)), received, records["ts_event"])


def _joined(parts: list[Array]) -> Array:
    """Records back to back; copied as bytes, which is several times faster than field by field."""
    dtype = parts[0].dtype
    joined: Array = np.concatenate([part.view(_bytes(dtype)) for part in parts]).view(dtype)
    return joined


def _reordered(records: Array, order: Array) -> Array:
    """Records in another order, copied as bytes."""
    taken: Array = records.view(_bytes(records.dtype)).take(order).view(records.dtype)
    return taken


def _bytes(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype((np.void, dtype.itemsize))


def _by_instrument(ids: Array) -> npt.NDArray[np.intp]:
    """The order by instrument that keeps that of the stream within each.

    Id and place are sorted as one number: ten times faster than a stable argsort.
    """
    packed = ids.astype(np.uint64) << 32 | np.arange(len(ids), dtype=np.uint64)
    packed.sort()
    return (packed & 0xFFFF_FFFF).astype(np.intp)


def _changes(*columns: Array) -> npt.NDArray[np.bool_]:
    """Where a row differs from the one before; the first one does."""
    changed = np.ones(len(columns[0]), np.bool_)
    changed[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return changed


def _column(name: str, values: Array) -> pl.Series:
    """A field of DBN as a column of the lake."""
    if name.startswith("ts_") and values.dtype.kind == "u":
        return columns.instants(values).alias(name)
    if name == "price" or "_px_" in name:
        return columns.prices(values).alias(name)
    if values.dtype.kind == "S":
        return columns.letters(values).alias(name)
    return pl.Series(name, np.ascontiguousarray(values))


# ── which symbol ────────────────────────────────────────────────────────────────────────────────


class SymbolTable:
    """Which symbol an instrument_id stands for, at every place of a session.

    A mapping holds from where it stands in the stream. `hear` takes those of a frame, `find` looks
    up records of the batch, `settle` keeps what holds at its end.

    Attributes
    ----------
    names
        All symbols, each once; codes are places in this list.
    heard
        Whether the batch has mappings, so that places in it matter.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.heard = False
        self._codes: dict[str, int] = {}
        # instrument_id and place in the batch in one number, in ascending order; and codes.
        self._keys: Array = np.empty(0, np.uint64)
        self._values: Array = np.empty(0, np.int32)

    def hear(self, frame: Frame, passed: int) -> None:
        """Take the mappings of a frame before which `passed` bytes of the batch lie."""
        said = frame.array(SYMBOL_MAPPING)
        texts = [text.decode("utf-8", "replace") for text in said["stype_out_symbol"].tolist()]
        for text in texts:
            if text not in self._codes:
                self._codes[text] = len(self.names)
                self.names.append(text)
        places = (passed + frame.starts(SYMBOL_MAPPING)).astype(np.uint64)
        keys = said["instrument_id"].astype(np.uint64) << 32 | places
        values = np.array([self._codes[text] for text in texts], np.int32)
        keys, values = np.concatenate([self._keys, keys]), np.concatenate([self._values, values])
        order = np.argsort(keys, kind="stable")
        self._keys, self._values, self.heard = keys[order], values[order], True

    def find(self, instrument_ids: Array, places: Array | None = None) -> npt.NDArray[np.int32]:
        """The codes of records by their places in the batch, or at its end."""
        if not len(self._keys):
            return np.full(len(instrument_ids), UNKNOWN, np.int32)
        ids = instrument_ids.astype(np.uint64) << 32
        wanted = ids | (np.uint64(0xFFFF_FFFF) if places is None else places.astype(np.uint64))
        at = np.searchsorted(self._keys, wanted, side="right") - 1
        return np.where((at >= 0) & (self._keys[at] >= ids), self._values[at], UNKNOWN).astype(np.int32)

    def settle(self) -> None:
        if not self.heard:
            return
        ids = self._keys >> 32
        last = np.append(ids[1:] != ids[:-1], True)
        self._keys, self._values, self.heard = ids[last] << 32, self._values[last], False


class Instruments:
    """What is known of the instruments of a session; each is looked at once per trade date."""

    def __init__(self, symbols: list[str]) -> None:
        self._symbols = symbols
        self._rows: dict[tuple[int, int], int] = {}
        self._known = pl.DataFrame(schema=_FACTS)

    def on(self, days: Array, codes: npt.NDArray[np.int32]) -> pl.DataFrame:
        """One row for each pair of a trade date and the code of a symbol."""
        pairs = list(zip(days.astype(np.int64).tolist(), codes.tolist(), strict=True))
        if fresh := [pair for pair in dict.fromkeys(pairs) if pair not in self._rows]:
            self._rows |= {pair: len(self._rows) + i for i, pair in enumerate(fresh)}
            facts = [_facts(self._symbols[code] if code >= 0 else None, day) for day, code in fresh]
            self._known.extend(pl.DataFrame(facts, schema=_FACTS, orient="row"))
        found = self._known.select(pl.all().gather([self._rows[pair] for pair in pairs]))
        texts = [column for column in found if column.dtype == pl.String]
        kinds = [pl.Enum(text.drop_nulls().unique(maintain_order=True)) for text in texts]
        return found.with_columns(text.cast(kind) for text, kind in zip(texts, kinds, strict=True))


_FACTS = {
    "trade_date": pl.Date,
    "raw_symbol": pl.String,
    "instrument_kind": pl.String,
    "underlying_class": pl.String,
    "underlying": pl.String,
    "root": pl.String,
    "series": pl.String,
    "contract_key": pl.String,
    "option_type": pl.String,
    "strike": pl.Float64,
}


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

    Remembers the last key of every instrument and how many records had it, so that a run that goes
    on in the next batch is counted on.
    """

    def __init__(self) -> None:
        self._last: list[Array] = [np.empty(0, kind) for kind in _KEY.values()]
        self._seen = np.empty(0, np.int64)

    def count(self, records: Array) -> npt.NDArray[np.uint32]:
        """The ordinal of each of the records, which come by instrument, else in the order of the stream."""
        if not len(records):
            return np.empty(0, np.uint32)
        keys = [np.ascontiguousarray(records[name]) for name in _KEY]
        begins = np.flatnonzero(_changes(*keys))
        firsts = np.flatnonzero(_changes(keys[0]))
        before = begins.copy()
        before[np.searchsorted(begins, firsts)] -= self._seen_of([key[firsts] for key in keys])
        ordinals = np.arange(len(records)) - np.repeat(before, np.diff(np.append(begins, len(records))))
        ends = np.append(firsts[1:], len(records)) - 1
        self._remember([key[ends] for key in keys], ordinals[ends] + 1)
        return ordinals.astype(np.uint32)

    def _seen_of(self, firsts: list[Array]) -> npt.NDArray[np.int64]:
        """How many records of the batches before each instrument's first one continues."""
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
