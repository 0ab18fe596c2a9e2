"""DBN, Databento's binary encoding, read as a stream of numpy arrays: no Python object per record.

A file is a head (what was asked, and which symbol an instrument_id stood for on which days) and
little-endian records back to back, all of it in zstd frames or plain. A record's first byte is its
length in words of four bytes, its second the rtype. Historical files hold one schema; files from
the live gateway hold several and say their symbols in records of their own.

The head is read by databento_dbn, which also names the fields of every record of its version. A
file keeps the records of its own version, as `databento.DBNStore` does with historical files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from nq_pipeline.errors import LakeError

ERROR, SYMBOL_MAPPING, SYSTEM = 21, 22, 23
CONTROL = {ERROR: "error", SYMBOL_MAPPING: "symbol_mapping", SYSTEM: "system"}
"""rtypes of what the gateway itself says."""
STRUCTS = {
    0: "TradeMsg",
    1: "MBP1Msg",
    10: "MBP10Msg",
    17: "OHLCVMsg",
    18: "StatusMsg",
    19: "InstrumentDefMsg",
    20: "ImbalanceMsg",
    ERROR: "ErrorMsg",
    SYMBOL_MAPPING: "SymbolMappingMsg",
    SYSTEM: "SystemMsg",
    24: "StatMsg",
    32: "OHLCVMsg",
    33: "OHLCVMsg",
    34: "OHLCVMsg",
    35: "OHLCVMsg",
    36: "OHLCVMsg",
    160: "MBOMsg",
    177: "CMBP1Msg",
    192: "CBBO1SMsg",
    193: "CBBO1MMsg",
    194: "TCBBOMsg",
    195: "BBO1SMsg",
    196: "BBO1MMsg",
}
"""rtype to the name of its record in databento_dbn."""

SCHEMAS = {
    0: "trades",
    1: "mbp-1",
    10: "mbp-10",
    18: "status",
    19: "definition",
    20: "imbalance",
    24: "statistics",
    32: "ohlcv-1s",
    33: "ohlcv-1m",
    34: "ohlcv-1h",
    35: "ohlcv-1d",
    36: "ohlcv-eod",
    160: "mbo",
    177: "cmbp-1",
    192: "cbbo-1s",
    193: "cbbo-1m",
    194: "tcbbo",
    195: "bbo-1s",
    196: "bbo-1m",
}
"""rtype to its schema, of every dataset."""
OLD_BARS = 17
"""The rtype of a bar of any length in the oldest files."""
RTYPES = {schema: rtype for rtype, schema in SCHEMAS.items()} | {"tbbo": 1}
VERSIONS = (1, 2, 3)

UNDEF_PRICE = np.iinfo(np.int64).max
UNDEF_TIMESTAMP = np.iinfo(np.uint64).max
DAY_NS = 86_400 * 10**9
LAST_DAY = np.iinfo(np.int64).max // DAY_NS
"""The last day, counted from 1970, that nanoseconds in an int64 reach."""

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
BITE = 4096
"""Compressed bytes decompressed at a time, so that a bomb is met before it fills the memory."""
CHUNK = 1 << 20
"""Bytes of records looked at together: enough to be fast, few enough to stay in the cache."""
MAX_HEAD = 256 << 20
HEADER_WORDS = 4
STRIDE, LOOSE = 1024, 32
"""Records looked at in one stride at first; records followed one by one before it is tried again."""

Array = npt.NDArray[Any]

WELL_FORMED = np.arange(1 << 16) % 256 >= HEADER_WORDS
"""By the first two bytes: whether a record, of whatever kind, can begin so."""


class DamagedDbn(LakeError):
    """The bytes are no DBN."""


class UnsupportedDbn(LakeError):
    """The file is sound, but of a DBN version or schema that this program does not read."""


class TruncatedDbn(LakeError):
    """The file ends too early or in rubbish; `records` whole ones were read before."""

    def __init__(self, message: str, *, records: int) -> None:
        super().__init__(message)
        self.records = records


class EndsEarly(Exception):
    """The bytes of a file cannot be decompressed to their end; said as what the file does."""


def plain(file: BinaryIO) -> Iterator[bytes]:
    """What a file holds from here on, decompressed where it is zstd.

    Raises
    ------
    EndsEarly
        After everything that can be decompressed.
    """
    import zstandard

    start = file.read(len(ZSTD_MAGIC))
    if start != ZSTD_MAGIC:
        yield start
        while piece := file.read(CHUNK):
            yield piece
        return
    frame = zstandard.ZstdDecompressor().decompressobj()
    bite = start + file.read(BITE)
    while bite:
        if frame.eof:
            frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            piece = frame.decompress(bite)
        except zstandard.ZstdError:
            raise EndsEarly("holds damaged zstd") from None
        yield piece
        bite = (frame.unused_data if frame.eof else b"") or file.read(BITE)
    if not frame.eof:
        raise EndsEarly("ends within a zstd frame")


@dataclass(frozen=True, slots=True)
class Layout:
    """The records of one schema in one version of DBN.

    Attributes
    ----------
    dtype
        The record as it lies in the file.
    columns
        What of it means something, in the order of the official client; `ts_out` follows where
        the gateway was asked for it.
    index
        The column its records are in order of: `ts_recv`, or `ts_event` where there is none.
    prices, instants
        Columns in 1e-9 of a point, and in nanoseconds UTC.
    """

    schema: str
    rtype: int
    dtype: np.dtype[Any]
    columns: tuple[str, ...]
    index: str
    prices: frozenset[str]
    instants: frozenset[str]

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """By the first two bytes of a record: whether it is one of these."""
        known = np.zeros(1 << 16, np.bool_)
        words = self.dtype.itemsize // 4
        known[words | self.rtype << 8] = True
        if self.schema.startswith("ohlcv"):
            known[words | OLD_BARS << 8] = True
        return known


@lru_cache(maxsize=128)
def layout(schema: str, version: int, ts_out: bool = False) -> Layout:
    """The records of a schema; KeyError when the schema or the version is unknown."""
    import databento_dbn

    if version not in VERSIONS:
        raise KeyError(version)
    rtype = RTYPES[schema]
    struct = getattr(getattr(databento_dbn, f"v{version}"), STRUCTS[rtype])
    sent = ["ts_out"] if ts_out else []
    return Layout(
        schema,
        rtype,
        np.dtype([*struct._dtypes, *((name, "<u8") for name in sent)]),
        (*struct._ordered_fields, *sent),
        struct._ordered_fields[0],
        frozenset(struct._price_fields),
        frozenset([*struct._timestamp_fields, *sent]),
    )


class SymbolMap:
    """Which symbol an instrument_id stood for, by interval of days (UTC, end excluded).

    An id is used again for another instrument later on, so that it means nothing without a day.

    Attributes
    ----------
    names
        All symbols, each once; `find` gives positions in this list.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self._codes: dict[str, int] = {}
        self._intervals: dict[tuple[int, int], tuple[int, int]] = {}
        self._table: tuple[Array, Array, Array] | None = None

    def add(self, instrument_id: int, first: int, until: int, symbol: str) -> None:
        """Say what an id stands for; days from 1970. The later word on the same first day holds."""
        code = self._codes.setdefault(symbol, len(self.names))
        if code == len(self.names):
            self.names.append(symbol)
        self._intervals[instrument_id, max(first, 0)] = (min(until, LAST_DAY), code)
        self._table = None

    def find(self, instrument_ids: Array, days: Array) -> npt.NDArray[np.int32]:
        """The symbol of each pair of id and day, as its position in `names`; -1 where none is known."""
        keys, untils, codes = self._sorted()
        if not len(keys):
            return np.full(len(days), -1, np.int32)
        ids = instrument_ids.astype(np.uint64) << 32
        at = np.searchsorted(keys, ids | days.astype(np.uint64), side="right") - 1
        found = (at >= 0) & (keys[at] >= ids) & (days < untils[at])
        return np.where(found, codes[at], -1).astype(np.int32)

    def _sorted(self) -> tuple[Array, Array, Array]:
        if self._table is None:
            rows = sorted(
                (instrument_id << 32 | first, until, code)
                for (instrument_id, first), (until, code) in self._intervals.items()
            )
            keys, untils, codes = zip(*rows, strict=True) if rows else ((), (), ())
            self._table = (np.array(keys, np.uint64), np.array(untils, np.int64), np.array(codes, np.int32))
        return self._table


@contextmanager
def opened(source: Path | BinaryIO) -> Iterator[Stream]:
    """Open a DBN file, or read what a binary stream holds from here on; it need not seek.

    Raises
    ------
    Damaged
        It is no DBN.
    Unsupported
        It is of a version or schema this program does not read.
    CutOff
        It ends before the first record.
    """
    if isinstance(source, Path):
        with source.open("rb") as file:
            yield Stream(file, source.name)
    else:
        yield Stream(source, Path(str(getattr(source, "name", "the stream"))).name)


class Stream:
    """The head of a DBN file, and its records as they come.

    Attributes
    ----------
    schema
        The schema of all records; None where a live capture may hold several.
    head
        The head as databento_dbn decodes it.
    version, ts_out, dataset
        As the head says.
    symbols
        What the head says about symbols, and the mapping records read so far.
    records
        Whole records read so far, of every kind.
    skipped
        Kind to count of records that are no market data, or none this program knows.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.name = name
        self.records = 0
        self.skipped: Counter[str] = Counter()
        self.symbols = SymbolMap()
        self._broken = ""
        self._chunks = self._gathered(self._plain(file))
        head, self._rest = self._head()
        self.head = head
        self.version: int = head.version
        self.ts_out = bool(head.ts_out)
        self.dataset = str(head.dataset)
        self.schema = None if head.schema is None else str(head.schema)
        if self.schema is not None and self.schema not in RTYPES:
            raise UnsupportedDbn(f"{name}: schema {self.schema} is not supported")
        self._add_mappings(head)

    def layout(self, schema: str) -> Layout:
        """The records of a schema as they lie in this file."""
        return layout(schema, self.version, self.ts_out)

    def batches(self) -> Iterator[tuple[Layout, Array]]:
        """The records of market data, some of one schema at a time, in the order of the file.

        The symbols of a batch are known when it is yielded. The arrays are read-only views of
        memory that lives as long as they do.

        Raises
        ------
        CutOff
            The file ends within a record or a zstd frame, or goes on with what is no record; what
            was whole has been yielded.
        Damaged
            A record is not as long as its version has it.
        """
        split = self._mixed if self.schema is None else self._alike
        rest = b""
        for chunk in chain([self._rest], self._chunks):
            rest += chunk
            end, batches = split(rest)
            yield from batches
            rest = rest[end:]
            if self._broken:
                break
        if rest or self._broken:
            why = self._broken or "ends within a record"
            raise TruncatedDbn(
                f"{self.name} {why}, after {self.records:,} whole records", records=self.records
            )

    # ── bytes ───────────────────────────────────────────────────────────────────────────────────

    def _plain(self, file: BinaryIO) -> Iterator[bytes]:
        """The decompressed bytes; `_broken` says so where they end early."""
        try:
            yield from plain(file)
        except EndsEarly as error:
            self._broken = str(error)

    @staticmethod
    def _gathered(pieces: Iterator[bytes]) -> Iterator[bytes]:
        parts, size = [], 0
        for piece in pieces:
            parts.append(piece)
            size += len(piece)
            if size >= CHUNK:
                yield b"".join(parts)
                parts, size = [], 0
        yield b"".join(parts)

    # ── the head ────────────────────────────────────────────────────────────────────────────────

    def _head(self) -> tuple[Any, bytes]:
        """The metadata, and the bytes already read after it."""
        import databento_dbn

        raw = b"".join(self._enough(8, b""))
        # Three bytes may also be all that is left of a zstd frame's magic.
        if len(raw) >= 3 and raw[:3] != b"DBN" and raw != ZSTD_MAGIC[:3]:
            raise DamagedDbn(f"{self.name} is no DBN file")
        if len(raw) >= 4 and raw[3] not in VERSIONS:
            raise UnsupportedDbn(f"{self.name}: DBN version {raw[3]} is not supported")
        length = 8 + int.from_bytes(raw[4:8], "little")
        if length > MAX_HEAD:
            raise DamagedDbn(f"{self.name} claims a head of {length:,} bytes, which was refused")
        raw = b"".join(self._enough(length, raw))
        if len(raw) < max(length, 9):
            raise TruncatedDbn(f"{self.name} ends within its head, before the first record", records=0)
        as_is: Any = databento_dbn.VersionUpgradePolicy.AS_IS
        try:
            head = databento_dbn.Metadata.decode(raw[:length], upgrade_policy=as_is)
        except Exception as error:  # DBNError, ValueError: whatever the compiled part makes of damage
            raise DamagedDbn(f"the head of {self.name} cannot be read ({type(error).__name__})") from None
        return head, raw[length:]

    def _enough(self, size: int, had: bytes) -> Iterator[bytes]:
        yield had
        have = len(had)
        while have < size and (chunk := next(self._chunks, b"")):
            yield chunk
            have += len(chunk)

    def _add_mappings(self, head: Any) -> None:
        if str(head.stype_in) == "instrument_id":
            by_id = True
        elif str(head.stype_out) == "instrument_id":
            by_id = False
        else:
            return
        try:
            # The decoder's dictionary has no order of its own; sorted, the same file always says the same.
            for asked, spans in sorted(head.mappings.items()):
                for span in spans:
                    if span["symbol"]:
                        number, symbol = (asked, span["symbol"]) if by_id else (span["symbol"], asked)
                        instrument_id = int(np.uint32(int(number)))
                        first, until = _day(span["start_date"]), _day(span["end_date"])
                        self.symbols.add(instrument_id, first, until, symbol)
        except (ValueError, OverflowError):
            raise DamagedDbn(f"the head of {self.name} maps a symbol to what is no instrument_id") from None

    # ── records ─────────────────────────────────────────────────────────────────────────────────

    def _alike(self, data: bytes) -> tuple[int, list[tuple[Layout, Array]]]:
        """Records of one schema: where the last whole one ends, and all of them."""
        assert self.schema is not None
        layout = self.layout(self.schema)
        starts, _, end, bad = walk(data, layout.known)
        if bad:
            self._broken = f"holds what is no record of {self.schema}"
        self.records += len(starts)
        return end, [(layout, np.frombuffer(data, layout.dtype, len(starts)))] if len(starts) else []

    def _mixed(self, data: bytes) -> tuple[int, list[tuple[Layout, Array]]]:
        """Records of any kind: where the last whole one ends, and all that are market data."""
        starts, kinds, end, bad = walk(data, WELL_FORMED)
        if bad:
            self._broken = "holds what is no record"
        self.records += len(starts)
        rtypes = kinds >> 8
        batches = []
        for rtype in np.flatnonzero(np.bincount(rtypes)).tolist():
            at = starts[rtypes == rtype]
            if rtype in SCHEMAS:
                known = self.layout(SCHEMAS[rtype])
                batches.append((known, self._picked(data, at, known.dtype)))
            else:
                self.skipped[CONTROL.get(rtype, f"rtype {rtype}")] += len(at)
                if rtype == SYMBOL_MAPPING:
                    self._map(data, at)
        return end, batches

    def _picked(self, data: bytes, at: Array, dtype: np.dtype[Any]) -> Array:
        """The records that start at `at` (multiples of four), back to back."""
        size = dtype.itemsize
        if (np.frombuffer(data, np.uint8)[at] != size // 4).any():
            raise DamagedDbn(f"{self.name} holds a record that is not as long as DBN {self.version} has it")
        # Every place a record could start at, seen as a record; only those at `at` are copied.
        places = np.ndarray((len(data) - size) // 4 + 1, np.dtype((np.void, size)), data, strides=(4,))
        picked: Array = places[at >> 2].view(dtype)
        return picked

    def _map(self, data: bytes, at: Array) -> None:
        import databento_dbn

        struct = getattr(databento_dbn, f"v{self.version}").SymbolMappingMsg
        plain, sent = np.dtype(struct._dtypes), np.dtype([*struct._dtypes, ("ts_out", "<u8")])
        long = self.ts_out and 4 * data[int(at[0])] == sent.itemsize
        records = self._picked(data, at, sent if long else plain)
        # As the official client has it: what a number is asked as, or what a name resolves to.
        numeric = np.char.isdigit(records["stype_out_symbol"])
        texts = np.where(numeric, records["stype_in_symbol"], records["stype_out_symbol"])
        firsts, untils = records["start_ts"] // DAY_NS, records["end_ts"] // DAY_NS
        firsts[records["start_ts"] == UNDEF_TIMESTAMP] = 0
        columns = (records["instrument_id"], firsts, untils, texts)
        for number, first, until, text in zip(*(column.tolist() for column in columns), strict=True):
            self.symbols.add(number, first, until, text.decode("utf-8", "replace"))


def walk(data: bytes, known: npt.NDArray[np.bool_]) -> tuple[Array, Array, int, bool]:
    """Follow the records of `data`, which begins with one.

    If every two bytes at one record's stride equal its first two, each pair begins the next
    record, so a run of one kind is found by one strided comparison. Only where kinds alternate
    are records followed one by one, for twice as long each time.

    Parameters
    ----------
    known
        By a record's first two bytes (length, rtype as a little-endian integer): whether they may
        begin one.

    Returns
    -------
    starts, kinds
        Where the whole records begin, and their first two bytes.
    end
        Where the last one ends.
    bad
        Whether what follows there is no record.
    """
    size, at, bad = len(data), 0, False
    pairs = np.frombuffer(data, "<u2", size // 2)
    starts: list[Array] = [np.empty(0, np.int64)]
    kinds: list[Array] = [pairs[:0]]
    stride, loose = STRIDE, LOOSE
    while size - at >= 2:
        kind = data[at] | data[at + 1] << 8
        step = 4 * data[at]
        if not known[kind]:
            bad = True
            break
        if at + step > size:
            break
        last = min(at + (stride - 1) * step, size - step)
        same = pairs[at // 2 : last // 2 + 1 : step // 2] == kind
        run = len(same) if same.all() else int(same.argmin())
        starts.append(np.arange(at, at + run * step, step))
        kinds.append(np.full(run, kind, pairs.dtype))
        at += run * step
        if run == len(same):
            stride *= 8
            continue
        loose = 2 * loose if run < LOOSE else LOOSE
        stride = STRIDE
        followed = _follow(data, at, loose)
        if len(followed):
            found = pairs[followed >> 1]
            sound = known[found]
            if not sound.all():
                bad = True
                followed, found = followed[: sound.argmin()], found[: sound.argmin()]
            starts.append(followed)
            kinds.append(found)
            if len(followed):
                at = int(followed[-1]) + 4 * data[followed[-1]]
            if bad:
                break
    if len(starts) == 2:
        return starts[1], kinds[1], at, bad
    return np.concatenate(starts), np.concatenate(kinds), at, bad


def _follow(data: bytes, at: int, most: int) -> Array:
    """Where the next whole records begin, by their length bytes alone."""
    size, found = len(data), []
    for _ in range(most):
        if size - at < 2:
            break
        after = at + (data[at] << 2)
        if after > size:
            break
        found.append(at)
        at = after
    return np.array(found, np.int64)


def _day(day: date) -> int:
    return day.toordinal() - date(1970, 1, 1).toordinal()
