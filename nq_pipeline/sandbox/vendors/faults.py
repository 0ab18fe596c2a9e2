"""How a request becomes an answer, and the faults that any HTTP answer can suffer on its way.

Faults of one vendor's own words (a 403 page, an error body) live with that vendor.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse

from nq_pipeline.sandbox.scenario import Scenario

WorldOf = Callable[[HTTPConnection], Scenario]
Answer = Callable[[Request, bytes, Scenario], Response]

INTERSTITIAL = (
    "<!DOCTYPE html><html><head><title>Just a moment</title></head><body>Please wait.</body></html>"
)


def serve(answer: Answer, world_of: WorldOf) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint from a plain function of (request, body, world), with the faults of the wire."""

    async def endpoint(request: Request) -> Response:
        world, body = world_of(request), await request.body()
        if world.fault == "unavailable":
            return PlainTextResponse("Internal Server Error", 500)
        return on_the_wire(await run_in_threadpool(answer, request, body, world), world.fault)

    return endpoint


def on_the_wire(response: Response, fault: str) -> Response:
    """The response as the fault lets it arrive: `slow`, `truncated`, `wrong_content_type` or untouched."""
    if fault == "wrong_content_type":
        return HTMLResponse(INTERSTITIAL)
    if fault == "slow":
        return _streamed(response, _drip(bytes(response.body)))
    if fault == "truncated":
        return _streamed(response, _half(bytes(response.body)))
    return response


def _streamed(response: Response, body: AsyncIterator[bytes]) -> Response:
    """The same status and headers, the promised length included, over another body."""
    streamed = StreamingResponse(body, response.status_code)
    streamed.raw_headers = list(response.raw_headers)
    return streamed


async def _drip(body: bytes) -> AsyncIterator[bytes]:
    for position in range(len(body)):
        yield body[position : position + 1]
        await asyncio.sleep(1.0)


async def _half(body: bytes) -> AsyncIterator[bytes]:
    yield body[: len(body) // 2]
