"""One application for all vendors: `/{vendor}/…`, and `/with/{options}/{vendor}/…` for another scenario.

/health                                        program, version and defaults of the server
/lease                                         an open request that keeps an owned server alive
/databento/gateway                             the address of that scenario's live gateway
/barchart/futures/quotes/NQM25/options         Barchart's page in the default scenario
/with/fault=blocked;seed=7/barchart/futures/…  the same while Barchart blocks
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from importlib.metadata import version

from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route

from nq_pipeline.clock import SystemClock
from nq_pipeline.errors import SandboxError
from nq_pipeline.sandbox.gateway.gateways import Gateways
from nq_pipeline.sandbox.scenario import Scenario, parse_options
from nq_pipeline.sandbox.synthetic.market import market
from nq_pipeline.sandbox.vendors.barchart.site import barchart_routes
from nq_pipeline.sandbox.vendors.databento.api import databento_routes
from nq_pipeline.sandbox.vendors.polygon import polygon_routes
from nq_pipeline.sandbox.vendors.tradovate import tradovate_routes

PROGRAM = "nq sandbox"
VENDORS: Mapping[str, Callable[..., list[BaseRoute]]] = {
    "barchart": barchart_routes,
    "polygon": polygon_routes,
    "tradovate": tradovate_routes,
    "databento": databento_routes,
}


class ClientCount:
    """Number of clients that keep the server alive, and whether it is ending and accepts no more."""

    held = 0
    closed = False


def application(
    defaults: Mapping[str, str], clients: ClientCount | None = None, gateways: Gateways | None = None
) -> Starlette:
    """The stand-ins; `defaults` are options by vendor, which `/with/…` overrides one by one."""
    clients, gateways = clients or ClientCount(), gateways or Gateways()
    scenarios = default_scenarios(defaults)
    identity = {"program": PROGRAM, "version": version("nq_pipeline"), "defaults": dict(defaults)}

    def vendors() -> list[BaseRoute]:
        by_vendor = {name: routes(_scenario_of(scenarios[name])) for name, routes in VENDORS.items()}
        by_vendor["databento"] += gateways.gateway_routes(_scenario_of(scenarios["databento"]))
        return [Mount(f"/{name}", routes=routes) for name, routes in by_vendor.items()]

    def health(request: Request) -> Response:
        return JSONResponse(identity)

    async def hold() -> AsyncIterator[bytes]:
        clients.held += 1
        try:
            yield json.dumps(identity).encode() + b"\n"
            await asyncio.Event().wait()
        finally:
            clients.held -= 1

    def lease(request: Request) -> Response:
        if clients.closed:
            return PlainTextResponse("ending", 503)
        return StreamingResponse(hold(), media_type="application/json")

    def bad_options(request: Request, error: Exception) -> Response:
        return PlainTextResponse(str(error), 400)

    return Starlette(
        routes=[
            Route("/health", health),
            Route("/lease", lease),
            *vendors(),
            Mount("/with/{options}", routes=vendors()),
        ],
        exception_handlers={SandboxError: bad_options},
    )


def default_scenarios(defaults: Mapping[str, str]) -> dict[str, Scenario]:
    """The scenario of each vendor for addresses without `/with/…`."""
    ordinary = Scenario(market(7), SystemClock())
    return {
        vendor: parse_options(defaults[vendor], ordinary) if defaults.get(vendor) else ordinary
        for vendor in VENDORS
    }


def _scenario_of(default: Scenario) -> Callable[[HTTPConnection], Scenario]:
    def scenario_of(connection: HTTPConnection) -> Scenario:
        options = connection.path_params.get("options")
        return parse_options(options, default) if options else default

    return scenario_of
