"""Turns functions into endpoints, and injects the faults that any HTTP answer can have.

Faults in a vendor's own format (a 403 page, an error body) are in that vendor's stand-in.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import orjson
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse

from nq_pipeline.sandbox.scenario import Scenario

ScenarioOf = Callable[[HTTPConnection], Scenario]
Answer = Callable[[Request, bytes, Scenario], Response]

INTERSTITIAL = (
    "<!DOCTYPE html><html><head><title>Just a moment</title></head><body>Please wait.</body></html>"
)


def endpoint(answer: Answer, scenario_of: ScenarioOf) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint from a function of (request, body, scenario), with the faults of the wire."""

    async def respond(request: Request) -> Response:
        scenario, body = scenario_of(request), await request.body()
        if scenario.fault == "unavailable":
            return PlainTextResponse("Internal Server Error", 500)
        return _apply_wire_fault(await run_in_threadpool(answer, request, body, scenario), scenario.fault)

    return respond


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(value), status, headers, media_type="application/json")


def json_number(value: float) -> float | int:
    """A number that JSON writes without a decimal point when it is whole, as the vendors do."""
    return int(value) if value == int(value) else value


def _apply_wire_fault(response: Response, fault: str) -> Response:
    if fault == "wrong_content_type":
        return HTMLResponse(INTERSTITIAL)
    if fault == "slow":
        return _stream(response, _drip(bytes(response.body)))
    if fault == "truncated":
        return _stream(response, _half(bytes(response.body)))
    return response


def _stream(response: Response, body: AsyncIterator[bytes]) -> Response:
    """The same status and headers, including the promised length, over another body."""
    streamed = StreamingResponse(body, response.status_code)
    streamed.raw_headers = list(response.raw_headers)
    return streamed


async def _drip(body: bytes) -> AsyncIterator[bytes]:
    for position in range(len(body)):
        yield body[position : position + 1]
        await asyncio.sleep(1.0)


async def _half(body: bytes) -> AsyncIterator[bytes]:
    yield body[: len(body) // 2]
