"""A live board on a thread, and a reader of its events."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import orjson
import requests

from nq_pipeline.board.app import build_app
from nq_pipeline.clock import Clock
from nq_pipeline.serve.server import run_server
from nq_pipeline.settings import Settings

START_S = 120.0


@contextmanager
def live_board(settings: Settings, clock: Clock, *, host: str = "127.0.0.1", **more: Any) -> Iterator[str]:
    """Serve a board on a free port; yields its address on loopback, and raises what it raised."""
    ready: Future[int] = Future()
    stop = threading.Event()

    def serve() -> None:
        app = build_app(settings, clock=clock, host=host, stop=stop, **more)
        try:
            run_server(
                app, host=host, port=0, token=settings.serve.token, stop=stop, on_ready=ready.set_result
            )
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{ready.result(START_S)}"
    finally:
        stop.set()
        thread.join(START_S)


def board_messages(address: str, **headers: str) -> Iterator[dict[str, Any]]:
    """The messages of a board, as a program would read them."""
    with requests.get(f"{address}/events", headers=headers, stream=True, timeout=60) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines(chunk_size=None):
            if line.startswith(b"data: "):
                yield orjson.loads(line.removeprefix(b"data: "))
