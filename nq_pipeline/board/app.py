"""The board's web application: the page, its parts, and the events that move it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from nq_pipeline.board.charts import ChartFiles
from nq_pipeline.board.feed import Feed
from nq_pipeline.charts.theme import page_colours

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


def build_app(feed: Feed, middleware: list[Middleware] | None = None) -> Starlette:
    """The application; `middleware` decides who may use it."""

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
    routes = [Route(path, _part(kind, content)) for path, (kind, content) in parts.items()]
    return Starlette(routes=[*routes, Route("/events", events)], middleware=middleware)


def _part(kind: str, content: Callable[[], Awaitable[bytes]]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(_: Request) -> Response:
        return Response(await content(), media_type=kind, headers=HEADERS)

    return answer


async def _read(name: str, before: str = "") -> bytes:
    return before.encode() + (Path(__file__).parent / name).read_bytes()
