"""Answers of Databento's historical API as bytes: recorded ones, and the stand-in's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from nq_pipeline_tests.testing import standin

SCHEMAS = (
    "definition", "statistics", "trades", "bbo-1s", "bbo-1m", "ohlcv-1s", "ohlcv-1m", "ohlcv-1h", "ohlcv-1d",
)  # fmt: skip
SPANS = {
    "definition": ("2025-06-10T00:00:00Z", "2025-06-10T15:00:00Z"),
    "bbo-1m": ("2025-06-10T14:58:00Z", "2025-06-10T15:00:00Z"),
    "statistics": ("2025-06-09T20:00:00Z", "2025-06-10T15:00:00Z"),
    "trades": ("2025-06-10T13:30:00Z", "2025-06-10T15:00:00Z"),
}


def recorded(shared: Path, part: str = "") -> list[tuple[bytes, str]]:
    """The recorded answers of schemas this program reads, with their schema, whose name has a part."""
    found = []
    for path in sorted((shared / "databento").glob("*.dbn.zst")):
        schema = next(
            (name for name in SCHEMAS if re.search(rf"[._-]{name}(_|\.|-glbx)|^{name}", path.name)), None
        )
        if schema is not None and part in path.name:
            found.append((path.read_bytes(), schema))
    assert found
    return found


def synthetic(schema: str) -> bytes:
    start, end = (str(np.datetime64(text.removesuffix("Z"), "ns").astype(int)) for text in SPANS[schema])
    symbols = "Q2C.OPT,Q2D.OPT" + (",NQ.FUT" if schema in ("definition", "bbo-1m") else "")
    return standin.body(
        "timeseries.get_range", schema=schema, symbols=symbols, stype_in="parent", start=start, end=end
    )


def plain(body: bytes) -> bytes:
    return zstandard.ZstdDecompressor().stream_reader(body, read_across_frames=True).read()


def records_start(raw: bytes | bytearray) -> int:
    return 8 + int.from_bytes(raw[4:8], "little")


def officially(body: bytes) -> list[Any]:
    """The records as objects of the official decoder."""
    import databento as official

    return list(official.DBNStore.from_bytes(body))
