"""Databento's stand-in: the historical API as the official client asks it, answering real DBN.

Schemas `definition`, `bbo-1m`, `statistics` and `trades` of the options on NQ futures, with the
futures themselves and a few user-defined spreads among the definitions. A parent brings all its
instruments, answers carry the symbol mapping of their days, ids are the same in all of them.
Quotes are of the minutes in which a book changed. Statistics come preliminary and then final:
settlements at the close and 90 minutes later, open interest and cleared volume four and
seventeen hours after it.

An account is whatever key arrives; prices are those of the vendor's list. A question for more
than four hours of quotes times out, as large ones do at the vendor.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import numpy.typing as npt
import orjson
import polars as pl
import zstandard
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from nq_pipeline.clock import NS_PER_S, from_ns, to_ns
from nq_pipeline.market import sessions
from nq_pipeline.market.contracts import ROOTS
from nq_pipeline.market.products import NQ
from nq_pipeline.sandbox.faults import WorldOf, serve
from nq_pipeline.sandbox.market import Market, previous_trade_date
from nq_pipeline.sandbox.world import World

DATASET = "GLBX.MDP3"
SINCE = "2010-06-06T00:00:00.000000000Z"
USD_PER_GB = {"definition": 1.70, "bbo-1m": 18.0, "statistics": 1.00, "trades": 28.0}
"""The vendor's list of June 2026, as a third party recorded it."""
LAYOUTS = {
    "definition": "InstrumentDefMsg",
    "bbo-1m": "BBOMsg",
    "statistics": "StatMsg",
    "trades": "TradeMsg",
}
RTYPES = {"definition": 19, "bbo-1m": 196, "statistics": 24, "trades": 0}

DAY_NS, MINUTE_NS = 86_400 * NS_PER_S, 60 * NS_PER_S
MOST_MINUTES = 240
UNDEF_PRICE = np.iinfo(np.int64).max
UNDEF_TIME = np.iinfo(np.uint64).max
PRELIMINARY, FINAL = 2, 3
"""`stat_flags` of an actual settlement, without and with the bit for final."""

BOOK = pl.Schema(
    {
        "instrument_id": pl.Int64(),
        "bid": pl.Float64(),
        "bid_size": pl.Int64(),
        "ask": pl.Float64(),
        "ask_size": pl.Int64(),
        "last": pl.Float64(),
        "last_ts": pl.Datetime("ns", "UTC"),
        "t": pl.Int64(),
    }
)
"""Columns from which `bbo-1m` is made; `t` is the end of the minute."""
SIDES = ("bid", "bid_size", "ask", "ask_size")

Array = npt.NDArray[Any]


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
    return [
        Route(f"/v0/{name}", serve(_endpoint(answer), world_of), methods=[verb])
        for name, (verb, answer) in ENDPOINTS.items()
    ]


def _endpoint(answer: Callable[[Mapping[str, str], World], Any]) -> Callable[..., Response]:
    """Key, faults and errors around a function of (parameters, world): JSON, or bytes as they are."""

    def endpoint(request: Request, body: bytes, world: World) -> Response:
        form = body.decode("ascii", "replace") if request.method == "POST" else request.url.query
        try:
            _admit(request, world)
            found = answer(dict(parse_qsl(form)), world)
        except Refused as refused:
            headers = {"Retry-After": "60"} if refused.status == 429 else None
            return _json({"detail": refused.detail}, refused.status, headers)
        return (
            Response(found, media_type="application/octet-stream")
            if isinstance(found, bytes)
            else _json(found)
        )

    return endpoint


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(value), status, headers, media_type="application/json")


def _admit(request: Request, world: World) -> None:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    try:
        key = base64.b64decode(token, validate=True).decode().partition(":")[0]
    except (binascii.Error, UnicodeDecodeError):
        key = ""
    if scheme.lower() != "basic" or not key:
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
    layout = _layout(_schema(asked))
    kinds = {name: layout[name] for name in layout.names or () if not name.startswith("_")}
    words = {"S": "char", "u": "uint", "i": "int"}
    return [
        {"name": name, "type": words[kind.kind] + ("" if kind.kind == "S" else f"{8 * kind.itemsize}_t")}
        for name, kind in kinds.items()
    ]


def list_unit_prices(asked: Mapping[str, str], world: World) -> Any:
    return [{"mode": mode, "unit_prices": USD_PER_GB} for mode in ("historical", "historical-streaming")]


def get_dataset_range(asked: Mapping[str, str], world: World) -> Any:
    _dataset(asked)
    span = {"start": SINCE, "end": _iso(_available_end(world))}
    return {**span, "schema": dict.fromkeys(USD_PER_GB, span)}


def get_dataset_condition(asked: Mapping[str, str], world: World) -> Any:
    _dataset(asked)
    last = min(_day(asked.get("end_date", "2100-01-01")), world.shown.astimezone(UTC).date())
    first = _day(asked.get("start_date", last.isoformat()))
    days = [first + timedelta(n) for n in range(min((last - first).days + 1, 3660))]
    return [
        {"date": day.isoformat(), "condition": "available", "last_modified_date": day.isoformat()}
        for day in days
        if _sessions_of(to_ns(_midnight(day)), to_ns(_midnight(day)) + DAY_NS)
    ]


def get_record_count(asked: Mapping[str, str], world: World) -> Any:
    return len(_answer(_question(asked, world), world)[0])


def get_billable_size(asked: Mapping[str, str], world: World) -> Any:
    return _answer(_question(asked, world), world)[0].nbytes


def get_cost(asked: Mapping[str, str], world: World) -> Any:
    question = _question(asked, world)
    return _answer(question, world)[0].nbytes / 2**30 * USD_PER_GB[question.schema]


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
    import databento_dbn as dbn

    if world.fault == "not_entitled":
        raise Refused(
            422,
            "dataset_unavailable_range",
            f"Part or all of your request for dataset '{DATASET}' requires a subscription and/or license to "
            f"access. Try again with an end time before {_iso(to_ns(world.now - timedelta(days=1)))}.",
        )
    question = _question(asked, world)
    array, instruments = _answer(question, world)
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


def _question(asked: Mapping[str, str], world: World) -> Question:
    _dataset(asked)
    schema, available = _schema(asked), _available_end(world)
    start = _instant(asked.get("start", ""))
    end = _instant(asked["end"]) if "end" in asked else start // DAY_NS * DAY_NS + DAY_NS
    if start >= end:
        raise Refused(422, "data_time_range_start_on_or_after_end", "The start is on or after the end.")
    if end > available:
        raise Refused(
            422, "data_end_after_available_end", "The end is after the available end.", dataset=DATASET,
            start=_iso(start), end=_iso(end), available_start=SINCE, available_end=_iso(available),
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


def _instant(text: str) -> int:
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


def _iso(ns: int) -> str:
    return f"{np.datetime64(ns, 'ns')}Z"


# ── instruments ─────────────────────────────────────────────────────────────────────────────────


def _sessions_of(start: int, end: int) -> list[sessions.Session]:
    """The sessions that trade in [start, end)."""
    first, last = from_ns(start).date(), from_ns(end).date()
    return [
        s
        for s in sessions.sessions(first - timedelta(1), last + timedelta(4))
        if any(to_ns(opens) < end and to_ns(closes) > start for opens, closes in s.segments)
    ]


def _instruments(
    market: Market, symbols: tuple[str, ...], stype_in: str, start: int, end: int
) -> pl.DataFrame:
    """The instruments a question means, of all sessions it touches; `Refused` when there are none."""
    days = [s.trade_date for s in _sessions_of(start, end)]
    everything = pl.concat([_universe(market, day) for day in days]) if days else _universe(market, None)
    if "ALL_SYMBOLS" in symbols:
        chosen = everything
    elif stype_in in ("parent", "raw_symbol"):
        chosen = everything.filter(pl.col(stype_in).is_in(symbols))
    else:
        raise Refused(422, "symbology_invalid_request", f"stype_in {stype_in} is not supported here.")
    if chosen.is_empty():
        raise Refused(422, "symbology_invalid_request", "None of the symbols could be resolved.")
    return chosen.unique("instrument_id", keep="last", maintain_order=True)


@lru_cache(maxsize=8)
def _universe(market: Market, trade_date: date | None) -> pl.DataFrame:
    """Options, futures and spreads of a trade date; no rows for None."""
    listed = market.listed(trade_date or date(2025, 6, 10))
    options = listed.select(
        pl.col("instrument_id").cast(pl.Int64),
        "raw_symbol",
        (pl.col("root") + ".OPT").alias("parent"),
        pl.col("option_type").alias("instrument_class"),
        "root",
        "strike",
        "expiration",
        "exercise_style",
        "underlying",
    )
    expires = pl.col("expiration").dt
    futures = market.futures(sessions.session(trade_date or date(2025, 6, 10)).open).select(
        (expires.year().cast(pl.Int64) * 100 + expires.month()).alias("instrument_id"),
        pl.col("symbol").alias("raw_symbol"),
        pl.lit(f"{NQ.code}.FUT").alias("parent"),
        pl.lit("F").alias("instrument_class"),
        pl.lit(NQ.code).alias("root"),
        pl.lit(None, pl.Float64).alias("strike"),
        "expiration",
        pl.lit("").alias("exercise_style"),
        pl.lit("").alias("underlying"),
    )
    first = options.group_by("parent", maintain_order=True).first()
    numbers = (
        pl.col("parent").replace_strict([f"{root}.OPT" for root in ROOTS], range(len(ROOTS))) + 2_900_001
    )
    spreads = first.with_columns(
        numbers.cast(pl.Int64).alias("instrument_id"),
        pl.concat_str(pl.lit("UD:1V: VT "), numbers).alias("raw_symbol"),
        pl.lit("T").alias("instrument_class"),
        pl.lit(None, pl.Float64).alias("strike"),
    ).select(options.columns)
    ids = pl.DataFrame(futures.select(underlying="raw_symbol", underlying_id="instrument_id"))
    whole = pl.concat([options, futures, spreads]).join(
        ids, on="underlying", how="left", maintain_order="left"
    )
    return whole if trade_date else whole.clear()


# ── records ─────────────────────────────────────────────────────────────────────────────────────


def _answer(question: Question, world: World) -> tuple[Array, pl.DataFrame]:
    """Records and the instruments they are of, as the world's fault lets them be."""
    array, instruments = _records(world.market, question)
    if world.fault == "empty":
        return array[:0], instruments.clear()
    return (_malformed(question.schema, array) if world.fault == "malformed" else array), instruments


@lru_cache(maxsize=8)
def _records(market: Market, question: Question) -> tuple[Array, pl.DataFrame]:
    """Made once: the price is asked before the records are."""
    instruments = _instruments(market, question.symbols, question.stype_in, question.start, question.end)
    build = {"definition": _definitions, "bbo-1m": _quotes, "statistics": _statistics, "trades": _trades}
    array = build[question.schema](market, instruments, question)
    return array[: question.limit], instruments


def _layout(schema: str) -> np.dtype[Any]:
    import databento_dbn

    return np.dtype(list(getattr(databento_dbn.v3, LAYOUTS[schema])._dtypes))


def _blank(schema: str, ids: Array) -> Array:
    """Records with their heads filled in, prices undefined and the rest zero."""
    array = np.zeros(len(ids), _layout(schema))
    for name, (kind, *_) in (array.dtype.fields or {}).items():
        if kind == np.int64:
            array[name] = UNDEF_PRICE
    array["length"], array["rtype"] = array.dtype.itemsize // 4, RTYPES[schema]
    array["publisher_id"], array["instrument_id"] = 1, ids
    return array


def _fixed(prices: pl.Series) -> Array:
    """Prices as integers of 1e-9; null is undefined."""
    filled = prices.fill_null(0).to_numpy()
    return np.where(
        prices.is_null().to_numpy(), UNDEF_PRICE, np.round(filled * 100).astype(np.int64) * 10_000_000
    )


def _bytes(texts: pl.Series) -> Array:
    return np.array(texts.fill_null("").to_list(), "S")


def _definitions(market: Market, instruments: pl.DataFrame, question: Question) -> Array:
    """A snapshot of everything at each midnight UTC; a spread has a record for each of its two legs."""
    first = -(-question.start // DAY_NS) * DAY_NS
    snapshots = []
    for midnight in range(first, question.end, DAY_NS):
        if not _sessions_of(midnight, midnight + DAY_NS):
            continue
        spreads = instruments.filter(pl.col("instrument_class") == "T")
        rows = pl.concat([instruments, spreads])
        a = _blank("definition", rows["instrument_id"].to_numpy())
        a["ts_event"], a["ts_recv"] = midnight - 7 * 3600 * NS_PER_S, midnight
        a["expiration"] = rows["expiration"].cast(pl.Int64).to_numpy()
        a["activation"] = a["expiration"] - np.uint64(60 * DAY_NS)
        a["strike_price"] = _fixed(rows["strike"])
        a["unit_of_measure_qty"], a["display_factor"] = int(NQ.multiplier) * NS_PER_S, 10_000_000
        a["raw_instrument_id"] = a["instrument_id"]
        a["underlying_id"] = rows["underlying_id"].fill_null(0).to_numpy()
        a["contract_multiplier"] = a["decay_quantity"] = a["original_contract_size"] = np.iinfo(np.int32).max
        a["maturity_year"] = rows["expiration"].dt.year().to_numpy()
        a["maturity_month"] = rows["expiration"].dt.month().to_numpy()
        a["maturity_day"] = a["maturity_week"] = 255
        option = np.isin(kinds := _bytes(rows["instrument_class"]), (b"C", b"P"))
        a["raw_symbol"], a["asset"], a["group"] = _bytes(rows["raw_symbol"]), _bytes(rows["root"]), b"NQ"
        a["underlying"], a["instrument_class"] = _bytes(rows["underlying"]), kinds
        a["currency"], a["exchange"], a["unit_of_measure"] = b"USD", b"XCME", b"IPNT"
        a["strike_price_currency"] = np.where(option, b"USD", b"")
        a["security_type"] = np.where(option, b"OOF", np.where(kinds == b"F", b"FUT", b"MLEG"))
        style = np.where(rows["exercise_style"].to_numpy() == "american", b"A", b"E")
        a["cfi"] = np.where(
            option, np.char.add(np.char.add(np.char.add(b"O", kinds), style), b"FPS"), b"FFIXSX"
        )
        a["match_algorithm"], a["security_update_action"] = b"F", b"A"
        a["user_defined_instrument"] = np.where(kinds == b"T", b"Y", b"N")
        a["leg_count"] = np.where(kinds == b"T", 2, 0)
        a["leg_index"][instruments.height :] = 1
        snapshots.append(a)
    return np.concatenate(snapshots) if snapshots else _blank("definition", np.empty(0, np.int64))


def _quotes(market: Market, instruments: pl.DataFrame, question: Question) -> Array:
    """A row per instrument and minute in which its book changed, stamped with the minute's end."""
    first = -(-question.start // MINUTE_NS) * MINUTE_NS
    stamps = [t for t in range(first, question.end, MINUTE_NS) if _open_before(t)]
    ends = np.array(stamps, np.int64)
    futures = [
        market.futures(from_ns(t))
        .join(instruments, left_on="symbol", right_on="raw_symbol")
        .with_columns(t=pl.lit(t, pl.Int64))
        .select(list(BOOK))
        for t in stamps
    ]
    rows = pl.concat([_option_quotes(market, instruments, ends), *futures]).sort("t", "instrument_id")
    a = _blank("bbo-1m", rows["instrument_id"].to_numpy())
    a["ts_recv"] = rows["t"].to_numpy()
    a["ts_event"] = rows["last_ts"].cast(pl.Int64).cast(pl.UInt64).fill_null(UNDEF_TIME).to_numpy()
    a["price"], a["size"] = _fixed(rows["last"]), rows["last"].is_not_null().to_numpy()
    a["side"], a["flags"], a["sequence"] = b"N", 128, np.arange(len(a))
    for side in ("bid", "ask"):
        a[f"{side}_px_00"] = _fixed(rows[side])
        a[f"{side}_sz_00"] = rows[f"{side}_size"].fill_null(0).to_numpy()
        a[f"{side}_ct_00"] = -(-a[f"{side}_sz_00"] // 4)
    return a


def _option_quotes(market: Market, instruments: pl.DataFrame, ends: Array) -> pl.DataFrame:
    listed = _listed(market, instruments, ends)
    if listed.is_empty() or not len(ends):
        return pl.DataFrame(schema=BOOK)
    # The minute before each tells whether a book changed in it.
    known = np.union1d(ends, ends - MINUTE_NS)
    many = listed[np.tile(np.arange(listed.height), len(known))]
    books = market.quotes(many, np.repeat(known, listed.height)).select(SIDES)
    shape = (len(known), listed.height)
    values = [books[name].cast(pl.Float64).fill_null(-1.0).to_numpy().reshape(shape) for name in SIDES]
    was_open = np.array([_open_before(int(t)) for t in known])
    before = np.searchsorted(known, ends - MINUTE_NS)
    now = np.searchsorted(known, ends)
    changed = np.zeros((len(ends), listed.height), bool)
    for value in values:
        earlier = np.where(was_open[before][:, None], value[before], -1.0)
        changed |= value[now] != earlier
    minute, contract = np.nonzero(changed)
    rows = books[(now[minute] * listed.height + contract)].with_columns(
        instrument_id=listed["instrument_id"].gather(contract).cast(pl.Int64), t=pl.Series(ends[minute])
    )
    day = sessions.trade_date(from_ns(int(ends[-1]) - 1))
    done = pl.concat([market.trades(previous_trade_date(day)), market.trades(day)]).select(
        pl.col("instrument_id").cast(pl.Int64), pl.col("ts_event").cast(pl.Int64), last="price"
    )
    done = done.with_columns(last_ts=pl.col("ts_event").cast(pl.Datetime("ns", "UTC"))).sort("ts_event")
    return rows.join_asof(
        done, left_on="t", right_on="ts_event", by="instrument_id", check_sortedness=False
    ).select(list(BOOK))


def _listed(market: Market, instruments: pl.DataFrame, ends: Array) -> pl.DataFrame:
    """The options among the instruments, as the market lists them."""
    days = sorted({sessions.trade_date(from_ns(int(t) - 1)) for t in (ends[[0, -1]] if len(ends) else [])})
    if not days:
        return market.listed(date(2025, 6, 10)).clear()
    listed = pl.concat([market.listed(day) for day in days]).unique("instrument_id", maintain_order=True)
    return listed.filter(pl.col("instrument_id").is_in(instruments["instrument_id"].implode()))


def _open_before(t: int) -> bool:
    """Whether the market traded in the minute that ends at `t`."""
    return sessions.is_open(from_ns(t - NS_PER_S))


def _statistics(market: Market, instruments: pl.DataFrame, question: Question) -> Array:
    """Settlements, session lows and highs, cleared volume and open interest of the sessions that closed."""
    wanted = instruments.select("instrument_id")
    parts = []
    for session in _sessions_of(question.start - 5 * DAY_NS, question.end):
        close = to_ns(session.close)
        if close >= question.end:
            continue
        closed = _state(market, session.close, wanted)
        following = _state(market, sessions.next_open(session.close), wanted)
        preliminary = following.with_columns((pl.col("open_interest") * 0.98).floor().cast(pl.Int64))
        hour = 3600 * NS_PER_S
        publications = [
            (close, 3, closed, "settlement", PRELIMINARY),
            (close, 4, closed, "low", 0),
            (close, 5, closed, "high", 0),
            (close + hour * 3 // 2, 3, closed, "settlement", FINAL),
            (close + 4 * hour, 6, closed.filter(pl.col("volume") > 0), "volume", 0),
            (close + 4 * hour, 9, preliminary, "open_interest", 0),
            (close + 17 * hour, 9, following, "open_interest", 0),
        ]
        parts += [
            _statistic(at, stat_type, frame, column, flags, session.trade_date)
            for at, stat_type, frame, column, flags in publications
            if question.start <= at < question.end
        ]
    if not parts:
        return _blank("statistics", np.empty(0, np.int64))
    whole = np.concatenate(parts)
    return whole[np.argsort(whole["ts_recv"], kind="stable")]


def _state(market: Market, instant: datetime, wanted: pl.DataFrame) -> pl.DataFrame:
    return market.chain(instant).with_columns(pl.col("instrument_id").cast(pl.Int64)).join(
        wanted, on="instrument_id", how="semi", maintain_order="left"
    )  # fmt: skip


def _statistic(at: int, stat_type: int, frame: pl.DataFrame, column: str, flags: int, day: date) -> Array:
    known = frame.drop_nulls(column)
    a = _blank("statistics", known["instrument_id"].to_numpy())
    a["ts_recv"], a["ts_event"], a["ts_ref"] = at, at, to_ns(_midnight(day))
    if known[column].dtype.is_float():
        a["price"] = _fixed(known[column])
    else:
        a["quantity"] = known[column].to_numpy()
    a["stat_type"], a["stat_flags"], a["update_action"] = stat_type, flags, 1
    return a


def _trades(market: Market, instruments: pl.DataFrame, question: Question) -> Array:
    days = [s.trade_date for s in _sessions_of(question.start, question.end)]
    done = (
        pl.concat([market.trades(day) for day in days]) if days else market.trades(date(2025, 6, 10)).clear()
    )
    received = pl.col("ts_event").cast(pl.Int64) + 25_000
    rows = done.filter(
        received >= question.start,
        received < question.end,
        pl.col("instrument_id").is_in(instruments["instrument_id"].implode()),
    )
    a = _blank("trades", rows["instrument_id"].to_numpy())
    a["ts_event"] = rows["ts_event"].cast(pl.Int64).to_numpy()
    a["ts_recv"], a["ts_in_delta"] = a["ts_event"] + np.uint64(25_000), 12_000
    a["price"], a["size"] = _fixed(rows["price"]), rows["size"].to_numpy()
    a["action"], a["side"], a["sequence"] = b"T", _bytes(rows["side"]), np.arange(len(a))
    return a


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
        a["ts_recv"][first] = UNDEF_TIME
        a["price"][second] = UNDEF_PRICE
        a["ts_event"][third] = UNDEF_TIME
    return a
