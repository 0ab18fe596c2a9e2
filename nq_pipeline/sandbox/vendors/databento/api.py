"""Databento's stand-in: the historical API as the official client uses it, answering with real DBN.

It has the options on NQ futures, the futures and, among the definitions, one user-defined spread per
root. A parent resolves to all its instruments, an answer carries the symbol mapping of its days, and
ids are the same in all answers. `bbo-1m` has the minutes in which a book changed. Statistics come
preliminary and then final: settlements when the exchange first publishes them and 90 minutes after
the close, open interest and cleared volume 4 and 17 hours after it. `mbo` has only the orders that
trade. `mbp-10` and `status` are not available.

Every key is an account. Its batch jobs are in `batch`; `/requests` lists all its requests with the
bytes they would bill. Prices are the vendor's list prices. A request for more than four hours of
quotes times out, as large ones do at the vendor.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, timedelta
from typing import Any

import zstandard
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from nq_pipeline.sandbox.scenario import Scenario
from nq_pipeline.sandbox.synthetic.instruments import ALL_SYMBOLS, resolve_symbols
from nq_pipeline.sandbox.synthetic.price_path import DAY_NS
from nq_pipeline.sandbox.synthetic.records import blank_records
from nq_pipeline.sandbox.vendors.databento.account import (
    Account,
    Handler,
    account_of,
    api_key,
    api_route,
    require_entitlement,
)
from nq_pipeline.sandbox.vendors.databento.batch import batch_routes, day_conditions
from nq_pipeline.sandbox.vendors.databento.history import (
    Intervals,
    encode_dbn,
    query_records,
    symbol_intervals,
    symbology_answer,
)
from nq_pipeline.sandbox.vendors.databento.request import (
    AVAILABLE_START,
    DATASET,
    START_AFTER_END,
    USD_PER_GB,
    Params,
    RequestRefused,
    available_end,
    check_dataset,
    iso,
    midnight_ns,
    parse_date,
    parse_query,
    parse_schema,
    parse_stypes,
    parse_symbols,
)
from nq_pipeline.sandbox.vendors.endpoint import ScenarioOf, json_response


def databento_routes(scenario_of: ScenarioOf) -> list[BaseRoute]:
    """The vendor's addresses below its mount point."""
    names = {
        "list_publishers": lambda params, scenario: [
            {"publisher_id": 1, "dataset": DATASET, "venue": "GLBX", "description": "CME Globex MDP 3.0"}
        ],
        "list_datasets": lambda params, scenario: [DATASET],
        "list_schemas": lambda params, scenario: list(USD_PER_GB),
        "list_fields": list_fields,
        "list_unit_prices": lambda params, scenario: [
            {"mode": mode, "unit_prices": USD_PER_GB} for mode in ("historical", "historical-streaming")
        ],
        "get_dataset_condition": get_dataset_condition,
        "get_dataset_range": get_dataset_range,
    }
    posts = {
        "metadata.get_record_count": get_record_count,
        "metadata.get_billable_size": get_billable_size,
        "metadata.get_cost": get_cost,
        "symbology.resolve": resolve,
    }
    return [
        Route("/requests", list_requests, methods=["GET"]),
        *batch_routes(scenario_of),
        *(
            api_route("GET", f"metadata.{name}", _as_json(answer), scenario_of)
            for name, answer in names.items()
        ),
        *(api_route("POST", name, _as_json(answer), scenario_of) for name, answer in posts.items()),
        api_route("POST", "timeseries.get_range", get_range, scenario_of),
    ]


def list_requests(request: Request) -> Response:
    """All requests of the account, oldest first: name, parameters and billed bytes."""
    return json_response(list(account_of(api_key(request)).requests))


def _as_json(answer: Callable[[Params, Scenario], Any]) -> Handler:
    return lambda request, params, scenario, account: json_response(answer(params, scenario))


def list_fields(params: Params, scenario: Scenario) -> Any:
    record = blank_records(parse_schema(params)).dtype
    kinds = {name: record[name] for name in record.names or () if not name.startswith("_")}
    words = {"S": "char", "u": "uint", "i": "int"}
    return [
        {"name": name, "type": words[kind.kind] + ("" if kind.kind == "S" else f"{8 * kind.itemsize}_t")}
        for name, kind in kinds.items()
    ]


def get_dataset_range(params: Params, scenario: Scenario) -> Any:
    check_dataset(params)
    span = {"start": AVAILABLE_START, "end": iso(available_end(scenario))}
    return {**span, "schema": dict.fromkeys(USD_PER_GB, span)}


def get_dataset_condition(params: Params, scenario: Scenario) -> Any:
    check_dataset(params)
    last = min(parse_date(params.get("end_date", "2100-01-01")), scenario.shown.astimezone(UTC).date())
    first = max(parse_date(params.get("start_date", last.isoformat())), last - timedelta(days=3660))
    return day_conditions(midnight_ns(first), midnight_ns(last) + DAY_NS)


def get_record_count(params: Params, scenario: Scenario) -> Any:
    return len(query_records(parse_query(params, scenario), scenario)[0])


def get_billable_size(params: Params, scenario: Scenario) -> Any:
    return query_records(parse_query(params, scenario), scenario)[0].nbytes


def get_cost(params: Params, scenario: Scenario) -> Any:
    return get_billable_size(params, scenario) / 2**30 * USD_PER_GB[params["schema"]]


def resolve(params: Params, scenario: Scenario) -> Any:
    """`symbology.resolve`: what symbols mean on whole days."""
    check_dataset(params)
    stype_in, stype_out = parse_stypes(params)
    if stype_in == stype_out:
        raise RequestRefused(422, "symbology_invalid_request", "Unsupported symbology combination.")
    first = parse_date(params.get("start_date", ""))
    last = parse_date(params.get("end_date", (first + timedelta(1)).isoformat()))
    if first >= last:
        raise RequestRefused(422, "data_date_range_start_on_or_after_end", START_AFTER_END)
    symbols = parse_symbols(params)
    found = resolve_symbols(scenario.market, symbols, stype_in, midnight_ns(first), midnight_ns(last))
    intervals: Intervals = {symbol: [] for symbol in symbols if symbol != ALL_SYMBOLS}
    intervals |= symbol_intervals(found, "stype_in_symbol", stype_out)
    return symbology_answer(intervals, symbols, (stype_in, stype_out), first, last)


def get_range(request: Request, params: Params, scenario: Scenario, account: Account) -> Response:
    """`timeseries.get_range`: metadata and records in one zstd frame, billed to the account."""
    require_entitlement(scenario)
    query = parse_query(params, scenario)
    content = zstandard.compress(encode_dbn(query, scenario), 1)
    account.bill("timeseries.get_range", query_records(query, scenario)[0].nbytes)
    return Response(content, media_type="application/octet-stream")
