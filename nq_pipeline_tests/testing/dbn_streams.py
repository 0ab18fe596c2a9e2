"""DBN streams of our own making, and what the official decoder says of one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import databento_dbn
import numpy as np

from nq_pipeline.clock import SystemClock, to_ns
from nq_pipeline.dbn.framer import Frame, Framer
from nq_pipeline.dbn.layout import record_dtype

NOON = datetime(2025, 6, 10, 17, 0, tzinfo=UTC)
UNDEF_TIMESTAMP = 2**64 - 1
INSTRUMENTS = 7


class Clock(SystemClock):
    """A clock that is moved by hand, durations too."""

    def __init__(self, instant: datetime = NOON) -> None:
        self.instant = instant

    def now(self) -> datetime:
        return self.instant

    def monotonic(self) -> float:
        return self.instant.timestamp()


def head(version: int = 3, *, ts_out: bool = False) -> bytes:
    """The head of a live stream."""
    return bytes(
        databento_dbn.Metadata(
            dataset="GLBX.MDP3",
            start=to_ns(NOON),
            stype_in=None,
            stype_out=databento_dbn.SType(databento_dbn.SType.INSTRUMENT_ID),
            schema=None,
            ts_out=ts_out,
            version=version,
        )
    )


def empty(rtype: int, count: int = 1, version: int = 3, *, ts_out: bool = False) -> np.ndarray[Any, Any]:
    """Records of an rtype, with nothing in them but their length and rtype."""
    array = np.zeros(count, record_dtype(rtype, version, ts_out))
    array["length"], array["rtype"] = array.dtype.itemsize // 4, rtype
    return array


def record(rtype: int, version: int = 3, *, ts_out: bool = False, **fields: Any) -> bytes:
    """One record with some of its fields."""
    array = empty(rtype, 1, version, ts_out=ts_out)
    for name, value in fields.items():
        array[name] = value
    return array.tobytes()


def trades(first: int, count: int) -> bytes:
    """Trades numbered from `first` in `sequence`; every other field follows from the number."""
    array = empty(0, count)
    numbers = np.arange(first, first + count, dtype=np.uint64)
    array["sequence"] = numbers
    array["instrument_id"] = numbers % INSTRUMENTS + 1
    array["ts_event"] = numbers + np.uint64(to_ns(NOON))
    array["ts_recv"] = array["ts_event"] + np.uint64(150_000)
    array["price"] = 21_000_000_000_000 + numbers.astype(np.int64) * 250_000_000
    array["size"], array["action"], array["side"] = 1, b"T", b"B"
    return array.tobytes()


def mapping(instrument_id: int, symbol: str) -> bytes:
    """A symbol mapping as the gateway sends it, good for the whole day."""
    return record(
        22,
        instrument_id=instrument_id,
        stype_in_symbol=b"NQ.OPT",
        stype_out_symbol=symbol.encode(),
        start_ts=to_ns(NOON.replace(hour=0)),
        end_ts=to_ns(NOON.replace(hour=0) + timedelta(days=1)),
    )


def frames(data: bytes, cuts: Iterable[int] = (), framer: Framer | None = None) -> list[Frame]:
    """All frames of a stream that arrives cut at some places."""
    framer = framer or Framer()
    edges = [0, *sorted(cuts), len(data)]
    return [f for a, b in pairwise(edges) for f in framer.feed(data[a:b])]


def one_frame(body: bytes, framer: Framer) -> Frame:
    """The frame of whole records; the framer's stream must have begun."""
    (frame,) = framer.feed(body)
    return frame


def begun() -> Framer:
    """A framer that has seen the head of a stream."""
    framer = Framer()
    assert not list(framer.feed(head()))
    return framer


def official(data: bytes, *, compressed: bool = False) -> Sequence[Any]:
    """The records that the official decoder finds, as it finds them in the wire's own version."""
    as_is: Any = databento_dbn.VersionUpgradePolicy.AS_IS  # typed as int, refused as int
    compression = databento_dbn.Compression("zstd" if compressed else "none")
    decoder = databento_dbn.DBNDecoder(upgrade_policy=as_is, compression=compression)
    return [r for r in decoder.write_and_decode(data) if not isinstance(r, databento_dbn.Metadata)]
