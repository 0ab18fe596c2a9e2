"""DBN files as a stream of numpy arrays, without a Python object per record.

Historical files hold one schema, and the symbol of each instrument_id by day in their header; files from the
live gateway hold several schemas and carry their symbols in records of their own. Both may be zstd.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from nq_pipeline.dbn.layout import (
    CONTROL,
    DAY_NS,
    DECOMPRESS_STEP,
    RTYPES,
    SCHEMAS,
    SYMBOL_MAPPING,
    UNDEF_TIMESTAMP,
    WELL_FORMED,
    ZSTD_MAGIC,
    Array,
    RecordLayout,
    UnsupportedVersion,
    decode_metadata,
    header_length,
    record_dtype,
    record_layout,
    walk_records,
)
from nq_pipeline.dbn.symbols import SymbolMap, symbol_intervals
from nq_pipeline.errors import BadPayload, BadStream, LakeError

CHUNK = 1 << 20
"""Bytes of records looked at together: enough to be fast, few enough to stay in the processor's cache."""
MAX_HEADER_BYTES = 256 << 20
MAX_DECODED_BYTES = 512 * 1024 * 1024


class DamagedDbn(LakeError):
    """The bytes are not DBN."""


class UnsupportedDbn(LakeError):
    """The file is sound, but of a DBN version or schema that this program does not read."""


class TruncatedDbn(LakeError):
    """The file ends too early, or in bytes that are not a record, after `records` whole ones."""

    def __init__(self, message: str, *, records: int) -> None:
        super().__init__(message)
        self.records = records


class BadCompression(Exception):
    """A zstd stream is damaged or cut off; the message continues a sentence that begins with its name."""


def decompressed(file: BinaryIO) -> Iterator[bytes]:
    """Yield what a file holds from here on, decompressed where it is zstd.

    Raises `BadCompression` after everything that can be decompressed.
    """
    import zstandard

    start = file.read(len(ZSTD_MAGIC))
    if start != ZSTD_MAGIC:
        yield start
        while piece := file.read(CHUNK):
            yield piece
        return
    frame = zstandard.ZstdDecompressor().decompressobj()
    step = start + file.read(DECOMPRESS_STEP)
    while step:
        if frame.eof:
            frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            piece = frame.decompress(step)
        except zstandard.ZstdError:
            raise BadCompression("holds damaged zstd") from None
        yield piece
        step = (frame.unused_data if frame.eof else b"") or file.read(DECOMPRESS_STEP)
    if not frame.eof:
        raise BadCompression("ends within a zstd frame")


@contextmanager
def open_dbn(source: Path | BinaryIO) -> Iterator[Stream]:
    """Open a DBN file, or read what a binary stream holds from here on; it need not seek.

    Raises `DamagedDbn` for no DBN, `UnsupportedDbn` for a version or schema this program does not read,
    `TruncatedDbn` for one that ends before the first record.
    """
    if isinstance(source, Path):
        with source.open("rb") as file:
            yield Stream(file, source.name)
    else:
        yield Stream(source, Path(str(getattr(source, "name", "the stream"))).name)


class Stream:
    """The header of a DBN file, and its records as they are read."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.name = name
        self.records = 0  # whole ones read so far, of every kind
        self.skipped: Counter[str] = Counter()  # kind to count of no market data, or of an unknown rtype
        self.symbols = SymbolMap()  # of the header, and of the mapping records read so far
        self._broken = ""
        self._chunks = _in_chunks(self._decompressed(file))
        self.metadata, self._rest = self._read_header()
        self.version: int = self.metadata.version
        self.ts_out = bool(self.metadata.ts_out)
        # None where a live capture may hold several.
        self.schema = None if self.metadata.schema is None else str(self.metadata.schema)
        if self.schema is not None and self.schema not in RTYPES:
            raise UnsupportedDbn(f"{name}: schema {self.schema} is not supported")
        try:
            for interval in symbol_intervals(self.metadata):
                self.symbols.add(*interval)
        except (ValueError, OverflowError):
            raise DamagedDbn(
                f"the header of {name} maps a symbol to a value that is not an instrument_id"
            ) from None

    def layout(self, schema: str) -> RecordLayout:
        """The records of a schema as they lie in this file."""
        return record_layout(schema, self.version, self.ts_out)

    def batches(self) -> Iterator[tuple[RecordLayout, Array]]:
        """Yield the market data in the order of the file, each batch of one schema.

        The symbols of a batch are known when it is yielded. The arrays are read-only views of memory that
        lives as long as they do.

        Raises `TruncatedDbn` if the file ends within a record or a zstd frame, or goes on with bytes that are
        no record; everything whole has been yielded. Raises `DamagedDbn` if a record is not as long as its
        version defines it.
        """
        split = self._split_mixed if self.schema is None else self._split_single_schema
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

    def _decompressed(self, file: BinaryIO) -> Iterator[bytes]:
        try:
            yield from decompressed(file)
        except BadCompression as error:
            self._broken = str(error)

    def _read_header(self) -> tuple[Any, bytes]:
        """The metadata, and the bytes already read after it."""
        raw = self._read_at_least(8, b"")
        try:
            # Up to three bytes may also be all that is left of a zstd frame's magic.
            length = None if ZSTD_MAGIC.startswith(raw) else header_length(raw, MAX_HEADER_BYTES)
            if length is not None:
                raw = self._read_at_least(length, raw)
            if length is None or len(raw) < max(length, 9):
                raise TruncatedDbn(f"{self.name} ends within its header, before the first record", records=0)
            return decode_metadata(raw[:length]), raw[length:]
        except BadStream as error:
            kind = UnsupportedDbn if isinstance(error, UnsupportedVersion) else DamagedDbn
            raise kind(f"{self.name} is not a DBN file that this program reads: {error}") from None

    def _read_at_least(self, size: int, raw: bytes) -> bytes:
        while len(raw) < size and (chunk := next(self._chunks, b"")):
            raw += chunk
        return raw

    def _split_single_schema(self, data: bytes) -> tuple[int, list[tuple[RecordLayout, Array]]]:
        """Records of one schema: where the last whole one ends, and all of them."""
        assert self.schema is not None
        layout = self.layout(self.schema)
        starts, _, end, bad = walk_records(data, layout.known)
        if bad:
            self._broken = f"holds bytes that are not a record of {self.schema}"
        self.records += len(starts)
        return end, [(layout, np.frombuffer(data, layout.dtype, len(starts)))] if len(starts) else []

    def _split_mixed(self, data: bytes) -> tuple[int, list[tuple[RecordLayout, Array]]]:
        """Records of any kind: where the last whole one ends, and the market data among them."""
        starts, kinds, end, bad = walk_records(data, WELL_FORMED)
        if bad:
            self._broken = "holds bytes that are not a record"
        self.records += len(starts)
        rtypes = kinds >> 8
        batches = []
        for rtype in np.flatnonzero(np.bincount(rtypes)).tolist():
            at = starts[rtypes == rtype]
            if rtype in SCHEMAS:
                layout = self.layout(SCHEMAS[rtype])
                batches.append((layout, self._gather(data, at, layout.dtype)))
            else:
                self.skipped[CONTROL.get(rtype, f"rtype {rtype}")] += len(at)
                if rtype == SYMBOL_MAPPING:
                    self._add_mappings(data, at)
        return end, batches

    def _gather(self, data: bytes, at: Array, dtype: np.dtype[Any]) -> Array:
        """The records that start at `at` (multiples of four), back to back."""
        size = dtype.itemsize
        if (np.frombuffer(data, np.uint8)[at] != size // 4).any():
            raise DamagedDbn(f"{self.name} holds a record of a length that DBN {self.version} does not have")
        # Every place a record could start at, seen as a record; only those at `at` are copied.
        places = np.ndarray((len(data) - size) // 4 + 1, np.dtype((np.void, size)), data, strides=(4,))
        records: Array = places[at >> 2].view(dtype)
        return records

    def _add_mappings(self, data: bytes, at: Array) -> None:
        dtype = record_dtype(SYMBOL_MAPPING, self.version, self.ts_out)
        if 4 * data[int(at[0])] != dtype.itemsize:  # mapping records may come without `ts_out`
            dtype = record_dtype(SYMBOL_MAPPING, self.version)
        records = self._gather(data, at, dtype)
        # As in the official client: a mapping to a number names the requested symbol.
        numeric = np.char.isdigit(records["stype_out_symbol"])
        symbols = np.where(numeric, records["stype_in_symbol"], records["stype_out_symbol"])
        firsts, untils = records["start_ts"] // DAY_NS, records["end_ts"] // DAY_NS
        firsts[records["start_ts"] == UNDEF_TIMESTAMP] = 0
        columns = (records["instrument_id"], firsts, untils, symbols)
        for number, first, until, symbol in zip(*(column.tolist() for column in columns), strict=True):
            self.symbols.add(number, first, until, symbol.decode("utf-8", "replace"))


def _in_chunks(pieces: Iterator[bytes]) -> Iterator[bytes]:
    chunk = bytearray()
    for piece in pieces:
        chunk += piece
        if len(chunk) >= CHUNK:
            yield bytes(chunk)
            chunk.clear()
    yield bytes(chunk)


@dataclass(frozen=True, slots=True)
class Records:
    """A decoded answer: records as a structured array with the field names of databento_dbn, and symbols."""

    schema: str
    array: Array
    symbols: SymbolMap
    end: int | None = None
    """End of the query, nanoseconds UTC, exclusive; None where the header does not have it."""

    @classmethod
    def empty(cls, schema: str) -> Records:
        """No records at all."""
        return cls(schema, np.empty(0, record_layout(schema, 3).dtype), SymbolMap())


def decode(body: bytes, schema: str) -> Records:
    """Decode an answer of one schema, compressed or not.

    Raises `BadPayload` if the body is not DBN, is cut off, is of another schema or decodes to more than 512
    MiB, or if its records do not have its version's layout.
    """
    if not body.startswith((ZSTD_MAGIC, b"DBN")):
        raise BadPayload(f"{schema}: expected DBN, got {len(body)} bytes of something else")
    try:
        with open_dbn(BytesIO(body)) as stream:
            if stream.schema != schema:
                raise BadPayload(f"{schema}: the answer is of schema {stream.schema}")
            parts, size = [np.empty(0, stream.layout(schema).dtype)], 0
            for _, records in stream.batches():
                parts.append(records)
                size += records.nbytes
                if size > MAX_DECODED_BYTES:
                    raise BadPayload(
                        f"{schema}: an answer larger than {MAX_DECODED_BYTES >> 20} MiB was refused"
                    )
            return Records(schema, np.concatenate(parts), stream.symbols, stream.metadata.end)
    except TruncatedDbn as error:
        raise BadPayload(f"{schema}: the answer is cut off: {error}") from None
    except (DamagedDbn, UnsupportedDbn) as error:
        raise BadPayload(f"{schema}: {error}") from None
