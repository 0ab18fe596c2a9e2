"""A live board on a thread, and a reader of its events."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import orjson
import requests

from nq_pipeline.board.run import serve_board
from nq_pipeline.clock import Clock
from nq_pipeline.settings import Settings

START_S = 120.0


@contextmanager
def live_board(settings: Settings, clock: Clock, **more: Any) -> Iterator[str]:
    """Serve a board on a free port of loopback; yields its address, and raises what it raised."""
    ready: Future[str] = Future()
    loop = asyncio.new_event_loop()
    begun: list[asyncio.Task[None]] = []

    async def main() -> None:
        chosen = {"host": "127.0.0.1", "port": 0, **more}
        begun.append(
            asyncio.ensure_future(serve_board(settings, clock=clock, on_ready=ready.set_result, **chosen))
        )
        try:
            await begun[0]
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error)

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
    thread.start()
    try:
        yield ready.result(START_S)
    finally:
        if begun:
            loop.call_soon_threadsafe(begun[0].cancel)
        thread.join(START_S)
        loop.close()


def board_messages(address: str, after: str = "") -> Iterator[dict[str, Any]]:
    """The messages of a board, as a program would read them."""
    with requests.get(f"{address}/events", params={"after": after}, stream=True, timeout=60) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines(chunk_size=None):
            if line.startswith(b"data: "):
                yield orjson.loads(line.removeprefix(b"data: "))
