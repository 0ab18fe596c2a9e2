"""Small answers of Databento in DBN: two options on one future, with their quotes, statistics and trades."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime
from types import SimpleNamespace
from typing import Any

import databento_dbn
import numpy as np

from nq_pipeline.clock import to_ns
from nq_pipeline.dbn.layout import RTYPES, UNDEF_PRICE, record_layout
from nq_pipeline.market.contracts import Series


def body(
    schema: str, rows: list[Mapping[str, Any]], mappings: Mapping[str, list[tuple[str, str, int]]]
) -> bytes:
    """DBN of a few records; prices in points, instants as ISO text."""
    dtype = record_layout(schema, 3).dtype
    array = np.zeros(len(rows), dtype)
    array["length"], array["rtype"] = dtype.itemsize // 4, RTYPES[schema]
    for name, (kind, *_) in (dtype.fields or {}).items():
        if kind == np.int64:
            array[name] = UNDEF_PRICE
        elif kind == np.uint64:
            array[name] = 2**64 - 1
    for record, row in zip(array, rows, strict=True):
        for name, value in row.items():
            if isinstance(value, str) and dtype[name].kind == "u":
                value = to_ns(datetime.fromisoformat(value))
            elif dtype[name] == np.int64 and name != "quantity" and value != UNDEF_PRICE:
                value = round(value * 1e9)
            record[name] = value
    named = [
        SimpleNamespace(
            raw_symbol=symbol,
            intervals=[
                SimpleNamespace(
                    start_date=date.fromisoformat(first),
                    end_date=date.fromisoformat(until),
                    symbol=str(number),
                )
                for first, until, number in spans
            ],
        )
        for symbol, spans in mappings.items()
    ]
    parent, number = (databento_dbn.SType.from_str(name) for name in ("parent", "instrument_id"))
    asked = databento_dbn.Schema.from_str(schema)
    head = databento_dbn.Metadata("GLBX.MDP3", 0, parent, number, asked, mappings=named)
    return head.encode() + array.tobytes()


CALL, PUT, FUTURE = "Q2CM5 C21000", "Q2CM5 P21000.5", "NQM5"

DAYS = {CALL: [("2025-06-09", "2025-06-10", 7), ("2025-06-10", "2025-06-11", 11)],
        PUT: [("2025-06-09", "2025-06-10", 11), ("2025-06-10", "2025-06-11", 12)],
        FUTURE: [("2025-06-09", "2025-06-11", 13)]}  # fmt: skip

"""The put of the 9th has the id of the call on the 10th."""

OPTION: Mapping[str, Any] = {
    "asset": b"Q2C", "underlying": b"NQM5", "expiration": "2025-06-11T20:00:00Z", "unit_of_measure_qty": 20,
    "security_update_action": b"A", "user_defined_instrument": b"N", "ts_recv": "2025-06-10T00:00:00Z",
}  # fmt: skip

A_CALL: Mapping[str, Any] = {
    **OPTION,
    "instrument_id": 11,
    "raw_symbol": CALL.encode(),
    "instrument_class": b"C",
    "strike_price": 21000,
}

A_PUT: Mapping[str, Any] = {
    **OPTION,
    "instrument_id": 12,
    "raw_symbol": PUT.encode(),
    "instrument_class": b"P",
    "strike_price": 21000.5,
}

A_FUTURE: Mapping[str, Any] = {
    **OPTION,
    "instrument_id": 13,
    "raw_symbol": b"NQM5",
    "instrument_class": b"F",
    "asset": b"NQ",
}

DEFINED = [A_CALL, A_PUT, A_FUTURE]

SERIES = (Series("Q2C", date(2025, 6, 11)),)


def quote(number: int, ts_recv: str, bid: float | None, ask: float | None, **more: Any) -> Mapping[str, Any]:
    sides = {"bid_px_00": bid, "ask_px_00": ask}
    return {
        "instrument_id": number, "ts_recv": ts_recv, "bid_sz_00": 3, "ask_sz_00": 4,
        **{name: price for name, price in sides.items() if price is not None}, **more,
    }  # fmt: skip


def stat(
    stat_type: int, ts_recv: str, ts_ref: str | None, *, number: int = 11, **more: Any
) -> Mapping[str, Any]:
    ref = {"ts_ref": f"{ts_ref}T00:00:00Z"} if ts_ref else {}
    return {
        "instrument_id": number,
        "ts_recv": ts_recv,
        "stat_type": stat_type,
        "update_action": 1,
        **ref,
        **more,
    }


def trade(number: int, at: str, price: float, size: int) -> Mapping[str, Any]:
    return {
        "instrument_id": number,
        "ts_event": at,
        "ts_recv": at,
        "price": price,
        "size": size,
        "action": b"T",
    }
