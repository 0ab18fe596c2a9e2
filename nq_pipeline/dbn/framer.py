"""Follow a DBN stream record by record, without an object per record.

A DBN stream is a head (`DBN`, version, length, metadata) and records back to back. The first byte
of a record is its length in words of four bytes, the second its rtype. Chunks from a socket end
anywhere; the framer finds the records that are whole, checks that each is one its version knows,
and shows them in place as numpy arrays. The head says whether `ts_out` (8 bytes, the time of
sending) ends every record; the length byte counts it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from nq_pipeline.dbn import stream
from nq_pipeline.dbn.stream import (
    BITE,
    ERROR,
    STRUCTS,
    SYMBOL_MAPPING,
    SYSTEM,
    UNDEF_TIMESTAMP,
    VERSIONS,
    ZSTD_MAGIC,
    Array,
    walk,
)
from nq_pipeline.errors import BadStream
from nq_pipeline.redaction import strike_data

__all__ = [
    "CONTROL", "ERROR", "STRUCTS", "SYMBOL_MAPPING", "SYSTEM", "UNDEF_TIMESTAMP", "ZSTD_MAGIC", "Array",
    "ControlMsg", "ErrorMsg", "Frame", "Framer", "Head", "SymbolMapping", "SystemMsg", "Tally", "is_near",
]  # fmt: skip

CONTROL = tuple(stream.CONTROL)
"""rtypes of what the gateway itself says; every other record is market data."""
UNSET = 255
"""Code of an error or system message that has none (DBN version 1)."""
MAX_HEAD = 16 * 1024 * 1024
EVENTS = frozenset({0, 1, 10, 160})
"""rtypes of which `ts_event` and `ts_recv` tell one event, so that they lie close together."""
NEAR_NS = 60 * 10**9
"""An event is received at most so long after it, or before it by two clocks; else one of the two is wrong."""


def is_near(ts_event: Array, ts_recv: Array) -> npt.NDArray[np.bool_]:
    """Whether the times of records tell of one moment; False where one is undefined."""
    apart = np.where(ts_event > ts_recv, ts_event - ts_recv, ts_recv - ts_event)
    defined = (ts_event != UNDEF_TIMESTAMP) & (ts_recv != UNDEF_TIMESTAMP)
    near: npt.NDArray[np.bool_] = (apart <= NEAR_NS) & defined
    return near


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a stream, with its bytes as they came."""

    raw: bytes
    version: int
    ts_out: bool
    dataset: str

    @classmethod
    def read(cls, file: BinaryIO) -> Head:
        """Read the head that a file begins with; `BadStream` when it is none."""
        start = file.read(8)
        length = _head_length(start)
        if length is None:
            raise BadStream("the head of the DBN stream is cut off", offset=len(start))
        return cls.parse(start + file.read(length - len(start)))

    @classmethod
    def parse(cls, raw: bytes) -> Head:
        """Read a whole head; `BadStream` when it is none."""
        import databento_dbn

        try:
            as_is: Any = databento_dbn.VersionUpgradePolicy.AS_IS
            metadata = databento_dbn.Metadata.decode(raw, upgrade_policy=as_is)
        except Exception as error:  # DBNError, ValueError: whatever the compiled part makes of damage
            raise BadStream(
                f"the head of the DBN stream cannot be read ({type(error).__name__})", offset=0
            ) from None
        return cls(raw, metadata.version, bool(metadata.ts_out), metadata.dataset)


@dataclass(frozen=True, slots=True)
class ErrorMsg:
    """The gateway refuses something or gives up."""

    ts_event: int
    code: int
    text: str
    is_last: bool


@dataclass(frozen=True, slots=True)
class SystemMsg:
    """The gateway reports something: a heartbeat, an acknowledgement, the end of a replay."""

    ts_event: int
    code: int
    text: str


@dataclass(frozen=True, slots=True)
class SymbolMapping:
    """What an instrument_id stands for in this session."""

    ts_event: int
    instrument_id: int
    stype_in_symbol: str
    stype_out_symbol: str


ControlMsg = ErrorMsg | SystemMsg | SymbolMapping


@dataclass(frozen=True, slots=True)
class Tally:
    """How many records of one rtype, and the times of the last of them that can be believed.

    Of trades, books and orders that is the last one whose times are near each other, and `ts_event`
    is the earlier of the two: nobody resumes from a moment that has not come. Else `ts_event` is that
    of the last record which has one (BBO records of untraded contracts do not). None where there is
    none; `ts_recv` also for rtypes without it.
    """

    count: int
    ts_event: int | None
    ts_recv: int | None


class Frame:
    """Whole records of one stream, seen in place.

    Attributes
    ----------
    head
        The head of their stream.
    offset, end
        Where they lie in the stream, in decompressed bytes from its first, end excluded.
    records
        Their bytes, back to back.
    tallies
        rtype to count and last times.
    """

    __slots__ = ("_layout", "_rtypes", "_starts", "head", "offset", "records", "tallies")

    def __init__(
        self, head: Head, layout: MessageLayout, offset: int, records: memoryview, starts: Array, kinds: Array
    ) -> None:
        self.head = head
        self.offset = offset
        self.records = records
        self._layout = layout
        self._starts = starts
        self._rtypes = kinds >> 8
        self.tallies = self._tally()

    def __len__(self) -> int:
        return len(self._starts)

    @property
    def end(self) -> int:
        return self.offset + len(self.records)

    def array(self, rtype: int) -> Array:
        """All records of an rtype as a structured array with the field names of databento_dbn."""
        dtype = self._layout.dtypes[rtype]
        tally = self.tallies.get(rtype)
        if tally is None:
            return np.empty(0, dtype)
        if tally.count == len(self):
            return np.frombuffer(self.records, dtype)
        words = np.arange(dtype.itemsize // 4)
        picked = np.frombuffer(self.records, "<u4")[(self.starts(rtype) >> 2)[:, None] + words]
        records: Array = picked.view(dtype)[:, 0]
        return records

    def instruments(self) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        """The instrument_ids of the market data in ascending order, and the records of each."""
        data = self._starts[~np.isin(self._rtypes, CONTROL)]
        ids, counts = np.unique(np.frombuffer(self.records, "<u4")[(data >> 2) + 1], return_counts=True)
        return ids, counts

    def control(self) -> Iterator[ControlMsg]:
        """What the gateway itself said, decoded, in the order of the stream."""
        if self.tallies.keys().isdisjoint(CONTROL):
            return
        for at in np.flatnonzero(np.isin(self._rtypes, CONTROL)):
            dtype = self._layout.dtypes[int(self._rtypes[at])]
            yield _decode(np.frombuffer(self.records, dtype, 1, int(self._starts[at]))[0])

    def mappings(self) -> dict[int, bytes]:
        """instrument_id to the bytes of its latest symbol mapping."""
        if SYMBOL_MAPPING not in self.tallies:
            return {}
        records = self.array(SYMBOL_MAPPING)
        return {int(record["instrument_id"]): record.tobytes() for record in records}

    def starts(self, rtype: int) -> Array:
        """Where in `records` those of an rtype begin."""
        starts: Array = self._starts[self._rtypes == rtype]
        return starts

    def _tally(self) -> dict[int, Tally]:
        first = int(self._rtypes[0])
        if (self._rtypes == first).all():
            return {first: self._tally_of(first, self._starts)}
        present = np.flatnonzero(np.bincount(self._rtypes))
        return {int(rtype): self._tally_of(int(rtype), self.starts(int(rtype))) for rtype in present}

    def first_moment(self, rtype: int) -> int | None:
        """The earliest moment that the records of trades, books or orders can be believed to tell."""
        moments, near, _ = self._moments(rtype, self.starts(rtype))
        return int(moments[near].min()) if near.any() else None

    def _tally_of(self, rtype: int, starts: Array) -> Tally:
        if rtype in EVENTS:
            for some in (starts[-1:], starts):
                moments, near, received = self._moments(rtype, some)
                if near.any():
                    return Tally(len(starts), int(moments[near][-1]), int(received[near][-1]))
            return Tally(len(starts), None, None)
        last = int(starts[-1])
        ts_event: int | None = self._u64(last + 8)
        if ts_event == UNDEF_TIMESTAMP:
            events = self._u64s(starts + 8)
            defined = events[events != UNDEF_TIMESTAMP]
            ts_event = int(defined[-1]) if len(defined) else None
        recv = self._layout.ts_recv.get(rtype)
        return Tally(len(starts), ts_event, None if recv is None else self._u64(last + recv))

    def _moments(self, rtype: int, starts: Array) -> tuple[Array, npt.NDArray[np.bool_], Array]:
        """The moment of each record, whether it can be believed, and its `ts_recv`."""
        events, received = self._u64s(starts + 8), self._u64s(starts + self._layout.ts_recv[rtype])
        return np.minimum(events, received), is_near(events, received), received

    def _u64s(self, at: Array) -> Array:
        words = np.frombuffer(self.records, "<u4")
        values: Array = words[at >> 2] | words[(at >> 2) + 1].astype(np.uint64) << np.uint64(32)
        return values

    def _u64(self, at: int) -> int:
        return int.from_bytes(self.records[at : at + 8], "little")


class Framer:
    """Finds the whole records in a DBN stream that arrives in chunks.

    A stream that starts with a zstd frame is decompressed as it comes.

    Parameters
    ----------
    head
        The head of a stream that is taken up after it; None when the stream begins with it.
    offset
        Where in the stream, after the head, the first chunk begins.
    secrets
        What is struck out of the stream, asterisks in its place.

    Attributes
    ----------
    offset
        Bytes of the stream, decompressed, that are known to be whole records or the head.
    """

    def __init__(
        self, head: Head | None = None, *, offset: int | None = None, secrets: Collection[str] = ()
    ) -> None:
        self._secrets = secrets
        self.head = head
        self.offset = (len(head.raw) if head else 0) if offset is None else offset
        self._layout = _layout(head.version, head.ts_out) if head else None
        self._rest = b""
        self._sniffed = head is not None
        self._zstd: Any = None
        self._failure: BadStream | None = None

    @property
    def pending(self) -> int:
        """Bytes, decompressed, held back because they are not a whole record yet."""
        return len(self._rest)

    def feed(self, chunk: bytes | bytearray | memoryview) -> Iterator[Frame]:
        """Take the next chunk; yields the records it completes, at most one frame per decompressed bite.

        Raises
        ------
        BadStream
            The bytes are no DBN. What was whole before them is yielded first; afterwards every
            call raises it again.
        """
        if self._failure:
            raise BadStream(str(self._failure), offset=self._failure.offset)
        try:
            for piece in self._decompressed(bytes(chunk)):
                yield from self._frames(self._rest + piece if self._rest else piece)
        except BadStream as error:
            self._failure = error
            raise

    def _decompressed(self, chunk: bytes) -> Iterator[bytes]:
        if not self._sniffed:
            chunk, self._rest = self._rest + chunk, b""
            if len(chunk) < len(ZSTD_MAGIC):
                self._rest = chunk
                return
            self._sniffed = True
            if chunk.startswith(ZSTD_MAGIC):
                import zstandard

                self._zstd = zstandard.ZstdDecompressor().decompressobj(read_across_frames=True)
        if self._zstd is None:
            yield chunk
            return
        import zstandard

        for at in range(0, len(chunk), BITE):
            try:
                piece = self._zstd.decompress(chunk[at : at + BITE])
            except zstandard.ZstdError:
                reached = self.offset + self.pending
                raise BadStream(
                    f"the compressed stream is damaged after {reached:,} bytes of DBN", offset=reached
                ) from None
            if piece:
                yield piece

    def _frames(self, data: bytes) -> Iterator[Frame]:
        data = strike_data(data, self._secrets)  # with what was held back, so a record is seen whole
        if self.head is None or self._layout is None:
            length = _head_length(data)
            if length is None or len(data) < length:
                self._rest = data
                return
            self.head = Head.parse(data[:length])
            self._layout = _layout(self.head.version, self.head.ts_out)
            self.offset, data = length, data[length:]
        if not data:
            self._rest = b""
            return
        starts, kinds, end, bad = walk(data, self._layout.known)
        # What is not given out now is given out with the next chunk.
        self._rest = data[end:]
        offset, self.offset = self.offset, self.offset + end
        if len(starts):
            yield Frame(self.head, self._layout, offset, memoryview(data)[:end], starts, kinds)
        if bad:
            raise BadStream(
                f"no DBN record at byte {self.offset:,} of the stream (length byte {data[end]}, rtype "
                f"{data[end + 1]}, DBN version {self.head.version})",
                offset=self.offset,
            )


# ── the layout of records ───────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class MessageLayout:
    """The records of one version of DBN.

    Attributes
    ----------
    known
        By a record's first two bytes (length, rtype as a little-endian integer): whether they
        belong together.
    ts_recv
        rtype to the place of its `ts_recv`.
    """

    dtypes: dict[int, np.dtype[Any]]
    known: npt.NDArray[np.bool_]
    ts_recv: dict[int, int]


@lru_cache(maxsize=len(VERSIONS) * 2)
def _layout(version: int, ts_out: bool) -> MessageLayout:
    import databento_dbn

    structs = getattr(databento_dbn, f"v{version}")
    suffix = [("ts_out", "<u8")] if ts_out else []
    dtypes = {rtype: np.dtype([*getattr(structs, name)._dtypes, *suffix]) for rtype, name in STRUCTS.items()}
    known = np.zeros(1 << 16, dtype=np.bool_)
    known[[dtype.itemsize // 4 | rtype << 8 for rtype, dtype in dtypes.items()]] = True
    ts_recv = {
        rtype: dtype.fields["ts_recv"][1]
        for rtype, dtype in dtypes.items()
        if dtype.fields and "ts_recv" in dtype.fields
    }
    return MessageLayout(dtypes, known, ts_recv)


def _head_length(data: bytes) -> int | None:
    """Length of the head that `data` begins with; None when too little is there to tell."""
    if not b"DBN".startswith(data[:3]):
        raise BadStream("the stream does not begin with DBN", offset=0)
    if len(data) < 8:
        return None
    if data[3] not in VERSIONS:
        raise BadStream(f"DBN version {data[3]} is unknown to this program", offset=3)
    length = 8 + int.from_bytes(data[4:8], "little")
    if length > MAX_HEAD:
        raise BadStream(f"the head of the DBN stream claims {length:,} bytes, which was refused", offset=4)
    return length


def _decode(record: Any) -> ControlMsg:
    ts_event, names = int(record["ts_event"]), record.dtype.names
    match int(record["rtype"]):
        case 21:
            code = int(record["code"]) if "code" in names else UNSET
            last = bool(record["is_last"]) if "is_last" in names else True
            return ErrorMsg(ts_event, code, _text(record["err"]), last)
        case 23:
            code = int(record["code"]) if "code" in names else UNSET
            return SystemMsg(ts_event, code, _text(record["msg"]))
        case _:
            return SymbolMapping(
                ts_event,
                int(record["instrument_id"]),
                _text(record["stype_in_symbol"]),
                _text(record["stype_out_symbol"]),
            )


def _text(value: bytes) -> str:
    return value.split(b"\0", 1)[0].decode("utf-8", errors="replace")
