"""Answers with rows: a few queries at a time, within limits of time and memory, for clients that wait."""

from __future__ import annotations

import asyncio
import hashlib
from asyncio import Semaphore
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from threading import Lock
from typing import TYPE_CHECKING

import duckdb
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from nq_pipeline.errors import LakeError, StoreError
from nq_pipeline.lake import catalog, results
from nq_pipeline.serve.clients import run_interruptibly, while_connected
from nq_pipeline.serve.formats import MEDIA_TYPES, Format, arrow_stream, wanted_format
from nq_pipeline.serve.names import check_names

if TYPE_CHECKING:
    from nq_pipeline.lake.catalog import LiveCatalog
    from nq_pipeline.lake.store import Lake
    from nq_pipeline.serve.queries import RowQuery
    from nq_pipeline.settings.groups import QuerySettings

ROWS_AT_ONCE, SQL_AT_ONCE = 4, 2
"""Queries that run at a time; each query of `/sql` may use as much memory as one of `nq sql`."""
PIECE_BYTES = 1 << 18
SEND_S = 30.0
"""How long a client may take to read a piece."""
LATER = {"Retry-After": "5"}
GONE = 499
"""The status for the log of a client that has left."""
Connection = duckdb.DuckDBPyConnection
Relation = duckdb.DuckDBPyRelation


class Answers:
    """Answers requests for rows.

    An answer is whole before it is sent, so that a query that fails is an error and not half an answer.

    Parameters
    ----------
    limits
        Those of `nq sql`. `memory_mb` also bounds what clients have not read yet, of all answers together.
    """

    def __init__(self, lake: Lake, live: LiveCatalog, limits: QuerySettings) -> None:
        self._lake, self._live, self._limits = lake, live, limits
        self._space = Space(limits.memory_mb)
        self._pool = ThreadPoolExecutor(ROWS_AT_ONCE + SQL_AT_ONCE, thread_name_prefix="query")
        self._rows, self._sql = Semaphore(ROWS_AT_ONCE), Semaphore(SQL_AT_ONCE)

    async def rows(self, request: Request, query: RowQuery) -> Response:
        """The rows of an endpoint, or 304 if the client has them: they only change when a table does.

        Raises `HTTPException`, also for a product, series or source that does not exist.
        """
        form = wanted_format(request)

        def fill(answer: RowsResponse, opened: list[Connection]) -> None:
            opened.append(self._live.cursor())
            tag = _tag(self._live.versions, request.url.query, request.url.path, form)
            answer.headers.update({"ETag": tag, "Cache-Control": "no-cache", "Vary": "Accept"})
            if tag in request.headers.get("if-none-match", ""):
                answer.status_code = 304
            else:
                check_names(opened[0], query)
                answer.fill(opened[0].sql(query.sql, params=query.values))

        return await self._answer(request, RowsResponse(form, self._space), fill, self._rows)

    async def sql(self, request: Request, sql: str) -> Response:
        """The result of one SELECT, under the guard of `nq sql`."""

        def fill(answer: RowsResponse, opened: list[Connection]) -> None:
            memory_mb = self._limits.memory_mb
            with catalog.connect(self._lake, guarded=True, memory_mb=memory_mb) as connection:
                opened.append(connection)
                answer.fill(catalog.query(connection, sql))

        return await self._answer(request, RowsResponse(wanted_format(request), self._space), fill, self._sql)

    async def _answer(
        self,
        request: Request,
        answer: RowsResponse,
        fill: Callable[[RowsResponse, list[Connection]], None],
        turns: Semaphore,
    ) -> Response:
        opened: list[Connection] = []
        seconds = self._limits.timeout_s

        async def work() -> None:
            async with turns, asyncio.timeout(seconds or None):
                await run_interruptibly(self._pool, lambda: fill(answer, opened), opened)

        done = False
        try:
            done = await while_connected(request.receive, work())
            return answer if done else Response(status_code=GONE)
        except TimeoutError:
            raise HTTPException(400, str(results.too_slow(seconds))) from None
        except duckdb.OutOfMemoryException:
            raise HTTPException(400, str(results.too_large(self._limits.memory_mb))) from None
        except (duckdb.Error, LakeError) as error:
            raise HTTPException(400 if turns is self._sql else 500, str(error)) from None
        except StoreError as error:
            raise HTTPException(503, str(error), LATER) from None
        finally:
            if not done:
                answer.close()


class Space:
    """The memory for the answers that are made or sent, which threads share."""

    def __init__(self, memory_mb: int) -> None:
        self.memory_mb = memory_mb
        self.free = self.whole = memory_mb * 1024 * 1024
        self._lock = Lock()

    def take(self, size: int) -> bool:
        """Take some bytes; False, and nothing is taken, if there are not so many."""
        with self._lock:
            enough = size <= self.free
            self.free -= size if enough else 0
        return enough

    def give_back(self, size: int) -> None:
        """Free bytes that were taken."""
        with self._lock:
            self.free += size


class RowsResponse(Response):
    """A result in some format, which is sent in pieces."""

    def __init__(self, form: Format, space: Space) -> None:
        super().__init__(media_type=MEDIA_TYPES[form])
        del self.headers["Content-Length"]
        self._form, self._space = form, space
        self._parts: list[bytes] = []
        self._size = 0

    def fill(self, relation: Relation) -> None:
        """Read a result. Raises `HTTPException` if it is too large, or if other answers leave no space."""
        memory_mb = self._space.memory_mb
        for part in self._read(relation):
            if self._size + len(part) > self._space.whole:
                raise HTTPException(400, str(results.too_large(memory_mb)))
            if not self._space.take(len(part)):
                reason = f"the answers that clients have not read yet fill the {memory_mb} MB they may use"
                raise HTTPException(503, f"{reason}; try again", LATER)
            self._parts.append(part)
            self._size += len(part)
        self.headers["Content-Length"] = str(self._size)

    def _read(self, relation: Relation) -> Iterator[bytes]:
        if self._form == "arrow":
            return arrow_stream(relation)
        texts = results.format_result(relation, self._form, memory_mb=self._space.memory_mb)
        return (text.encode() for text in texts)

    def close(self) -> None:
        """Give the memory back."""
        self._space.give_back(self._size)
        self._parts.clear()
        self._size = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer; the connection is closed in the middle of it if the client does not read."""
        try:
            with suppress(TimeoutError):
                await send(
                    {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
                )
                for part in self._parts:
                    for begin in range(0, len(part), PIECE_BYTES):
                        piece = part[begin : begin + PIECE_BYTES]
                        async with asyncio.timeout(SEND_S):
                            await send({"type": "http.response.body", "body": piece, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
        finally:
            self.close()


def _tag(*parts: str) -> str:
    """A weak entity tag of what an answer depends on."""
    text = "\0".join((version("nq_pipeline"), *parts))
    return f'W/"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'
