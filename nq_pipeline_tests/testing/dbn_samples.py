"""DBN files made up for tests: any schema, any version, any bytes in the records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from types import SimpleNamespace
from typing import Any

import databento_dbn
import numpy as np
import zstandard
from databento_dbn import Schema, SType

from nq_pipeline.dbn.layout import UNDEF_TIMESTAMP, record_layout

DAY = date(2025, 6, 10)
NOON = 1_749_556_800_000_000_000
"""2025-06-10 12:00 UTC."""

Spans = Mapping[str, Sequence[tuple[date, date, str]]]


def head(
    schema: str | None,
    version: int = 3,
    *,
    symbols: Spans | None = None,
    ts_out: bool = False,
    stype_in: str | None = "raw_symbol",
) -> bytes:
    """The head of a file, as databento_dbn writes it for the version."""
    return bytes(
        databento_dbn.Metadata(
            dataset="GLBX.MDP3",
            schema=Schema.from_str(schema) if schema else None,
            stype_in=SType.from_str(stype_in) if stype_in else None,
            stype_out=SType.from_str("instrument_id"),
            start=NOON,
            symbols=sorted(symbols or {}),
            partial=[],
            not_found=[],
            mappings=[
                SimpleNamespace(
                    raw_symbol=symbol,
                    intervals=[SimpleNamespace(start_date=a, end_date=b, symbol=c) for a, b, c in spans],
                )
                for symbol, spans in (symbols or {}).items()
            ],
            ts_out=ts_out,
            version=version,
        ).encode()
    )


def records(schema: str, count: int, version: int = 3, *, ts_out: bool = False, **columns: Any) -> np.ndarray:
    """Records with some columns filled, and what tells their kind."""
    layout = record_layout(schema, version, ts_out)
    array = np.zeros(count, layout.dtype)
    for name, values in columns.items():
        array[name] = values
    array["length"], array["rtype"] = layout.dtype.itemsize // 4, layout.rtype
    return array


def trades(count: int, *, ids: Sequence[int] = (7,), start: int = NOON, step: int = 1000) -> np.ndarray:
    """Trades one after the other, the instruments in turn."""
    at = start + step * np.arange(count, dtype=np.uint64)
    return records(
        "trades",
        count,
        instrument_id=np.resize(ids, count),
        ts_event=at,
        ts_recv=at + 100,
        price=(80 + np.arange(count) % 1000) * 250_000_000,
        size=1 + np.arange(count) % 9,
        action=b"T",
        side=np.resize([b"A", b"B", b"N"], count),
        sequence=np.arange(count),
    )


def mapping(
    instrument_id: int, asked: str, given: str, start: int | None = None, end: int | None = None
) -> bytes:
    """A symbol mapping as the live gateway sends it; without times it holds for ever."""
    return bytes(
        databento_dbn.SymbolMappingMsg(
            publisher_id=0,
            instrument_id=instrument_id,
            ts_event=NOON,
            stype_in=SType.from_str("raw_symbol"),
            stype_in_symbol=asked,
            stype_out=SType.from_str("instrument_id"),
            stype_out_symbol=given,
            start_ts=UNDEF_TIMESTAMP if start is None else start,
            end_ts=UNDEF_TIMESTAMP if end is None else end,
        )
    )


def zstd(*parts: bytes) -> bytes:
    """Each part as a zstd frame, one after the other."""
    return b"".join(map(zstandard.compress, parts))
