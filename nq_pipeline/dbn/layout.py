"""The memory layout of DBN, Databento's binary encoding.

A DBN stream is a header (`DBN`, version, length, metadata) and little-endian records back to back. The
first byte of a record is its length in words of four bytes, the second its rtype. databento_dbn decodes
the metadata and names the fields of every record of each version; records keep the layout of the version
they came in. Streams of the live gateway may append `ts_out` (8 bytes, the time of sending) to every
record; the length byte counts it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from nq_pipeline.errors import BadStream

Array = npt.NDArray[Any]

ERROR, SYMBOL_MAPPING, SYSTEM = 21, 22, 23
CONTROL = {ERROR: "error", SYMBOL_MAPPING: "symbol_mapping", SYSTEM: "system"}
"""rtypes of the gateway's own messages; every other record is market data."""
_RECORDS = {
    0: ("TradeMsg", "trades"),
    1: ("MBP1Msg", "mbp-1"),
    10: ("MBP10Msg", "mbp-10"),
    17: ("OHLCVMsg", ""),
    18: ("StatusMsg", "status"),
    19: ("InstrumentDefMsg", "definition"),
    20: ("ImbalanceMsg", "imbalance"),
    ERROR: ("ErrorMsg", ""),
    SYMBOL_MAPPING: ("SymbolMappingMsg", ""),
    SYSTEM: ("SystemMsg", ""),
    24: ("StatMsg", "statistics"),
    32: ("OHLCVMsg", "ohlcv-1s"),
    33: ("OHLCVMsg", "ohlcv-1m"),
    34: ("OHLCVMsg", "ohlcv-1h"),
    35: ("OHLCVMsg", "ohlcv-1d"),
    36: ("OHLCVMsg", "ohlcv-eod"),
    160: ("MBOMsg", "mbo"),
    177: ("CMBP1Msg", "cmbp-1"),
    192: ("CBBO1SMsg", "cbbo-1s"),
    193: ("CBBO1MMsg", "cbbo-1m"),
    194: ("TCBBOMsg", "tcbbo"),
    195: ("BBO1SMsg", "bbo-1s"),
    196: ("BBO1MMsg", "bbo-1m"),
}
STRUCTS = {rtype: struct for rtype, (struct, _) in _RECORDS.items()}
"""rtype to the name of its record in databento_dbn."""
SCHEMAS = {rtype: schema for rtype, (_, schema) in _RECORDS.items() if schema}
"""rtype to its schema, for every dataset."""
OLD_BARS = 17
"""The rtype of bars of any length in the oldest files."""
RTYPES = {schema: rtype for rtype, schema in SCHEMAS.items()} | {"tbbo": 1}
VERSIONS = (1, 2, 3)

UNDEF_PRICE = np.iinfo(np.int64).max
UNDEF_TIMESTAMP = np.iinfo(np.uint64).max
DAY_NS = 86_400 * 10**9

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
DECOMPRESS_STEP = 4096
"""Compressed bytes to decompress at a time, so that a decompression bomb is met before it fills memory."""
MIN_RECORD_WORDS = 4
FIRST_STRIDE, FIRST_STEPS = 1024, 32
"""Records compared in the first stride; records followed one by one before the next stride is tried."""

WELL_FORMED = np.arange(1 << 16) % 256 >= MIN_RECORD_WORDS
"""By the first two bytes of a record: whether a record of any kind can begin with them."""


class UnsupportedVersion(BadStream):
    """The header may be intact, but this program does not read its version."""


def header_length(start: bytes, limit: int) -> int | None:
    """Return the length in bytes of the header that `start` begins; None for fewer than eight bytes.

    Raises `BadStream` for no DBN, an unknown version, or a length above `limit`.
    """
    if not b"DBN".startswith(start[:3]):
        raise BadStream("the stream does not begin with DBN", offset=0)
    if len(start) > 3 and start[3] not in VERSIONS:
        raise UnsupportedVersion(f"DBN version {start[3]} is not supported", offset=3)
    if len(start) < 8:
        return None
    length = 8 + int.from_bytes(start[4:8], "little")
    if length > limit:
        raise BadStream(f"the DBN header claims {length:,} bytes, more than is accepted", offset=4)
    return length


def decode_metadata(header: bytes) -> Any:
    """Decode a whole header to databento_dbn's `Metadata`, in its own version; `BadStream` if it cannot."""
    import databento_dbn

    as_is: Any = databento_dbn.VersionUpgradePolicy.AS_IS
    try:
        return databento_dbn.Metadata.decode(header, upgrade_policy=as_is)
    except Exception as error:  # DBNError, ValueError: whatever the compiled part makes of damage
        name = type(error).__name__
        raise BadStream(f"the DBN header cannot be read ({name})", offset=0) from None


def record_dtype(rtype: int, version: int, ts_out: bool = False) -> np.dtype[Any]:
    """Return the numpy type of an rtype's records, with the field names of databento_dbn."""
    return np.dtype([*_struct(rtype, version)._dtypes, *([("ts_out", "<u8")] if ts_out else [])])


@dataclass(frozen=True, slots=True)
class RecordLayout:
    """The records of one schema in one version of DBN."""

    schema: str
    rtype: int
    dtype: np.dtype[Any]
    columns: tuple[str, ...]
    """The fields that carry data, in the order of the official client; then `ts_out` if it was requested."""
    index: str  # the field that records are ordered by: `ts_recv`, or `ts_event` where there is none
    prices: frozenset[str]  # fields in units of 1e-9 of a point
    instants: frozenset[str]  # fields in nanoseconds since 1970 UTC

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """By the first two bytes of a record: whether it is one of these."""
        rtypes = [self.rtype, OLD_BARS] if self.schema.startswith("ohlcv") else [self.rtype]
        return _known_kinds(dict.fromkeys(rtypes, self.dtype))


@lru_cache(maxsize=128)
def record_layout(schema: str, version: int, ts_out: bool = False) -> RecordLayout:
    """Return the layout of a schema's records; KeyError for an unknown schema or version."""
    if version not in VERSIONS:
        raise KeyError(version)
    rtype = RTYPES[schema]
    struct, sent = _struct(rtype, version), ["ts_out"] if ts_out else []
    return RecordLayout(
        schema,
        rtype,
        record_dtype(rtype, version, ts_out),
        (*struct._ordered_fields, *sent),
        struct._ordered_fields[0],
        frozenset(struct._price_fields),
        frozenset([*struct._timestamp_fields, *sent]),
    )


@dataclass(frozen=True, slots=True)
class StreamLayout:
    """The records of every rtype in one version of DBN."""

    dtypes: dict[int, np.dtype[Any]]
    known: npt.NDArray[np.bool_]
    """By a record's first two bytes (length, rtype; little-endian): whether they belong together."""
    ts_recv: dict[int, int]
    """rtype to the byte offset of its `ts_recv`; rtypes without one are left out."""


@lru_cache(maxsize=len(VERSIONS) * 2)
def stream_layout(version: int, ts_out: bool) -> StreamLayout:
    """Return the layouts of all records of a version."""
    dtypes = {rtype: record_dtype(rtype, version, ts_out) for rtype in STRUCTS}
    fields: dict[int, Any] = {rtype: dtype.fields or {} for rtype, dtype in dtypes.items()}
    ts_recv = {rtype: places["ts_recv"][1] for rtype, places in fields.items() if "ts_recv" in places}
    return StreamLayout(dtypes, _known_kinds(dtypes), ts_recv)


def _known_kinds(dtypes: dict[int, np.dtype[Any]]) -> npt.NDArray[np.bool_]:
    known = np.zeros(1 << 16, np.bool_)
    known[[dtype.itemsize // 4 | rtype << 8 for rtype, dtype in dtypes.items()]] = True
    return known


def _struct(rtype: int, version: int) -> Any:
    import databento_dbn

    return getattr(getattr(databento_dbn, f"v{version}"), STRUCTS[rtype])


def walk_records(data: bytes, known: npt.NDArray[np.bool_]) -> tuple[Array, Array, int, bool]:
    """Find the records of `data`, which begins with one.

    If every two bytes at one record's stride equal its first two, each pair begins the next record, so a run
    of one kind is found by one strided comparison. Only where kinds alternate are records followed one by
    one, for twice as long each time.

    `known` says by a record's first two bytes (length, rtype as a little-endian integer) whether they may
    begin one. Returns where the whole records begin, their first two bytes, where the last one ends, and
    whether the bytes there begin no record.
    """
    size, at, bad = len(data), 0, False
    pairs = np.frombuffer(data, "<u2", size // 2)
    starts: list[Array] = [np.empty(0, np.int64)]
    kinds: list[Array] = [pairs[:0]]
    stride, steps = FIRST_STRIDE, FIRST_STEPS
    while size - at >= 2:
        kind = data[at] | data[at + 1] << 8
        length = 4 * data[at]
        if not known[kind]:
            bad = True
            break
        if at + length > size:
            break
        last = min(at + (stride - 1) * length, size - length)
        same = pairs[at // 2 : last // 2 + 1 : length // 2] == kind
        run = len(same) if same.all() else int(same.argmin())
        starts.append(np.arange(at, at + run * length, length))
        kinds.append(np.full(run, kind, pairs.dtype))
        at += run * length
        if run == len(same):
            stride *= 8
            continue
        steps = 2 * steps if run < FIRST_STEPS else FIRST_STEPS
        stride = FIRST_STRIDE
        followed = _follow_lengths(data, at, steps)
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


def _follow_lengths(data: bytes, at: int, most: int) -> Array:
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
