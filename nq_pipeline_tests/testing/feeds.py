"""What a gateway would send of a small market, and how a capture would log it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from nq_pipeline.capture.log.writer import CaptureLog
from nq_pipeline.capture.publisher import Publisher
from nq_pipeline.clock import to_ns
from nq_pipeline.dbn.framer import Framer
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import TRADES, Table
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.dbn_streams import NOON, Clock, empty, head, mapping

DATASET = "GLBX.MDP3"
START = to_ns(NOON)
Array = np.ndarray[Any, Any]
SYMBOLS = {1: "NQM5", 2: "Q2CM5 C21800", 3: "Q2CM5 P21800", 4: "UD:1V: GN 0123", 5: "NQM5-NQU5"}
FIELDS = ["publisher_id", "instrument_id", "ts_event", "ts_recv", "sequence", "price", "size", "side"]
SIBLINGS = (1, 1, 2, 1, 4, 1, 3)


def market(events: int, rtype: int = 0, seed: int = 1) -> Array:
    """Records of events, some of several records that are equal or differ in size, in order of time."""
    chance = np.random.default_rng(seed)
    siblings = chance.choice(SIBLINGS, events)
    event = np.repeat(np.arange(events), siblings)
    records = empty(rtype, len(event))
    records["publisher_id"] = 1
    records["instrument_id"] = chance.integers(1, 6, events)[event]
    # Some events share their instant.
    records["ts_event"] = (START + np.cumsum(chance.integers(0, 3, events)) * 1_000_001)[event]
    records["ts_recv"] = records["ts_event"] + np.uint64(40_000)
    records["sequence"] = event
    records["price"] = 21_000_000_000_000 + chance.integers(-400, 400, len(event)) * 250_000_000
    records["size"] = chance.integers(1, 3, len(event))
    records["action"], records["side"] = b"T", chance.choice([b"A", b"B", b"N"], len(event))
    records["ts_in_delta"] = 11_000
    return records


def mappings(symbols: dict[int, str] | None = None) -> bytes:
    return b"".join(mapping(number, symbol) for number, symbol in (symbols or SYMBOLS).items())


def replayed(records: Array, ts_event: int) -> Array:
    """What a replay from an instant sends."""
    return records[records["ts_event"] >= np.uint64(ts_event)]


class Feed:
    """A capture: sessions that are logged piece by piece."""

    def __init__(self, root: Path, *, segment_bytes: int = 1 << 20, clock: Clock | None = None) -> None:
        self.log = CaptureLog(
            root, DATASET, clock=clock or Clock(), sync_every_s=0, segment_bytes=segment_bytes
        )
        self.framer = Framer()

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *_: object) -> None:
        self.log.close()

    def session(self, *pieces: bytes | Array, symbols: bytes | None = None) -> None:
        """Begin a session and log what it sends."""
        self.framer = Framer()
        self.send(head(), mappings() if symbols is None else symbols, *pieces)

    def send(self, *pieces: bytes | Array) -> None:
        for piece in pieces:
            for frame in self.framer.feed(piece if isinstance(piece, bytes) else piece.tobytes()):
                self.log.append(frame)


def publisher(
    root: Path, *, at: datetime = NOON, run_id: str = "run", lake: Lake | None = None, **more: Any
) -> Publisher:
    """A publisher of the log in `root` (`<environment>/capture`) to the lake beside it."""
    lake = lake or Workspace(root.parent).lake
    return Publisher(root / DATASET, lake, clock=Clock(at), run_id=run_id, **more)


def rows(root: Path, table: Table = TRADES) -> pl.DataFrame:
    return Workspace(root.parent).lake.scan(table).sort(table.key).collect()


def lake_records(frame: pl.DataFrame) -> list[tuple[Any, ...]]:
    """Rows as records, sorted, in the values of DBN."""
    return sorted(
        frame.select(
            pl.col("ts_event", "ts_recv").cast(pl.Int64),
            (pl.col("price") * 1e9).round().cast(pl.Int64).alias("price"),
            *(name for name in FIELDS if name not in ("ts_event", "ts_recv", "price")),
        )
        .select(FIELDS)
        .rows()
    )


def dbn_records(parts: Array | Sequence[Array]) -> list[tuple[Any, ...]]:
    """Records as `lake_records` gives rows."""
    arrays: Iterable[Array] = [parts] if isinstance(parts, np.ndarray) else parts
    return sorted(
        tuple(value.decode() if isinstance(value, bytes) else value for value in record)
        for array in arrays
        for record in array[FIELDS].tolist()
    )
