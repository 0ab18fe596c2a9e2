"""The application of `nq serve`: routes over the lake's catalog and the hub of the stream."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from threading import Event

import anyio
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from nq_pipeline.clock import Clock
from nq_pipeline.lake.catalog import LiveCatalog
from nq_pipeline.serve.access import AccessGuard
from nq_pipeline.serve.endpoints import ENDPOINTS, MOST_SQL_BYTES, answer, refuse, run_sql
from nq_pipeline.serve.openapi import STYLE, document, page
from nq_pipeline.serve.prometheus import Metrics
from nq_pipeline.serve.sockets import send_replay, stream
from nq_pipeline.settings import Settings
from nq_pipeline.sources.databento.spec import DatabentoSettings
from nq_pipeline.stream.hub import Hub
from nq_pipeline.workspace import Workspace

SQL_AT_ONCE = 2
"""Queries of clients that run at a time; each may use as much memory as one of `nq sql`."""
_STYLE_HASH = b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
_HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'",
    "X-Content-Type-Options": "nosniff",
}


def build_app(settings: Settings, *, clock: Clock, host: str) -> Starlette:
    """The application for a server bound to `host`; raises `NoLake` where there is nothing to serve.

    Parameters
    ----------
    clock
        The clock of the live feed, for its lag.
    """
    workspace, dataset = Workspace.of(settings), settings.vendor(DatabentoSettings).dataset
    lake = workspace.existing_lake
    live = LiveCatalog(lake, memory_mb=settings.query.memory_mb)
    hub = Hub(workspace, dataset, clock=clock)
    metrics = Metrics(settings, workspace, lake, live, hub, dataset)
    turns = anyio.CapacityLimiter(SQL_AT_ONCE)

    async def sql(request: Request) -> Response:
        if request.method == "POST":
            body = await _body(request)
            if body is None:
                return JSONResponse({"error": f"a query has at most {MOST_SQL_BYTES} bytes of UTF-8"}, 413)
            query: str | None = body
        else:
            query = request.query_params.get("query")
        if not query:
            return refuse(ValueError("send the query as ?query= or as the body of a POST"))
        unwanted = Event()
        async with anyio.create_task_group() as group:
            group.start_soon(_watch, request, unwanted)
            try:
                response = await anyio.to_thread.run_sync(
                    run_sql, request, query, lake, settings, unwanted, limiter=turns
                )
            finally:  # also when the server stops
                unwanted.set()
                group.cancel_scope.cancel()
        return response

    async def scrape(_: Request) -> Response:
        return PlainTextResponse(await run_in_threadpool(metrics.text))

    async def follow(socket: WebSocket) -> None:
        await stream(socket, hub)

    async def play(socket: WebSocket) -> None:
        await send_replay(socket, live)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with hub.running():
            yield

    return Starlette(
        routes=[
            Route("/", _constant(HTMLResponse(page(), headers=_HEADERS))),
            Route("/openapi.json", _constant(JSONResponse(document(), headers=_HEADERS))),
            Route("/metrics", scrape),
            Route("/sql", sql, methods=["GET", "POST"]),
            WebSocketRoute("/stream", follow),
            WebSocketRoute("/replay", play),
            *(Route(endpoint.path, answer(endpoint, live, settings)) for endpoint in ENDPOINTS),
        ],
        middleware=[Middleware(AccessGuard, host=host, token=settings.serve.token)],
        lifespan=lifespan,
    )


def _constant(response: Response) -> Callable[[Request], Awaitable[Response]]:
    async def respond(_: Request) -> Response:
        return response

    return respond


async def _watch(request: Request, gone: Event) -> None:
    """Set `gone` when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    gone.set()


async def _body(request: Request) -> str | None:
    """The text of a body; None if it is too long or no text."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_SQL_BYTES:
            return None
    try:
        return body.decode()
    except UnicodeDecodeError:
        return None
