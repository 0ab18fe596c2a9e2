"""The board's web application: the page, its parts, and the events that update it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Event

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from nq_pipeline.board.charts import ChartFiles
from nq_pipeline.board.feed import Feed
from nq_pipeline.board.live import LiveBoard
from nq_pipeline.charts.theme import page_colours
from nq_pipeline.clock import Clock
from nq_pipeline.serve.access import AccessGuard
from nq_pipeline.settings import Settings
from nq_pipeline.sources.databento.spec import DatabentoSettings
from nq_pipeline.stream.hub import Hub
from nq_pipeline.workspace import Workspace

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


def build_app(
    settings: Settings,
    *,
    clock: Clock,
    host: str,
    note: str = "",
    capture_end: Callable[[], str] | None = None,
    stop: Event,
) -> Starlette:
    """The application for a server bound to `host`.

    Parameters
    ----------
    clock
        The clock of the capture: in the sandbox the stand-in gateway's.
    note
        What else to say at the top of the page.
    capture_end
        Why the capture that this board started has ended; empty while it runs.
    stop
        Ends the streams to browsers, for which the server would wait. Set when the board cannot go on; the
        application raises the error when it is shut down.
    """
    feed = Feed(uuid.uuid4().hex[:8])

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        hub = Hub(Workspace.of(settings), settings.vendor(DatabentoSettings).dataset, clock=clock)
        async with hub.running():
            board = LiveBoard(settings, hub, feed, clock=clock, note=note, capture_end=capture_end)
            running = asyncio.create_task(board.run())
            running.add_done_callback(lambda _: stop.set())
            ending = asyncio.create_task(_close(feed, stop))
            try:
                yield
            finally:
                running.cancel()
                stop.set()
                await asyncio.wait([running, ending])
            if not running.cancelled():
                running.result()

    def events(request: Request) -> Response:
        last = request.headers.get("last-event-id") or request.query_params.get("after", "")
        return StreamingResponse(feed.messages(last), media_type="text/event-stream", headers=HEADERS)

    files = ChartFiles()
    parts: dict[str, tuple[str, Callable[[], Awaitable[bytes]]]] = {
        "/": ("text/html", lambda: _read("page.html")),
        "/board.css": ("text/css", lambda: _read("page.css", page_colours())),
        "/board.js": ("text/javascript", lambda: _read("page.js")),
        "/vega.js": ("text/javascript", files.library),
        "/charts.json": ("application/json", files.specifications),
    }
    return Starlette(
        routes=[
            *(Route(path, _part(kind, content)) for path, (kind, content) in parts.items()),
            Route("/events", events),
        ],
        middleware=[Middleware(AccessGuard, host=host, token=settings.serve.token, allow_links=True)],
        lifespan=lifespan,
    )


async def _close(feed: Feed, stop: Event) -> None:
    """Close the feed as soon as `stop` is set."""
    await asyncio.to_thread(stop.wait)
    feed.close()


def _part(kind: str, content: Callable[[], Awaitable[bytes]]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(_: Request) -> Response:
        return Response(await content(), media_type=kind, headers=HEADERS)

    return answer


async def _read(name: str, before: str = "") -> bytes:
    return before.encode() + (Path(__file__).parent / name).read_bytes()
