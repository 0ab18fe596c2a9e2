"""Databento's stand-in: the historical API as the official client asks it, answering real DBN.

The options on NQ futures, with the futures themselves and a few user-defined spreads among the
definitions. A parent brings all its instruments, answers carry the symbol mapping of their days,
ids are the same in all of them. Quotes are of the minutes in which a book changed. Statistics come
preliminary and then final: settlements when the exchange first publishes them and 90 minutes after
the close, open interest and cleared volume four and seventeen hours after it. `mbo` has the orders
that trade and no others; `mbp-10` and `status` are not here.

An account is whatever key arrives; it has its batch jobs (`databento_batch`), and everything it
asked is listed at `/requests`, with the bytes it would be billed for. Prices are those of the
vendor's list. A question for more than four hours of quotes times out, as large ones do at the vendor.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, timedelta
from typing import Any
from urllib.parse import parse_qsl

import orjson
import polars as pl
import zstandard
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from nq_pipeline.clock import to_ns
from nq_pipeline.sandbox.scenario import Scenario
from nq_pipeline.sandbox.synthetic.globex import DAY_NS, layout
from nq_pipeline.sandbox.synthetic.symbols import ALL, meant_in
from nq_pipeline.sandbox.vendors.databento_account import Account, account_of
from nq_pipeline.sandbox.vendors.databento_history import encoded, recorded
from nq_pipeline.sandbox.vendors.databento_package import conditions
from nq_pipeline.sandbox.vendors.databento_request import (
    DATASET,
    SINCE,
    USD_PER_GB,
    RequestRefused,
    available_end,
    check_dataset,
    day_of,
    iso,
    midnight,
    question_of,
    schema_of,
    stypes_of,
    symbols_of,
)
from nq_pipeline.sandbox.vendors.faults import WorldOf, serve


def routes(world_of: WorldOf) -> list[BaseRoute]:
    """The vendor's addresses below its mount point."""
    from nq_pipeline.sandbox.vendors import databento_batch

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


def endpoint(name: str, answer: Callable[[Mapping[str, str], Scenario], Any]) -> Callable[..., Response]:
    """Key, faults and errors around a function of (parameters, world): JSON, or bytes as they are."""

    def plain(request: Request, asked: Mapping[str, str], world: Scenario, account: Account) -> Response:
        found = answer(asked, world)
        if not isinstance(found, bytes):
            return answered(found)
        account.bill(name, recorded(question_of(asked, world), world)[0].nbytes)
        return Response(found, media_type="application/octet-stream")

    return admitted(name, plain)


def admitted(
    name: str, answer: Callable[[Request, Mapping[str, str], Scenario, Account], Response]
) -> Callable[..., Response]:
    """Key, faults and errors around a function of (request, parameters, world, account)."""

    def respond(request: Request, body: bytes, world: Scenario) -> Response:
        form = body.decode("ascii", "replace") if request.method == "POST" else request.url.query
        asked, account = dict(parse_qsl(form)), account_of(_key(request))
        account.note(name, asked)
        try:
            _admit(request, world)
            return answer(request, asked, world, account)
        except RequestRefused as refused:
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


def _admit(request: Request, world: Scenario) -> None:
    if not _key(request):
        refused = RequestRefused(401, "auth_authentication_failed", "Authentication failed.")
        refused.detail = str(refused)  # the one error whose detail is a bare sentence
        raise refused
    if world.fault in ("blocked", "challenged"):
        raise RequestRefused(403, "auth_account_locked", "This account is locked.")
    if world.fault in ("rate_limited", "penalty"):
        raise RequestRefused(429, "rate_limit_exceeded", "Too many requests.")


# ── endpoints ───────────────────────────────────────────────────────────────────────────────────


def list_publishers(asked: Mapping[str, str], world: Scenario) -> Any:
    return [{"publisher_id": 1, "dataset": DATASET, "venue": "GLBX", "description": "CME Globex MDP 3.0"}]


def list_datasets(asked: Mapping[str, str], world: Scenario) -> Any:
    return [DATASET]


def list_schemas(asked: Mapping[str, str], world: Scenario) -> Any:
    return list(USD_PER_GB)


def list_fields(asked: Mapping[str, str], world: Scenario) -> Any:
    record = layout(schema_of(asked))
    kinds = {name: record[name] for name in record.names or () if not name.startswith("_")}
    words = {"S": "char", "u": "uint", "i": "int"}
    return [
        {"name": name, "type": words[kind.kind] + ("" if kind.kind == "S" else f"{8 * kind.itemsize}_t")}
        for name, kind in kinds.items()
    ]


def list_unit_prices(asked: Mapping[str, str], world: Scenario) -> Any:
    return [{"mode": mode, "unit_prices": USD_PER_GB} for mode in ("historical", "historical-streaming")]


def get_dataset_range(asked: Mapping[str, str], world: Scenario) -> Any:
    check_dataset(asked)
    span = {"start": SINCE, "end": iso(available_end(world))}
    return {**span, "schema": dict.fromkeys(USD_PER_GB, span)}


def get_dataset_condition(asked: Mapping[str, str], world: Scenario) -> Any:
    check_dataset(asked)
    last = min(day_of(asked.get("end_date", "2100-01-01")), world.shown.astimezone(UTC).date())
    first = max(day_of(asked.get("start_date", last.isoformat())), last - timedelta(days=3660))
    return conditions(to_ns(midnight(first)), to_ns(midnight(last)) + DAY_NS)


def get_record_count(asked: Mapping[str, str], world: Scenario) -> Any:
    return len(recorded(question_of(asked, world), world)[0])


def get_billable_size(asked: Mapping[str, str], world: Scenario) -> Any:
    return recorded(question_of(asked, world), world)[0].nbytes


def get_cost(asked: Mapping[str, str], world: Scenario) -> Any:
    question = question_of(asked, world)
    return recorded(question, world)[0].nbytes / 2**30 * USD_PER_GB[question.schema]


def resolve(asked: Mapping[str, str], world: Scenario) -> Any:
    """`symbology.resolve`: what symbols stand for on whole days."""
    check_dataset(asked)
    stype_in, stype_out = stypes_of(asked)
    if stype_in == stype_out:
        raise RequestRefused(422, "symbology_invalid_request", "Unsupported symbology combination.")
    first = day_of(asked.get("start_date", ""))
    last = day_of(asked.get("end_date", (first + timedelta(1)).isoformat()))
    if first >= last:
        raise RequestRefused(
            422, "data_date_range_start_on_or_after_end", "The start is on or after the end."
        )
    symbols = symbols_of(asked)
    found = meant_in(world.market, symbols, stype_in, to_ns(midnight(first)), to_ns(midnight(last)))
    spans = found.select("asked", "first", "until", pl.col(stype_out).cast(pl.String).alias("text"))
    result: dict[str, list[dict[str, str]]] = {symbol: [] for symbol in symbols if symbol != ALL}
    for symbol, begin, until, text in spans.iter_rows():
        result.setdefault(symbol, []).append({"d0": begin.isoformat(), "d1": until.isoformat(), "s": text})
    missing = [symbol for symbol, those in result.items() if not those]
    status = 2 if len(missing) == len(result) else int(bool(missing))
    return {
        "result": result,
        "symbols": list(symbols),
        "stype_in": stype_in,
        "stype_out": stype_out,
        "start_date": first.isoformat(),
        "end_date": last.isoformat(),
        "partial": [],
        "not_found": missing,
        "message": ("OK", "Partially resolved", "Not found")[status],
        "status": status,
    }


def get_range(asked: Mapping[str, str], world: Scenario) -> bytes:
    """`timeseries.get_range`: metadata and records, one zstd frame."""
    entitled(world)
    return zstandard.compress(encoded(question_of(asked, world), world), 1)


def entitled(world: Scenario) -> None:
    """Raise what the vendor says where the plan does not include the data."""
    if world.fault == "not_entitled":
        raise RequestRefused(
            422,
            "dataset_unavailable_range",
            f"Part or all of your request for dataset '{DATASET}' requires a subscription and/or license to "
            f"access. Try again with an end time before {iso(to_ns(world.now - timedelta(days=1)))}.",
        )


ENDPOINTS: dict[str, tuple[str, Callable[[Mapping[str, str], Scenario], Any]]] = {
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
