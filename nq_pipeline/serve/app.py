"""The application of `nq serve`: routes over the lake's catalog and the hub of the stream."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from nq_pipeline.clock import Clock
from nq_pipeline.lake.catalog import LiveCatalog
from nq_pipeline.serve.access import AccessGuard
from nq_pipeline.serve.answers import Answers
from nq_pipeline.serve.endpoints import ENDPOINTS, Endpoint
from nq_pipeline.serve.formats import MEDIA_TYPES
from nq_pipeline.serve.openapi import STYLE, document, page
from nq_pipeline.serve.prometheus import Metrics
from nq_pipeline.serve.sockets import Replays, stream
from nq_pipeline.settings import Settings
from nq_pipeline.sources.databento.spec import DatabentoSettings
from nq_pipeline.stream.hub import Hub
from nq_pipeline.workspace import Workspace

MOST_SQL_BYTES = 100_000
GZIP_LEVEL = 4
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
    answers, replays = Answers(lake, live, settings.query), Replays(live)

    def rows(endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        async def respond(request: Request) -> Response:
            try:
                query = endpoint.query(dict(request.query_params))
            except ValueError as error:
                raise HTTPException(400, str(error)) from None
            return await answers.rows(request, query)

        return respond

    async def sql(request: Request) -> Response:
        posted = request.method == "POST"
        query = await _body(request) if posted else request.query_params.get("query")
        if not query:
            raise HTTPException(400, "send the query as ?query= or as the body of a POST")
        return await answers.sql(request, query)

    async def index(_: Request) -> Response:
        return HTMLResponse(page(), headers=_HEADERS)

    async def openapi(_: Request) -> Response:
        return JSONResponse(document(), headers=_HEADERS)

    async def scrape(_: Request) -> Response:
        return PlainTextResponse(await run_in_threadpool(metrics.text))

    async def follow(socket: WebSocket) -> None:
        await stream(socket, hub)

    async def play(socket: WebSocket) -> None:
        await replays.send(socket)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with hub.running():
            yield

    return Starlette(
        routes=[
            Route("/", index),
            Route("/openapi.json", openapi),
            Route("/metrics", scrape),
            Route("/sql", sql, methods=["GET", "POST"]),
            WebSocketRoute("/stream", follow),
            WebSocketRoute("/replay", play),
            *(Route(endpoint.path, rows(endpoint)) for endpoint in ENDPOINTS),
        ],
        middleware=[
            Middleware(AccessGuard, host=host, token=settings.serve.token),
            Middleware(
                GZipMiddleware, compresslevel=GZIP_LEVEL, exclude_content_types=(MEDIA_TYPES["arrow"],)
            ),
        ],
        exception_handlers={HTTPException: _refuse, Exception: _fail},
        lifespan=lifespan,
    )


async def _body(request: Request) -> str:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_SQL_BYTES:
            raise HTTPException(413, f"a query has at most {MOST_SQL_BYTES} bytes")
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise HTTPException(400, "a query is text in UTF-8") from None


async def _refuse(request: Request, error: Exception) -> Response:
    """Every error has the same form."""
    assert isinstance(error, HTTPException)
    reason = error.detail
    if error.detail == HTTPStatus.NOT_FOUND.phrase:  # the router's own
        reason = f"no such path: {request.url.path}; / lists every path and what it takes"
    return JSONResponse({"error": reason}, error.status_code, error.headers)


async def _fail(_: Request, error: Exception) -> Response:
    """An unexpected error; the server raises it again, for its log."""
    return JSONResponse({"error": "the server failed; its log says why"}, 500)
