"""The parameters of a Databento request, parsed and refused as the vendor does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import numpy as np

from nq_pipeline.clock import to_ns
from nq_pipeline.sandbox.scenario import Scenario
from nq_pipeline.sandbox.synthetic.instruments import STYPES
from nq_pipeline.sandbox.synthetic.market import MINUTE_NS
from nq_pipeline.sandbox.synthetic.price_path import DAY_NS

DATASET = "GLBX.MDP3"
AVAILABLE_START = "2010-06-06T00:00:00.000000000Z"
USD_PER_GB = {
    "mbo": 1.80,
    "mbp-1": 1.80,
    "tbbo": 28.0,
    "trades": 28.0,
    "bbo-1s": 18.0,
    "bbo-1m": 18.0,
    "ohlcv-1s": 70.0,
    "ohlcv-1m": 70.0,
    "ohlcv-1h": 190.0,
    "ohlcv-1d": 190.0,
    "definition": 1.70,
    "statistics": 1.00,
}
"""The available schemas and the vendor's price list of June 2026, as a third party recorded it."""
STYPE_PAIRS = frozenset({(stype, "instrument_id") for stype in STYPES} | {("instrument_id", "raw_symbol")})
MAX_QUOTE_MINUTES = 240
START_AFTER_END = "The start is on or after the end."

Params = Mapping[str, str]


class RequestRefused(Exception):
    """An error in the vendor's format."""

    def __init__(self, status: int, case: str, message: str, **payload: Any) -> None:
        super().__init__(message)
        self.status = status
        self.detail: dict[str, Any] | str = {
            "case": case,
            "message": message,
            "status_code": status,
            "docs": "https://databento.com/docs/api-reference-historical/basics/errors",
            "payload": payload,
        }


@dataclass(frozen=True)
class RangeQuery:
    """A time range of one schema; `start` and `end` (excluded) in nanoseconds UTC."""

    schema: str
    symbols: tuple[str, ...]
    stype_in: str
    start: int
    end: int
    limit: int | None = None
    stype_out: str = "instrument_id"


def parse_query(params: Params, scenario: Scenario) -> RangeQuery:
    """Read a range query; raises RequestRefused for one the vendor would not answer."""
    check_dataset(params)
    schema, available = parse_schema(params), available_end(scenario)
    start = parse_instant(params.get("start", ""))
    end = parse_instant(params["end"]) if "end" in params else start // DAY_NS * DAY_NS + DAY_NS
    if start >= end:
        raise RequestRefused(422, "data_time_range_start_on_or_after_end", START_AFTER_END)
    if end > available:
        raise RequestRefused(
            422, "data_end_after_available_end", "The end is after the available end.", dataset=DATASET,
            start=iso(start), end=iso(end), available_start=AVAILABLE_START, available_end=iso(available),
        )  # fmt: skip
    if schema == "bbo-1m" and end - start > MAX_QUOTE_MINUTES * MINUTE_NS:
        raise RequestRefused(504, "gateway_timeout", "The remote gateway timed out.")
    limit = params.get("limit", "")
    stype_in, stype_out = parse_stypes(params)
    return RangeQuery(
        schema=schema,
        symbols=parse_symbols(params),
        stype_in=stype_in,
        start=start,
        end=end,
        limit=int(limit) if limit.isdigit() and int(limit) else None,
        stype_out=stype_out,
    )


def check_dataset(params: Params) -> None:
    if params.get("dataset") != DATASET:
        raise RequestRefused(422, "dataset_invalid", f"Only {DATASET} is here.")


def parse_schema(params: Params) -> str:
    if params.get("schema") not in USD_PER_GB:
        raise RequestRefused(422, "data_schema_not_supported", f"Schemas here are {', '.join(USD_PER_GB)}.")
    return params["schema"]


def parse_symbols(params: Params) -> tuple[str, ...]:
    return tuple(params.get("symbols", "").split(","))


def parse_stypes(params: Params) -> tuple[str, str]:
    """`stype_in` and `stype_out`."""
    pair = params.get("stype_in", "raw_symbol"), params.get("stype_out", "instrument_id")
    if pair not in STYPE_PAIRS:
        raise RequestRefused(422, "symbology_invalid_request", "Unsupported symbology combination.")
    return pair


def parse_instant(text: str) -> int:
    """Nanoseconds UTC from a number, a date or ISO 8601 (UTC where it names no offset)."""
    try:
        if text.isdigit():
            return int(text)
        instant = datetime.fromisoformat(text)
        return to_ns(instant if instant.tzinfo else instant.replace(tzinfo=UTC))
    except ValueError:
        raise RequestRefused(422, "data_time_range_invalid", f"{text!r} is no instant.") from None


def parse_date(text: str) -> date:
    try:
        return date.fromisoformat(text[:10])
    except ValueError:
        raise RequestRefused(422, "data_time_range_invalid", f"{text!r} is no date.") from None


def available_end(scenario: Scenario) -> int:
    """The exclusive end of the data, which includes the minute that ends now."""
    return to_ns(scenario.shown) + 1


def midnight_ns(day: date) -> int:
    """The beginning of a UTC day in nanoseconds."""
    return to_ns(datetime(day.year, day.month, day.day, tzinfo=UTC))


def iso(ns: int) -> str:
    return f"{np.datetime64(ns, 'ns')}Z"
