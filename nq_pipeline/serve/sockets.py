"""The WebSockets: `/stream` has no end, `/replay` sends a recorded span."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from datetime import datetime
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

import duckdb
import polars as pl
from starlette.datastructures import QueryParams
from starlette.websockets import WebSocket, WebSocketDisconnect

from nq_pipeline.clock import to_ns
from nq_pipeline.errors import BadCursor, NqError, TooSlow
from nq_pipeline.serve.clients import run_interruptibly, while_connected
from nq_pipeline.serve.queries import FROM, TO, Parameter
from nq_pipeline.stream.batch import TYPES, Batch, BatchType, Cursor
from nq_pipeline.stream.replay import ReplayCursor, replay

if TYPE_CHECKING:
    from nq_pipeline.lake.catalog import LiveCatalog
    from nq_pipeline.stream.hub import Hub

SEND_S = 30.0
"""How long one message may wait for a client that reads nothing."""
REPLAYS_AT_ONCE = 20
"""Each takes about 17 MB."""
REFUSED, FAILED, TRY_AGAIN = 1008, 1011, 1013
"""Codes with which a WebSocket is closed."""
TYPES_PARAMETER = Parameter("types", str, f"what to send, separated by commas: {', '.join(TYPES[:-1])}")
CURSOR = Parameter("cursor", str, "send what comes after the message that had this cursor")
SPEED = Parameter("speed", float, "how many times faster than the market; 0 is as fast as the client reads")
STREAM_PARAMETERS = (TYPES_PARAMETER, CURSOR)
REPLAY_PARAMETERS = (FROM, TO, SPEED, TYPES_PARAMETER, CURSOR)


async def stream(socket: WebSocket, hub: Hub) -> None:
    """Send what happens, from now on or from a cursor."""
    reached: object = None

    async def follow() -> None:
        nonlocal reached
        given = socket.query_params
        reached = cursor = Cursor.parse(given["cursor"]) if "cursor" in given else None
        async with aclosing(hub.subscribe(cursor, _types(given))) as batches:
            async for batch in batches:
                await _send(socket, batch)
                reached = batch.cursor

    await _serve(socket, follow(), lambda: reached)


class Replays:
    """Sends recorded spans, to some clients at a time: each replay sorts and keeps rows of its own."""

    def __init__(self, live: LiveCatalog) -> None:
        self._live = live
        self._pool = ThreadPoolExecutor(REPLAYS_AT_ONCE, thread_name_prefix="replay")
        self._running = 0

    async def send(self, socket: WebSocket) -> None:
        """Send a span, then close normally."""
        self._running += 1
        try:
            await _serve(socket, self._play(socket), lambda: None)
        finally:
            self._running -= 1

    async def _play(self, socket: WebSocket) -> None:
        if self._running > REPLAYS_AT_ONCE:
            raise TooSlow(f"{REPLAYS_AT_ONCE} replays are running; try again when one has ended")
        given = socket.query_params
        begin, end = (to_ns(_instant(given, parameter)) for parameter in (FROM, TO))
        speed = SPEED.parse(given.get("speed", "1"))
        if not 0 <= speed < float("inf"):
            raise ValueError("speed is 0 or more")
        start = ReplayCursor.parse(given["cursor"]) if "cursor" in given else ReplayCursor(begin)
        if start.at_ns > end:
            raise BadCursor("the cursor is later than the span; send one that came with a message of it")
        opened: list[duckdb.DuckDBPyConnection] = []

        def connect() -> duckdb.DuckDBPyConnection:
            opened.append(self._live.cursor())
            return opened[-1]

        batches, began = replay(connect, start, end, _types(given)), monotonic()
        while found := await run_interruptibly(self._pool, partial(next, batches, None), opened):
            due_ns, batch = found
            if speed:
                await asyncio.sleep(max(0.0, began + (due_ns - start.at_ns) / 1e9 / speed - monotonic()))
            await _send(socket, batch)
        await _end(socket, 1000, "the span has ended", ReplayCursor(end))


async def _serve(
    socket: WebSocket, work: Coroutine[object, object, None], reached: Callable[[], object]
) -> None:
    """Do the work of a WebSocket until its client leaves, and close it with the reason of an error."""
    await socket.accept()
    try:
        await while_connected(socket.receive, work)
    except TooSlow as error:
        await _end(socket, TRY_AGAIN, str(error), reached())
    except (BadCursor, ValueError) as error:
        await _end(socket, REFUSED, str(error), None)
    except (duckdb.Error, sqlite3.Error, NqError) as error:  # what is stored cannot be read
        await _end(socket, FAILED, str(error), reached())
    except (WebSocketDisconnect, TimeoutError):
        with suppress(RuntimeError, WebSocketDisconnect):
            await socket.close(TRY_AGAIN)


def _types(given: QueryParams) -> list[BatchType]:
    """The types a client wants; `status` always."""
    wanted = [name.strip() for name in given["types"].split(",")] if "types" in given else list(TYPES)
    if unknown := [name for name in wanted if name not in TYPES]:
        raise ValueError(f"{unknown[0]} is not a type; types are {', '.join(TYPES[:-1])}")
    return [name for name in TYPES if name in wanted or name == "status"]


def _instant(given: QueryParams, parameter: Parameter) -> datetime:
    if parameter.name not in given:
        raise ValueError("a replay needs from and to")
    moment: datetime = parameter.parse(given[parameter.name])
    return moment


async def _send(socket: WebSocket, batch: Batch) -> None:
    await asyncio.wait_for(socket.send_text(batch.text), SEND_S)


async def _end(socket: WebSocket, code: int, reason: str, cursor: object) -> None:
    """Say why, and where to go on, and close."""
    with suppress(RuntimeError, WebSocketDisconnect, TimeoutError):
        frame = pl.DataFrame([{"closed": reason}])
        await _send(socket, Batch("status", cursor, frame))
        await socket.close(code, reason[:120])
