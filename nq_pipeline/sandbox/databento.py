"""Databento's stand-in: the historical API as the official client asks it, answering real DBN.

The options on NQ futures, with the futures themselves and a few user-defined spreads among the
definitions. A parent brings all its instruments, answers carry the symbol mapping of their days,
ids are the same in all of them. Quotes are of the minutes in which a book changed. Statistics come
preliminary and then final: settlements at the close and 90 minutes later, open interest and
cleared volume four and seventeen hours after it. `mbo` has the orders that trade and no others.

An account is whatever key arrives; it has its batch jobs (`databento_batch`), and everything it
asked is listed at `/requests`, with the bytes it would be billed for. Prices are those of the
vendor's list. A question for more than four hours of quotes times out, as large ones do at the vendor.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import orjson
import polars as pl
import zstandard
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from nq_pipeline.clock import from_ns, to_ns
from nq_pipeline.sandbox.databento_account import Account, account_of
from nq_pipeline.sandbox.faults import WorldOf, serve
from nq_pipeline.sandbox.globex import (
    DAY_NS,
    MINUTE_NS,
    UNDEF_PRICE,
    UNDEF_TIME,
    Array,
    daily_definitions,
    layout,
    quotes,
    sessions_of,
    statistics,
    universe,
)
from nq_pipeline.sandbox.market import AnyMarket
from nq_pipeline.sandbox.tape import of_instruments, tape
from nq_pipeline.sandbox.world import World

DATASET = "GLBX.MDP3"
SINCE = "2010-06-06T00:00:00.000000000Z"
USD_PER_GB = {
    "definition": 1.70,
    "bbo-1m": 18.0,
    "statistics": 1.00,
    "trades": 28.0,
    "ohlcv-1m": 70.0,
    "ohlcv-1d": 190.0,
    "mbo": 1.80,
}
"""The vendor's list of June 2026, as a third party recorded it."""
MOST_MINUTES = 240


class Refused(Exception):
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


def routes(world_of: WorldOf) -> list[BaseRoute]:
    """The vendor's addresses below its mount point."""
    from nq_pipeline.sandbox import databento_batch

    return [
        Route("/requests", asked_so_far, methods=["GET"]),
        *databento_batch.routes(world_of),
        *(
            Route(f"/v0/{name}", serve(endpoint(name, answer), world_of), methods=[verb])
            for name, (verb, answer) in ENDPOINTS.items()
        ),
    ]


def asked_so_far(request: Request) -> Response:
    """Everything the account asked, oldest first: what, with which parameters, and what it is billed for."""
    return answered(list(account_of(_key(request)).requests))


def endpoint(name: str, answer: Callable[[Mapping[str, str], World], Any]) -> Callable[..., Response]:
    """Key, faults and errors around a function of (parameters, world): JSON, or bytes as they are."""

    def plain(request: Request, asked: Mapping[str, str], world: World, account: Account) -> Response:
        found = answer(asked, world)
        if not isinstance(found, bytes):
            return answered(found)
        account.bill(name, recorded(question_of(asked, world), world)[0].nbytes)
        return Response(found, media_type="application/octet-stream")

    return admitted(name, plain)


def admitted(
    name: str, answer: Callable[[Request, Mapping[str, str], World, Account], Response]
) -> Callable[..., Response]:
    """Key, faults and errors around a function of (request, parameters, world, account)."""

    def respond(request: Request, body: bytes, world: World) -> Response:
        form = body.decode("ascii", "replace") if request.method == "POST" else request.url.query
        asked, account = dict(parse_qsl(form)), account_of(_key(request))
        account.note(name, asked)
        try:
            _admit(request, world)
            return answer(request, asked, world, account)
        except Refused as refused:
            headers = {"Retry-After": "60"} if refused.status == 429 else None
            return answered({"detail": refused.detail}, refused.status, headers)

    return respond


def answered(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(value), status, headers, media_type="application/json")


def _key(request: Request) -> str:
    """The key that came; empty where there is none."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    with suppress(binascii.Error, UnicodeDecodeError):
        if scheme.lower() == "basic":
            return base64.b64decode(token, validate=True).decode().partition(":")[0]
    return ""


def _admit(request: Request, world: World) -> None:
    if not _key(request):
        refused = Refused(401, "auth_authentication_failed", "Authentication failed.")
        refused.detail = str(refused)  # the one error whose detail is a bare sentence
        raise refused
    if world.fault in ("blocked", "challenged"):
        raise Refused(403, "auth_account_locked", "This account is locked.")
    if world.fault in ("rate_limited", "penalty"):
        raise Refused(429, "rate_limit_exceeded", "Too many requests.")


# ── endpoints ───────────────────────────────────────────────────────────────────────────────────


def list_publishers(asked: Mapping[str, str], world: World) -> Any:
    return [{"publisher_id": 1, "dataset": DATASET, "venue": "GLBX", "description": "CME Globex MDP 3.0"}]


def list_datasets(asked: Mapping[str, str], world: World) -> Any:
    return [DATASET]


def list_schemas(asked: Mapping[str, str], world: World) -> Any:
    return list(USD_PER_GB)


def list_fields(asked: Mapping[str, str], world: World) -> Any:
    record = _layout(_schema(asked))
    kinds = {name: record[name] for name in record.names or () if not name.startswith("_")}
    words = {"S": "char", "u": "uint", "i": "int"}
    return [
        {"name": name, "type": words[kind.kind] + ("" if kind.kind == "S" else f"{8 * kind.itemsize}_t")}
        for name, kind in kinds.items()
    ]


def list_unit_prices(asked: Mapping[str, str], world: World) -> Any:
    return [{"mode": mode, "unit_prices": USD_PER_GB} for mode in ("historical", "historical-streaming")]


def get_dataset_range(asked: Mapping[str, str], world: World) -> Any:
    _dataset(asked)
    span = {"start": SINCE, "end": iso(_available_end(world))}
    return {**span, "schema": dict.fromkeys(USD_PER_GB, span)}


def get_dataset_condition(asked: Mapping[str, str], world: World) -> Any:
    _dataset(asked)
    last = min(_day(asked.get("end_date", "2100-01-01")), world.shown.astimezone(UTC).date())
    first = _day(asked.get("start_date", last.isoformat()))
    days = [first + timedelta(n) for n in range(min((last - first).days + 1, 3660))]
    return [
        {"date": day.isoformat(), "condition": "available", "last_modified_date": day.isoformat()}
        for day in days
        if sessions_of(to_ns(_midnight(day)), to_ns(_midnight(day)) + DAY_NS)
    ]


def get_record_count(asked: Mapping[str, str], world: World) -> Any:
    return len(recorded(question_of(asked, world), world)[0])


def get_billable_size(asked: Mapping[str, str], world: World) -> Any:
    return recorded(question_of(asked, world), world)[0].nbytes


def get_cost(asked: Mapping[str, str], world: World) -> Any:
    question = question_of(asked, world)
    return recorded(question, world)[0].nbytes / 2**30 * USD_PER_GB[question.schema]


def resolve(asked: Mapping[str, str], world: World) -> Any:
    """`symbology.resolve`: to instrument ids, for whole days."""
    _dataset(asked)
    if asked.get("stype_out") != "instrument_id":
        raise Refused(422, "symbology_invalid_request", "Unsupported symbology combination.")
    first = _day(asked.get("start_date", ""))
    last = _day(asked.get("end_date", (first + timedelta(1)).isoformat()))
    if first >= last:
        raise Refused(422, "data_date_range_start_on_or_after_end", "The start is on or after the end.")
    symbols = tuple(asked.get("symbols", "").split(","))
    stype_in = asked.get("stype_in", "raw_symbol")
    found = _instruments(world.market, symbols, stype_in, to_ns(_midnight(first)), to_ns(_midnight(last)))
    by = "parent" if stype_in == "parent" else "raw_symbol"
    span = {"d0": first.isoformat(), "d1": last.isoformat()}
    result = {
        symbol: [{**span, "s": str(i)} for i in found.filter(pl.col(by) == symbol)["instrument_id"]]
        for symbol in symbols
    }
    missing = [symbol for symbol, spans in result.items() if not spans]
    status = 2 if len(missing) == len(symbols) else int(bool(missing))
    return {
        "result": result,
        "symbols": list(symbols),
        "stype_in": stype_in,
        "stype_out": "instrument_id",
        "start_date": first.isoformat(),
        "end_date": last.isoformat(),
        "partial": [],
        "not_found": missing,
        "message": ("OK", "Partially resolved", "Not found")[status],
        "status": status,
    }


def get_range(asked: Mapping[str, str], world: World) -> bytes:
    """`timeseries.get_range`: metadata and records, one zstd frame."""
    entitled(world)
    return encoded(question_of(asked, world), world)


def entitled(world: World) -> None:
    """Raise what the vendor says where the plan does not include the data."""
    if world.fault == "not_entitled":
        raise Refused(
            422,
            "dataset_unavailable_range",
            f"Part or all of your request for dataset '{DATASET}' requires a subscription and/or license to "
            f"access. Try again with an end time before {iso(to_ns(world.now - timedelta(days=1)))}.",
        )


def encoded(question: Question, world: World) -> bytes:
    """Metadata and records, one zstd frame."""
    import databento_dbn as dbn

    array, instruments = recorded(question, world)
    found = set(instruments["parent" if question.stype_in == "parent" else "raw_symbol"])
    first, last = from_ns(question.start).date(), from_ns(question.end - 1).date() + timedelta(1)
    head = dbn.Metadata(
        dataset=DATASET,
        schema=dbn.Schema.from_str(question.schema),
        stype_in=dbn.SType.from_str(question.stype_in),
        stype_out=dbn.SType.from_str("instrument_id"),
        start=question.start,
        end=question.end,
        limit=question.limit,
        symbols=list(question.symbols),
        partial=[],
        not_found=[symbol for symbol in question.symbols if symbol not in found],
        mappings=[
            SimpleNamespace(
                raw_symbol=symbol,
                intervals=[SimpleNamespace(start_date=first, end_date=last, symbol=str(number))],
            )
            for symbol, number in instruments.select("raw_symbol", "instrument_id").iter_rows()
        ],
    )  # fmt: skip
    return zstandard.compress(head.encode() + array.tobytes(), 1)


ENDPOINTS: dict[str, tuple[str, Callable[[Mapping[str, str], World], Any]]] = {
    "metadata.list_publishers": ("GET", list_publishers),
    "metadata.list_datasets": ("GET", list_datasets),
    "metadata.list_schemas": ("GET", list_schemas),
    "metadata.list_fields": ("GET", list_fields),
    "metadata.list_unit_prices": ("GET", list_unit_prices),
    "metadata.get_dataset_condition": ("GET", get_dataset_condition),
    "metadata.get_dataset_range": ("GET", get_dataset_range),
    "metadata.get_record_count": ("POST", get_record_count),
    "metadata.get_billable_size": ("POST", get_billable_size),
    "metadata.get_cost": ("POST", get_cost),
    "symbology.resolve": ("POST", resolve),
    "timeseries.get_range": ("POST", get_range),
}


# ── questions ───────────────────────────────────────────────────────────────────────────────────


def _dataset(asked: Mapping[str, str]) -> None:
    if asked.get("dataset") != DATASET:
        raise Refused(422, "dataset_invalid", f"Only {DATASET} is here.")


def _schema(asked: Mapping[str, str]) -> str:
    if asked.get("schema") not in USD_PER_GB:
        raise Refused(422, "data_schema_not_supported", f"Schemas here are {', '.join(USD_PER_GB)}.")
    return asked["schema"]


def question_of(asked: Mapping[str, str], world: World) -> Question:
    _dataset(asked)
    schema, available = _schema(asked), _available_end(world)
    start = instant_of(asked.get("start", ""))
    end = instant_of(asked["end"]) if "end" in asked else start // DAY_NS * DAY_NS + DAY_NS
    if start >= end:
        raise Refused(422, "data_time_range_start_on_or_after_end", "The start is on or after the end.")
    if end > available:
        raise Refused(
            422, "data_end_after_available_end", "The end is after the available end.", dataset=DATASET,
            start=iso(start), end=iso(end), available_start=SINCE, available_end=iso(available),
        )  # fmt: skip
    if schema == "bbo-1m" and end - start > MOST_MINUTES * MINUTE_NS:
        raise Refused(504, "gateway_timeout", "The remote gateway timed out.")
    limit = asked.get("limit", "")
    return Question(
        schema=schema,
        symbols=tuple(asked.get("symbols", "").split(",")),
        stype_in=asked.get("stype_in", "raw_symbol"),
        start=start,
        end=end,
        limit=int(limit) if limit.isdigit() and int(limit) else None,
    )


def _available_end(world: World) -> int:
    """Exclusive, so that the minute that ends right now is there."""
    return to_ns(world.shown) + 1


def instant_of(text: str) -> int:
    """Nanoseconds UTC as a number, a date or ISO 8601."""
    try:
        return int(text) if text.isdigit() else to_ns(datetime.fromisoformat(text).replace(tzinfo=UTC))
    except ValueError:
        raise Refused(422, "data_time_range_invalid", f"{text!r} is no instant.") from None


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text[:10])
    except ValueError:
        raise Refused(422, "data_time_range_invalid", f"{text!r} is no date.") from None


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def iso(ns: int) -> str:
    return f"{np.datetime64(ns, 'ns')}Z"


# ── instruments ─────────────────────────────────────────────────────────────────────────────────


def _instruments(
    market: AnyMarket, symbols: tuple[str, ...], stype_in: str, start: int, end: int
) -> pl.DataFrame:
    """The instruments a question means, of all sessions it touches; `Refused` when there are none."""
    days = [s.trade_date for s in sessions_of(start, end)]
    everything = pl.concat([universe(market, day) for day in days]) if days else universe(market, None)
    if "ALL_SYMBOLS" in symbols:
        chosen = everything
    elif stype_in in ("parent", "raw_symbol"):
        chosen = everything.filter(pl.col(stype_in).is_in(symbols))
    else:
        raise Refused(422, "symbology_invalid_request", f"stype_in {stype_in} is not supported here.")
    if chosen.is_empty():
        raise Refused(422, "symbology_invalid_request", "None of the symbols could be resolved.")
    return chosen.unique("instrument_id", keep="last", maintain_order=True)


# ── records ─────────────────────────────────────────────────────────────────────────────────────


def recorded(question: Question, world: World) -> tuple[Array, pl.DataFrame]:
    """Records and the instruments they are of, as the world's fault lets them be."""
    array, instruments = _records(world.market, question)
    if world.fault == "empty":
        return array[:0], instruments.clear()
    return (_malformed(question.schema, array) if world.fault == "malformed" else array), instruments


@lru_cache(maxsize=8)
def _records(market: AnyMarket, question: Question) -> tuple[Array, pl.DataFrame]:
    """Made once: the price is asked before the records are."""
    instruments = _instruments(market, question.symbols, question.stype_in, question.start, question.end)
    span = (question.start, question.end)
    if question.schema == "definition":
        array = daily_definitions(instruments, *span)
    elif question.schema in FROM_THE_TAPE:
        of_tape, made = FROM_THE_TAPE[question.schema]
        array = tape(market).records(of_tape, *span)
        array = made(of_instruments(array, instruments["instrument_id"].sort()))
    else:
        build = {"bbo-1m": quotes, "statistics": statistics}
        array = build[question.schema](market, instruments, *span)
    return array[: question.limit], instruments


def _layout(schema: str) -> np.dtype[Any]:
    import databento_dbn

    named = {"mbo": "MBOMsg", "ohlcv-1d": "OHLCVMsg"}
    if schema not in named:
        return layout(schema)
    return np.dtype(list(getattr(databento_dbn.v3, named[schema])._dtypes))


def _orders(trades: Array) -> Array:
    """Trades as mbo tells them: an order of its own behind each."""
    a = np.zeros(len(trades), _layout("mbo"))
    for name in set(a.dtype.names or ()) & set(trades.dtype.names or ()):
        a[name] = trades[name]
    a["length"], a["rtype"], a["action"] = a.dtype.itemsize // 4, 160, b"T"
    a["order_id"] = (np.uint64(trades["sequence"]) << np.uint64(16)) + np.arange(len(a), dtype=np.uint64)
    return a


def _days(trades: Array) -> Array:
    """A bar per instrument and UTC day, stamped with its midnight."""
    table = pl.DataFrame({n: trades[n] for n in ("instrument_id", "ts_recv", "price", "size")})
    bars = (
        table.with_columns(day=pl.col("ts_recv") // DAY_NS * DAY_NS)
        .group_by("day", "instrument_id", maintain_order=True)
        .agg(
            open=pl.col("price").first(),
            high=pl.col("price").max(),
            low=pl.col("price").min(),
            close=pl.col("price").last(),
            volume=pl.col("size").cast(pl.UInt64).sum(),
        )
        .sort("day", "instrument_id")
    )
    a = np.zeros(bars.height, _layout("ohlcv-1d"))
    a["length"], a["rtype"], a["publisher_id"] = a.dtype.itemsize // 4, 35, 1
    a["ts_event"] = bars["day"].to_numpy()
    for name in ("instrument_id", "open", "high", "low", "close", "volume"):
        a[name] = bars[name].to_numpy()
    return a


FROM_THE_TAPE: dict[str, tuple[str, Callable[[Array], Array]]] = {
    "trades": ("trades", lambda trades: trades),
    "ohlcv-1m": ("ohlcv-1m", lambda bars: bars),
    "ohlcv-1d": ("trades", _days),
    "mbo": ("trades", _orders),
}
"""What a schema is made of, and how."""


def _malformed(schema: str, array: Array) -> Array:
    """One record in twenty with nonsense in it, of four kinds."""
    a = array.copy()
    first, second, third = (slice(start, None, 80) for start in (3, 23, 43))
    a["instrument_id"][63::80] = 4_000_000_000
    if schema == "definition":
        a["strike_price"][first] = UNDEF_PRICE
        a["expiration"][second] = UNDEF_TIME
        a["raw_symbol"][third] = b"\xff\xfe?"
        a["instrument_class"][63::80] = b"?"
    else:
        bar = schema.startswith("ohlcv")
        a["ts_event" if bar else "ts_recv"][first] = UNDEF_TIME
        a["close" if bar else "price"][second] = UNDEF_PRICE
        a["ts_event"][third] = UNDEF_TIME
    return a
