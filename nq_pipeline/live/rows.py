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

from nq_pipeline.lake.schemas import INSTANT, MBO, MBP_1, TRADES, Table
from nq_pipeline.live.framer import CONTROL, SYMBOL_MAPPING, Array, Frame
from nq_pipeline.market import sessions
from nq_pipeline.market.contracts import MONTH_CODES
from nq_pipeline.market.products import PRODUCTS
from nq_pipeline.market.symbology import Unparsed, parse_globex

SCHEMAS: dict[int, tuple[str, Table]] = {0: ("trades", TRADES), 1: ("mbp-1", MBP_1), 160: ("mbo", MBO)}
"""rtype to its schema and the table of its records; others stay in the log."""
UNDEF_PRICE = np.iinfo(np.int64).max
SNAPSHOT = 32
"""Flag of records that repeat the book as it is and tell no event."""
EPOCH = date(1970, 1, 1).toordinal()
UNKNOWN = -1
"""Code of an instrument that has no symbol yet."""

_FUTURE = re.compile(rf"([A-Z0-9]{{1,3}})[{MONTH_CODES}][0-9]{{1,2}}")
_LETTERS = pl.Series([chr(code) for code in range(256)])


@dataclass
class Counts:
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

    def add(self, other: Counts) -> None:
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
    """The rows of one session, of which frames are taken in order and rows given out in batches."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.gathered = 0
        """Bytes of records taken since the last batch."""
        self._symbols = Symbols()
        self._ordinals: dict[tuple[str, int], Ordinals] = {}
        self._taken: dict[int, list[tuple[Array, npt.NDArray[np.int32]]]] = {}
        self._others: Counter[str] = Counter()

    def take(self, frame: Frame) -> None:
        if SYMBOL_MAPPING in frame.tallies:
            self._symbols.hear(frame)
        for rtype, tally in frame.tallies.items():
            if rtype in SCHEMAS:
                records = frame.array(rtype)
                codes = self._symbols.find(records["instrument_id"], frame, rtype)
                self._taken.setdefault(rtype, []).append((records, codes))
                self.gathered += records.nbytes
            elif rtype not in CONTROL:
                self._others[f"rtype {rtype}"] += tally.count
        self._symbols.settle()

    def rows(self, origin: Origin) -> tuple[list[tuple[Table, pl.DataFrame]], Counts]:
        """The rows of all frames taken since the last call, by table; trades last."""
        counts = Counts(records=self._others.total(), left=self._others)
        tables: list[tuple[Table, pl.DataFrame]] = []
        trades: list[pl.DataFrame] = []
        for rtype, records, codes, days in self._drained(counts):
            schema, table = SCHEMAS[rtype]
            shared = self._shared(records, codes, days, origin, counts).with_columns(
                source_schema=pl.lit(schema)
            )
            if table is not TRADES:
                tables.append((table, self._of(table, rtype, records, shared)))
                traded = records["action"] == b"T"
                records, shared = records[traded], shared.filter(traded)
            if len(records):
                trades.append(self._of(TRADES, rtype, records, shared))
        if trades:
            tables.append((TRADES, pl.concat(trades, how="diagonal")))
        return tables, counts

    def skip(self) -> None:
        """Count the frames taken since the last call as given out."""
        for rtype, records, _, _ in self._drained(Counts()):
            table = SCHEMAS[rtype][1]
            if table is not TRADES:
                self._ordinal(table, rtype, records)
                records = records[records["action"] == b"T"]
            self._ordinal(TRADES, rtype, records)

    def _drained(self, counts: Counts) -> Iterator[tuple[int, Array, Array, Array]]:
        """rtype, records, symbols and trade dates of what was taken, as far as it can have rows."""
        taken, self._taken, self._others, self.gathered = self._taken, {}, Counter(), 0
        for rtype, parts in sorted(taken.items(), reverse=True):
            records, codes = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
            counts.records += len(records)
            days = sessions.trade_dates(records["ts_event"])
            nowhere = np.isnat(days)
            repeats = (records["flags"] & SNAPSHOT).astype(np.bool_) & ~nowhere & (SCHEMAS[rtype][1] is MBO)
            counts.left["no ts_event within the calendar"] += int(nowhere.sum())
            counts.left["snapshot of the book"] += int(repeats.sum())
            if (gone := nowhere | repeats).any():
                records, codes, days = records[~gone], codes[~gone], days[~gone]
            if len(records):
                yield rtype, records, codes, days

    def _ordinal(self, table: Table, rtype: int, records: Array) -> npt.NDArray[np.uint32]:
        return self._ordinals.setdefault((table.name, rtype), Ordinals()).count(records)

    def _of(self, table: Table, rtype: int, records: Array, shared: pl.DataFrame) -> pl.DataFrame:
        """The shared columns and those that depend on the table."""
        own = [
            n for n in table.schema.names() if n in (records.dtype.names or ()) and n not in shared.columns
        ]
        return shared.with_columns(
            pl.Series("ordinal", self._ordinal(table, rtype, records)),
            *(_column(name, records[name]) for name in own),
        )

    def _shared(
        self, records: Array, codes: npt.NDArray[np.int32], days: Array, origin: Origin, counts: Counts
    ) -> pl.DataFrame:
        """The columns that all tables have."""
        ts_event, ts_recv = records["ts_event"].astype(np.int64), records["ts_recv"].astype(np.int64)
        received = ts_recv >= 0
        latencies = [
            _known("receive_latency_ns", ts_recv - ts_event, received),
            _known("publish_latency_ns", origin.now_ns - ts_recv, received),
        ]
        described = self._described(codes, days)
        kinds = described["instrument_kind"]
        counts.unmapped += described["raw_symbol"].null_count()
        counts.unreadable += int((kinds == "other").sum())
        names = [n for n in TRADES.schema.names() if n in (records.dtype.names or ()) and n != "depth"]
        return pl.DataFrame(
            [*(_column(name, records[name]) for name in names), *latencies, *described]
        ).with_columns(
            pl.lit(origin.environment).alias("environment"),
            pl.lit(self.number, pl.Int64).alias("log_session"),
            pl.lit(origin.run_id).alias("run_id"),
        )

    def _described(self, codes: npt.NDArray[np.int32], days: Array) -> pl.DataFrame:
        """Trade date, symbol and contract of each record."""
        # Few pairs of trade date and instrument for many rows: each pair is looked at once.
        pairs = days.astype(np.int64) << 32 | (codes + 1).astype(np.int64)
        coded = pl.Series(pairs).to_arrow().dictionary_encode()
        distinct = [(pair >> 32, (pair & 0xFFFF_FFFF) - 1) for pair in coded.dictionary.to_pylist()]
        facts = [_facts(self._symbols.names[code] if code >= 0 else None, day) for day, code in distinct]
        table = pl.DataFrame(facts, schema=_FACTS, orient="row")
        return table.select(pl.all().gather(pl.Series(coded.indices)))


def _column(name: str, values: Array) -> pl.Series:
    """A field of DBN as a column of the lake."""
    if name.startswith("ts_") and values.dtype.kind == "u":
        # Undefined is the highest number; nanoseconds that int64 cannot hold are no instant either.
        instants = values.astype(np.int64)
        return _known(name, instants, instants >= 0).cast(INSTANT)
    if name == "price" or "_px_" in name:
        # Divided, not multiplied: a quotient is correctly rounded.
        return _known(name, values / 1e9, values != UNDEF_PRICE)
    if values.dtype.kind == "S":
        return _LETTERS.gather(pl.Series(np.ascontiguousarray(values).view(np.uint8))).alias(name)
    return pl.Series(name, np.ascontiguousarray(values))


def _known(name: str, values: Array, known: npt.NDArray[np.bool_]) -> pl.Series:
    """A column that is null where nothing is known."""
    column = pl.Series(name, values)
    return column if known.all() else column.set(pl.Series(~known), None)


# ── which symbol ────────────────────────────────────────────────────────────────────────────────


class Symbols:
    """Which symbol an instrument_id stands for, at every place of a session.

    A mapping holds from where it stands in the stream. `hear` takes those of a frame, `find` looks
    up that frame's records, `settle` keeps what holds at its end.

    Attributes
    ----------
    names
        All symbols, each once; codes are places in this list.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self._codes: dict[str, int] = {}
        # instrument_id and place in the frame in one number, in ascending order; and codes.
        self._keys: Array = np.empty(0, np.uint64)
        self._values: Array = np.empty(0, np.int32)
        self._heard = False

    def hear(self, frame: Frame) -> None:
        said = frame.array(SYMBOL_MAPPING)
        texts = [text.decode("utf-8", "replace") for text in said["stype_out_symbol"].tolist()]
        for text in texts:
            if text not in self._codes:
                self._codes[text] = len(self.names)
                self.names.append(text)
        keys = said["instrument_id"].astype(np.uint64) << 32 | frame.starts(SYMBOL_MAPPING).astype(np.uint64)
        values = np.array([self._codes[text] for text in texts], np.int32)
        keys, values = np.concatenate([self._keys, keys]), np.concatenate([self._values, values])
        order = np.argsort(keys, kind="stable")
        self._keys, self._values, self._heard = keys[order], values[order], True

    def find(self, instrument_ids: Array, frame: Frame, rtype: int) -> npt.NDArray[np.int32]:
        """The code of each of a frame's records of an rtype."""
        if not len(self._keys):
            return np.full(len(instrument_ids), UNKNOWN, np.int32)
        ids = instrument_ids.astype(np.uint64) << 32
        places = ids | frame.starts(rtype).astype(np.uint64) if self._heard else ids
        at = np.searchsorted(self._keys, places, side="right") - 1
        return np.where((at >= 0) & (self._keys[at] >= ids), self._values[at], UNKNOWN).astype(np.int32)

    def settle(self) -> None:
        if not self._heard:
            return
        ids = self._keys >> 32
        last = np.append(ids[1:] != ids[:-1], True)
        self._keys, self._values, self._heard = ids[last] << 32, self._values[last], False


_FACTS = {
    "trade_date": pl.Date,
    "raw_symbol": pl.String,
    "instrument_kind": pl.String,
    "underlying_class": pl.String,
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
        return (on, *[None] * 8)
    if symbol.startswith("UD:") or "-" in symbol:
        return (on, symbol, "spread", *[None] * 6)
    option = parse_globex(symbol, on=on)
    if not isinstance(option, Unparsed):
        series = option.series
        underlying = series.root_info.product.underlying_class
        own = (series.root, series.key, option.key, option.option_type, option.strike)
        return (on, symbol, "option", underlying, *own)
    future = _FUTURE.fullmatch(symbol)
    if future and future[1] in PRODUCTS:
        return (on, symbol, "future", PRODUCTS[future[1]].underlying_class, future[1], *[None] * 4)
    return (on, symbol, "other", *[None] * 6)


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
        """The ordinal of each record, in the order given."""
        if not len(records):
            return np.empty(0, np.uint32)
        remembered = len(self._seen)
        keys = [np.concatenate([last, records[name]]) for name, last in zip(_KEY, self._last, strict=True)]
        order = np.argsort(keys[0], kind="stable")
        keys = [key[order] for key in keys]
        changes = [key[1:] != key[:-1] for key in keys]
        begins = np.flatnonzero(np.append(True, np.logical_or.reduce(changes)))
        # What is remembered stands first in its run, for as many records as it saw.
        weights = np.concatenate([self._seen, np.ones(len(records), np.int64)])[order]
        totals = np.cumsum(weights)
        before = totals[begins] - weights[begins]
        seen = totals - np.repeat(before, np.diff(np.append(begins, len(totals))))
        ordinals = np.empty(len(seen), np.uint32)
        ordinals[order] = seen - 1
        ends = np.append(changes[0], True)
        self._last, self._seen = [key[ends] for key in keys], seen[ends]
        return ordinals[remembered:]


_KEY = {"instrument_id": "u4", "publisher_id": "u2", "ts_event": "u8", "sequence": "u4"}
