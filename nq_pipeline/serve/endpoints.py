"""The endpoints that answer with rows, as declared once for the routes and for OpenAPI."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING

import duckdb
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from nq_pipeline.errors import LakeError
from nq_pipeline.lake import catalog, results
from nq_pipeline.serve.formats import MEDIA_TYPES, NotAcceptable, arrow_stream, wanted_format
from nq_pipeline.serve.queries import (
    AS_OF,
    FROM,
    LIMIT,
    METRICS,
    SAME,
    TO,
    Builder,
    Parameter,
    RowQuery,
    chain,
    gaps,
    metrics,
    trades,
)

if TYPE_CHECKING:
    from nq_pipeline.lake.catalog import LiveCatalog
    from nq_pipeline.lake.store import Lake
    from nq_pipeline.settings import Settings

MOST_SQL_BYTES = 100_000


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint of rows: its path, what it answers, its parameters and the query behind it."""

    path: str
    summary: str
    parameters: tuple[Parameter, ...]
    build: Builder

    def query(self, given: Mapping[str, str]) -> RowQuery:
        """The query that a client asks for; raises `ValueError` for what it cannot have."""
        known = {parameter.name: parameter for parameter in self.parameters}
        if unknown := sorted(given.keys() - known.keys() - {"format"}):
            raise ValueError(f"{unknown[0]} is no parameter here; there are {', '.join(known)}, format")
        return self.build({name: known[name].parse(text) for name, text in given.items() if name in known})


_NEWEST = Parameter("newest_per_contract", bool, "with as_of: the newest row of every contract of the day")
_PRODUCT, _SERIES, _SOURCE, _TRADE_DATE = SAME.values()
_SPAN = (AS_OF, FROM, TO)
ENDPOINTS = (
    Endpoint(
        "/chain",
        "The current option chain, or the chain as of a moment: one row per contract.",
        (AS_OF, _NEWEST, _PRODUCT, _SERIES, _SOURCE, LIMIT),
        chain,
    ),
    Endpoint(
        "/trades",
        "Trades of a span; by default those of the newest trade date.",
        (*_SPAN, _TRADE_DATE, _PRODUCT, _SERIES, LIMIT),
        trades,
    ),
    Endpoint(
        "/gaps",
        "Gaps in the capture with their state, now or as of a moment.",
        (AS_OF, _TRADE_DATE, LIMIT),
        gaps,
    ),
    Endpoint(
        "/surface",
        "The fitted volatility surface: parameters and error of each series (table surface_slices).",
        (*_SPAN, _PRODUCT, _SERIES, _SOURCE, LIMIT),
        metrics("surface_slices"),
    ),
    *(
        Endpoint(
            f"/metrics/{name}",
            f"Table {name}: its newest snapshot, the newest as of a moment, or those of a span.",
            (*_SPAN, _PRODUCT, _SERIES, _SOURCE, LIMIT),
            metrics(name),
        )
        for name in METRICS
    ),
)


def answer(endpoint: Endpoint, live: LiveCatalog, settings: Settings) -> Callable[[Request], Response]:
    """The handler of an endpoint, which runs on a thread."""

    def handle(request: Request) -> Response:
        try:
            form, query = wanted_format(request), endpoint.query(dict(request.query_params))
        except ValueError as error:
            return refuse(error)
        try:
            relation = live.cursor().sql(query.sql, params=query.values)
            if form == "arrow":
                parts = arrow_stream(relation)
                first = next(parts)  # so that a query that fails is an error, not half an answer
                return StreamingResponse(_chained(first, parts), media_type=MEDIA_TYPES[form])
            texts = results.format_result(relation, form, memory_mb=settings.query.memory_mb)
        except (duckdb.Error, LakeError) as error:
            return refuse(error)
        return Response("".join(texts), media_type=MEDIA_TYPES[form])

    return handle


def run_sql(request: Request, sql: str, lake: Lake, settings: Settings, unwanted: Event) -> Response:
    """One SELECT under the guard and the limits of `nq sql`; `unwanted` stops it."""
    try:
        form = wanted_format(request)
    except NotAcceptable as error:
        return refuse(error)
    memory_mb = settings.query.memory_mb
    with catalog.connect(lake, guarded=True, memory_mb=memory_mb) as connection:

        def run() -> bytes:
            relation = catalog.query(connection, sql)
            if form != "arrow":
                return "".join(results.format_result(relation, form, memory_mb=memory_mb)).encode()
            parts, size = [], 0
            for part in arrow_stream(relation):
                parts.append(part)
                size += len(part)
                if size > memory_mb * 1024 * 1024:
                    raise LakeError("the result is larger than NQ_SQL_MEMORY_MB allows; read fewer rows")
            return b"".join(parts)

        try:
            body = results.run_within_limits(
                connection, run, seconds=settings.query.timeout_s, memory_mb=memory_mb, unwanted=unwanted
            )
        except (duckdb.Error, LakeError) as error:
            return refuse(error)
    return Response(body, media_type=MEDIA_TYPES[form])


def refuse(error: Exception) -> Response:
    """The answer to a request that cannot be met."""
    return JSONResponse({"error": str(error)}, 406 if isinstance(error, NotAcceptable) else 400)


def _chained(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest
