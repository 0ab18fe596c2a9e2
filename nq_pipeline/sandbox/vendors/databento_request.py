"""What Databento's stand-in is asked: read from the parameters of a request, refused in the vendor's way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import numpy as np

from nq_pipeline.clock import to_ns
from nq_pipeline.sandbox.scenario import Scenario
from nq_pipeline.sandbox.synthetic.globex import DAY_NS, MINUTE_NS
from nq_pipeline.sandbox.synthetic.symbols import STYPES

DATASET = "GLBX.MDP3"
SINCE = "2010-06-06T00:00:00.000000000Z"
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
"""The schemas that are here, and the vendor's list of June 2026, as a third party recorded it."""
COMBINATIONS = frozenset({(stype, "instrument_id") for stype in STYPES} | {("instrument_id", "raw_symbol")})
MOST_MINUTES = 240


class RequestRefused(Exception):
    """An error of the vendor's own kind."""

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
class Question:
    """What is asked of a schema; nanoseconds UTC, `end` excluded."""

    schema: str
    symbols: tuple[str, ...]
    stype_in: str
    start: int
    end: int
    limit: int | None = None
    stype_out: str = "instrument_id"


def check_dataset(asked: Mapping[str, str]) -> None:
    if asked.get("dataset") != DATASET:
        raise RequestRefused(422, "dataset_invalid", f"Only {DATASET} is here.")


def schema_of(asked: Mapping[str, str]) -> str:
    if asked.get("schema") not in USD_PER_GB:
        raise RequestRefused(422, "data_schema_not_supported", f"Schemas here are {', '.join(USD_PER_GB)}.")
    return asked["schema"]


def question_of(asked: Mapping[str, str], world: Scenario) -> Question:
    check_dataset(asked)
    schema, available = schema_of(asked), available_end(world)
    start = instant_of(asked.get("start", ""))
    end = instant_of(asked["end"]) if "end" in asked else start // DAY_NS * DAY_NS + DAY_NS
    if start >= end:
        raise RequestRefused(
            422, "data_time_range_start_on_or_after_end", "The start is on or after the end."
        )
    if end > available:
        raise RequestRefused(
            422, "data_end_after_available_end", "The end is after the available end.", dataset=DATASET,
            start=iso(start), end=iso(end), available_start=SINCE, available_end=iso(available),
        )  # fmt: skip
    if schema == "bbo-1m" and end - start > MOST_MINUTES * MINUTE_NS:
        raise RequestRefused(504, "gateway_timeout", "The remote gateway timed out.")
    limit = asked.get("limit", "")
    stype_in, stype_out = stypes_of(asked)
    return Question(
        schema=schema,
        symbols=symbols_of(asked),
        stype_in=stype_in,
        start=start,
        end=end,
        limit=int(limit) if limit.isdigit() and int(limit) else None,
        stype_out=stype_out,
    )


def symbols_of(asked: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(asked.get("symbols", "").split(","))


def stypes_of(asked: Mapping[str, str]) -> tuple[str, str]:
    """What symbols are asked by and resolved to."""
    pair = asked.get("stype_in", "raw_symbol"), asked.get("stype_out", "instrument_id")
    if pair not in COMBINATIONS:
        raise RequestRefused(422, "symbology_invalid_request", "Unsupported symbology combination.")
    return pair


def available_end(world: Scenario) -> int:
    """Exclusive, so that the minute that ends right now is there."""
    return to_ns(world.shown) + 1


def instant_of(text: str) -> int:
    """Nanoseconds UTC as a number, a date or ISO 8601."""
    try:
        return int(text) if text.isdigit() else to_ns(utc(text))
    except ValueError:
        raise RequestRefused(422, "data_time_range_invalid", f"{text!r} is no instant.") from None


def day_of(text: str) -> date:
    try:
        return date.fromisoformat(text[:10])
    except ValueError:
        raise RequestRefused(422, "data_time_range_invalid", f"{text!r} is no date.") from None


def utc(text: str) -> datetime:
    """An instant in ISO 8601; UTC where it names no offset."""
    read = datetime.fromisoformat(text)
    return read if read.tzinfo else read.replace(tzinfo=UTC)


def midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def iso(ns: int) -> str:
    return f"{np.datetime64(ns, 'ns')}Z"
