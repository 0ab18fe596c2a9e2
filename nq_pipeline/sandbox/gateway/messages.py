"""The gateway's protocol: lines of text first, then DBN records.

A line is `key=value|key=value`. The official client waits half a minute when it meets an unknown key.
Control records (system messages, errors, symbol mappings) have publisher 0 and come between the data.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from nq_pipeline.clock import to_ns
from nq_pipeline.dbn.layout import ERROR, SYMBOL_MAPPING, SYSTEM, Array, record_dtype
from nq_pipeline.sandbox.synthetic.instruments import STYPES
from nq_pipeline.sandbox.synthetic.price_path import DAY_NS
from nq_pipeline.sandbox.synthetic.records import DBN_VERSION

SYMBOLS_PER_LINE = 500
HEARTBEAT, SUBSCRIPTION_ACK, SLOW_READER_WARNING, REPLAY_COMPLETED, END_OF_INTERVAL = range(5)


class GatewayRefusal(Exception):
    """A request the gateway refuses; `code` is that of its ErrorMsg."""

    def __init__(self, text: str, code: int = 5) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True)
class Credentials:
    """The line that answers the challenge."""

    response: str
    dataset: str
    ts_out: bool
    zstd: bool
    heartbeat_s: float
    slow_reader: str | None


@dataclass(frozen=True)
class SubscriptionLine:
    """A subscription; `start` in nanoseconds UTC, 0 for all there is, None for live data only."""

    schema: str
    stype_in: str
    symbols: tuple[str, ...]
    start: int | None
    number: str | None
    is_last: bool
    snapshot: bool = False


def parse_line(line: bytes) -> dict[str, str]:
    """The keys and values of a line; raises GatewayRefusal for anything else."""
    try:
        pairs = [part.partition("=") for part in line.decode().strip().split("|")]
    except UnicodeDecodeError:
        raise GatewayRefusal("The message is not UTF-8") from None
    if not line.endswith(b"\n") or not all(key for key, _, _ in pairs):
        raise GatewayRefusal("The message could not be parsed")
    return {key: value for key, _, value in pairs}


def parse_credentials(line: bytes) -> Credentials:
    values = parse_line(line)
    try:
        plain_or_zstd = values.get("compression", "none") in ("none", "zstd")
        if values.get("encoding", "dbn") != "dbn" or not plain_or_zstd:
            raise GatewayRefusal("Only DBN, plain or zstd, is available here")
        if values.get("slow_reader_behavior") not in (None, "skip", "warn"):
            raise GatewayRefusal("slow_reader_behavior is skip or warn")
        return Credentials(
            response=values["auth"],
            dataset=values["dataset"],
            ts_out=values.get("ts_out", "0") == "1",
            zstd=values.get("compression") == "zstd",
            heartbeat_s=float(values.get("heartbeat_interval_s") or 30),
            slow_reader=values.get("slow_reader_behavior"),
        )
    except (KeyError, ValueError):
        raise GatewayRefusal("The authentication request could not be parsed") from None


def parse_subscription(line: bytes) -> SubscriptionLine:
    values = parse_line(line)
    symbols = tuple(values.get("symbols", "").split(","))
    if values.get("stype_in") not in STYPES:
        raise GatewayRefusal(f"Unsupported stype_in {values.get('stype_in')}")
    if not all(symbols) or len(symbols) > SYMBOLS_PER_LINE:
        raise GatewayRefusal(f"A subscription names 1 to {SYMBOLS_PER_LINE} symbols a line")
    snapshot = values.get("snapshot", "0") != "0"
    if snapshot and (values.get("schema") != "mbo" or values.get("start")):
        raise GatewayRefusal("Snapshots are available for schema mbo only, and without a start")
    return SubscriptionLine(
        schema=values.get("schema", ""),
        stype_in=values["stype_in"],
        symbols=symbols,
        start=_parse_instant(values["start"]) if values.get("start") else None,
        number=values.get("id"),
        is_last=values.get("is_last", "1") == "1",
        snapshot=snapshot,
    )


def _parse_instant(text: str) -> int:
    try:
        if text.isdecimal():
            return int(text)
        read = datetime.fromisoformat(text)
        return to_ns(read if read.tzinfo else read.replace(tzinfo=UTC))
    except ValueError:
        raise GatewayRefusal(f"Invalid start time {text}") from None


# ── records ─────────────────────────────────────────────────────────────────────────────────────


def _control_records(rtype: int, n: int, ts: Any) -> Array:
    array = np.zeros(n, record_dtype(rtype, DBN_VERSION))
    array["length"], array["rtype"], array["ts_event"] = array.dtype.itemsize // 4, rtype, ts
    return array


def system_record(code: int, text: str, ts: int) -> Array:
    array = _control_records(SYSTEM, 1, ts)
    array["msg"], array["code"] = text.encode(), code
    return array


def error_record(code: int, text: str, ts: int, *, is_last: bool = True) -> Array:
    array = _control_records(ERROR, 1, ts)
    array["err"], array["code"], array["is_last"] = text.encode(), code, is_last
    return array


def interval_end_records(schema: str, ends: Array) -> Array:
    array = _control_records(SYSTEM, len(ends), ends)
    array["msg"], array["code"] = f"End of interval for {schema}".encode(), END_OF_INTERVAL
    return array


def mapping_records(
    stype_in: str, symbols_in: Array, ids: Array, symbols_out: Array, ts: int, until: int
) -> Array:
    """One record per instrument, valid from the UTC day of `ts` to `until`."""
    array = _control_records(SYMBOL_MAPPING, len(ids), ts)
    array["instrument_id"] = ids
    array["stype_in"], array["stype_in_symbol"] = STYPES[stype_in], symbols_in
    array["stype_out"], array["stype_out_symbol"] = STYPES["raw_symbol"], symbols_out
    array["start_ts"], array["end_ts"] = ts - ts % DAY_NS, until
    return array


def encode_metadata(dataset: str, start: int, *, ts_out: bool = False, schema: str | None = None) -> bytes:
    """The DBN header of a stream, or of a file with one schema."""
    import databento_dbn as dbn

    return bytes(
        dbn.Metadata(
            dataset=dataset,
            start=start,
            stype_in=None,
            stype_out=dbn.SType.from_str("instrument_id"),
            schema=dbn.Schema.from_str(schema) if schema else None,
            ts_out=ts_out,
            version=DBN_VERSION,
        )
    )


# ── bytes ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class EncodedBlock:
    """Whole records as they go over the wire; record i is `data[edges[i] : edges[i + 1]]`."""

    data: bytes
    edges: Array

    def __len__(self) -> int:
        return len(self.edges) - 1

    def slice(self, first: int, last: int) -> bytes:
        """The bytes of records first to last, last excluded."""
        return self.data[self.edges[first] : self.edges[last]]

    def drop(self, first: int, last: int) -> EncodedBlock:
        """The block without records first to last, last excluded."""
        start, end = self.edges[first], self.edges[last]
        edges = np.concatenate([self.edges[:first], self.edges[last:] - (end - start)])
        return EncodedBlock(self.data[:start] + self.data[end:], edges)


def encode_records(
    *arrays: Array, times: list[Array] | None = None, ts_out: int | None = None
) -> EncodedBlock:
    """Arrays of records as bytes, one after the other or by times of publication (the arrays' order at ties).

    `ts_out` is the time of sending, appended to every record when given.
    """
    rows = [_rows(array, ts_out) for array in arrays if len(array)]
    if not rows:
        return EncodedBlock(b"", np.zeros(1, np.int64))
    lengths = np.concatenate([np.full(len(r), r.shape[1]) for r in rows])
    if times is None or len(rows) == 1:
        return EncodedBlock(b"".join(r.tobytes() for r in rows), np.concatenate([[0], np.cumsum(lengths)]))
    order = np.argsort(np.concatenate([t for t in times if len(t)]), kind="stable")
    edges = np.concatenate([[0], np.cumsum(lengths[order])])
    place = np.empty(len(order), np.int64)
    place[order] = edges[:-1]
    merged = np.empty(edges[-1], np.uint8)
    first = 0
    for r in rows:
        merged[place[first : first + len(r), None] + np.arange(r.shape[1])] = r
        first += len(r)
    return EncodedBlock(merged.tobytes(), edges)


def _rows(array: Array, ts_out: int | None) -> Array:
    """Records as a matrix of bytes."""
    size = array.dtype.itemsize
    plain = np.ascontiguousarray(array).view(np.uint8).reshape(len(array), size)
    if ts_out is None:
        return plain
    extended = np.empty((len(array), size + 8), np.uint8)
    extended[:, :size], extended[:, size:] = plain, np.array([ts_out], np.uint64).view(np.uint8)
    extended[:, 0] += 2  # the length, in words of four bytes
    return extended
