"""Split a DBN stream whose chunks end anywhere into whole records, seen in place as numpy arrays."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from nq_pipeline.dbn.layout import (
    DECOMPRESS_STEP,
    ERROR,
    SYMBOL_MAPPING,
    SYSTEM,
    UNDEF_TIMESTAMP,
    ZSTD_MAGIC,
    Array,
    StreamLayout,
    decode_metadata,
    header_length,
    record_dtype,
    stream_layout,
    walk_records,
)
from nq_pipeline.dbn.stream import BadCompression, decompressed
from nq_pipeline.dbn.symbols import symbol_intervals
from nq_pipeline.errors import BadStream
from nq_pipeline.redaction import redact_data

NO_CODE = 255
"""Code of an error or system message that has none (DBN version 1)."""
MAX_HEADER_BYTES = 16 * 1024 * 1024
EVENTS = frozenset({0, 1, 10, 160})
"""rtypes whose `ts_event` and `ts_recv` are times of one event, so that they lie close together."""
NEAR_NS = 60 * 10**9
"""An event is received at most this long after it (or before it, by two clocks); else one time is wrong."""


def is_near(ts_event: Array, ts_recv: Array) -> npt.NDArray[np.bool_]:
    """Whether the two times of each record can belong to one event; False where one is undefined."""
    apart = np.where(ts_event > ts_recv, ts_event - ts_recv, ts_recv - ts_event)
    defined = (ts_event != UNDEF_TIMESTAMP) & (ts_recv != UNDEF_TIMESTAMP)
    near: npt.NDArray[np.bool_] = (apart <= NEAR_NS) & defined
    return near


@dataclass(frozen=True, slots=True)
class Head:
    """The header of a stream, with its bytes as received."""

    raw: bytes
    version: int
    ts_out: bool

    @classmethod
    def read(cls, file: BinaryIO) -> Head:
        """Read the header that a file begins with; `BadStream` when there is none."""
        start = file.read(8)
        length = header_length(start, MAX_HEADER_BYTES)
        if length is None:
            raise BadStream("the DBN header is cut off", offset=len(start))
        return cls.parse(start + file.read(length - len(start)))

    @classmethod
    def parse(cls, raw: bytes) -> Head:
        """Read a whole header; `BadStream` when it is none."""
        metadata = decode_metadata(raw)
        return cls(raw, metadata.version, bool(metadata.ts_out))


@dataclass(frozen=True, slots=True)
class ErrorMsg:
    """The gateway refuses a request or ends the session."""

    ts_event: int
    code: int
    text: str


@dataclass(frozen=True, slots=True)
class SystemMsg:
    """A report of the gateway: a heartbeat, an acknowledgement, the end of a replay."""

    ts_event: int
    code: int
    text: str


@dataclass(frozen=True, slots=True)
class Tally:
    """The count of records of one rtype, and the times of the last of them that is plausible.

    For trades, books and orders that is the last record whose two times are near each other, and
    `ts_event` is the earlier of the two, so that no session resumes from a moment in the future. For
    others it is the last record with a `ts_event` (BBO records of untraded contracts have none). Times
    are nanoseconds UTC; None where there is none, `ts_recv` also for rtypes without it.
    """

    count: int
    ts_event: int | None
    ts_recv: int | None


class Frame:
    """Whole records of one stream, seen in place; `records` has their bytes, `tallies` is by rtype.

    `offset` and `end` (excluded) are their span in the stream, in decompressed bytes from its first.
    """

    __slots__ = ("_layout", "_rtypes", "_starts", "head", "offset", "records", "tallies")

    def __init__(
        self, head: Head, layout: StreamLayout, offset: int, records: memoryview, starts: Array, kinds: Array
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
        """Return all records of an rtype as a structured array with the field names of databento_dbn."""
        dtype = self._layout.dtypes[rtype]
        tally = self.tallies.get(rtype)
        if tally is None:
            return np.empty(0, dtype)
        if tally.count == len(self):
            return np.frombuffer(self.records, dtype)
        words = np.arange(dtype.itemsize // 4)
        gathered = np.frombuffer(self.records, "<u4")[(self.starts(rtype) >> 2)[:, None] + words]
        records: Array = gathered.view(dtype)[:, 0]
        return records

    def messages(self) -> Iterator[ErrorMsg | SystemMsg]:
        """Yield the gateway's errors and reports, decoded, in the order of the stream."""
        for at in np.flatnonzero(np.isin(self._rtypes, (ERROR, SYSTEM))):
            dtype = self._layout.dtypes[int(self._rtypes[at])]
            record = np.frombuffer(self.records, dtype, 1, int(self._starts[at]))[0]
            kind, field = (ErrorMsg, "err") if self._rtypes[at] == ERROR else (SystemMsg, "msg")
            code = int(record["code"]) if "code" in record.dtype.names else NO_CODE
            text = record[field].split(b"\0", 1)[0].decode("utf-8", "replace")
            yield kind(int(record["ts_event"]), code, text)

    def mappings(self) -> dict[int, bytes]:
        """Return instrument_id to the bytes of its latest symbol mapping."""
        return {int(one["instrument_id"]): one.tobytes() for one in self.array(SYMBOL_MAPPING)}

    def starts(self, rtype: int) -> Array:
        """Return where in `records` those of an rtype begin."""
        starts: Array = self._starts[self._rtypes == rtype]
        return starts

    def _tally(self) -> dict[int, Tally]:
        present = np.flatnonzero(np.bincount(self._rtypes)).tolist()
        return {rtype: self._tally_of(rtype, self.starts(rtype)) for rtype in present}

    def first_moment(self, rtype: int) -> int | None:
        """Return the earliest plausible time of trades, books or orders, nanoseconds UTC, if any."""
        moments, near, _ = self._moments(rtype, self.starts(rtype))
        return int(moments[near].min()) if near.any() else None

    def _tally_of(self, rtype: int, starts: Array) -> Tally:
        if rtype in EVENTS:
            for candidates in (starts[-1:], starts):  # nearly always the last one is plausible
                moments, near, received = self._moments(rtype, candidates)
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
        """The time of each record, whether it is plausible, and its `ts_recv`."""
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

    A stream that starts with a zstd frame is decompressed as it comes. `offset` counts the decompressed bytes
    that are known to be the header or whole records. With a `head`, the first chunk is what follows the
    header, at `offset` of the stream. Texts in `secrets` are replaced by asterisks wherever the stream holds
    them.
    """

    def __init__(
        self, head: Head | None = None, *, offset: int | None = None, secrets: Collection[str] = ()
    ) -> None:
        self._secrets = secrets
        self.head = head
        self.offset = (len(head.raw) if head else 0) if offset is None else offset
        self._layout = stream_layout(head.version, head.ts_out) if head else None
        self._rest = b""
        self._sniffed = head is not None
        self._zstd: Any = None
        self._failure: BadStream | None = None

    @property
    def pending(self) -> int:
        """Decompressed bytes held back because they are not a whole record yet."""
        return len(self._rest)

    def feed(self, chunk: bytes | bytearray | memoryview) -> Iterator[Frame]:
        """Yield the records that the next chunk completes, at most one frame per decompressed step.

        Raises `BadStream` when the bytes are not DBN. Whole records before them are yielded first; afterwards
        every call raises it again.
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

        for at in range(0, len(chunk), DECOMPRESS_STEP):
            try:
                piece = self._zstd.decompress(chunk[at : at + DECOMPRESS_STEP])
            except zstandard.ZstdError:
                reached = self.offset + self.pending
                raise BadStream(
                    f"the compressed stream is damaged after {reached:,} bytes of DBN", offset=reached
                ) from None
            yield piece

    def _frames(self, data: bytes) -> Iterator[Frame]:
        data = redact_data(data, self._secrets)  # together with the bytes held back: a record is seen whole
        if self.head is None or self._layout is None:
            length = header_length(data, MAX_HEADER_BYTES)
            if length is None or len(data) < length:
                self._rest = data
                return
            self.head = Head.parse(data[:length])
            self._layout = stream_layout(self.head.version, self.head.ts_out)
            self.offset, data = length, data[length:]
        starts, kinds, end, bad = walk_records(data, self._layout.known)
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


def read_frames(path: Path) -> Iterator[Frame]:
    """Yield the records of a DBN file of one session, after the mappings of its header.

    Raises `BadStream` for a file that is cut off or damaged, after its whole records before that.
    """
    framer, begun = Framer(), False
    with path.open("rb") as file:
        try:
            for piece in decompressed(file):
                for frame in framer.feed(piece):
                    if not begun:
                        begun = True
                        yield from Framer(frame.head).feed(_mapping_records(frame.head))
                    yield frame
        except BadCompression as error:
            raise BadStream(f"{path} {error}; delete it", offset=framer.offset) from None
    if framer.pending or framer.head is None:
        raise BadStream(f"{path} is cut off within a record; delete it", offset=framer.offset)


def _mapping_records(head: Head) -> bytes:
    """The mappings of a file's header as the records in which the live gateway sends them."""
    mappings = list(symbol_intervals(decode_metadata(head.raw)))
    dtype = record_dtype(SYMBOL_MAPPING, head.version, head.ts_out)
    records = np.zeros(len(mappings), dtype)
    records["length"], records["rtype"] = dtype.itemsize // 4, SYMBOL_MAPPING
    records["instrument_id"] = [number for number, *_ in mappings]
    records["stype_out_symbol"] = [symbol.encode() for *_, symbol in mappings]
    return records.tobytes()
