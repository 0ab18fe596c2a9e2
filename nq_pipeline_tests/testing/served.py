"""A server of `nq serve` on a thread or in a process of its own, and clients that know nothing of it."""

from __future__ import annotations

import json
import multiprocessing
import queue
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from nq_pipeline.clock import SystemClock
from nq_pipeline.configuration import build_settings
from nq_pipeline.market import sessions
from nq_pipeline.serve.app import build_app
from nq_pipeline.serve.server import run_server
from nq_pipeline.settings import Settings

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__])
HOST = "127.0.0.1"
PATIENCE_S = 30.0
sessions.trade_date(datetime.fromisoformat("2025-06-10T12:00+00:00"))  # the calendar takes a while to load


@contextmanager
def serve(settings: Settings) -> Iterator[str]:
    """Serve on a thread; yields host and port."""
    stop, ports = threading.Event(), queue.Queue[int]()

    def work() -> None:
        app, token = build_app(settings, clock=SystemClock(), host=HOST), settings.serve.token
        run_server(app, host=HOST, port=0, token=token, stop=stop, on_ready=ports.put)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield f"{HOST}:{ports.get(timeout=PATIENCE_S)}"
    finally:
        stop.set()
        thread.join(PATIENCE_S)


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def start_server(data: Path, port: int) -> BaseProcess:
    """Serve in a process that can be killed."""
    process = FORKS.Process(target=_serve, args=(data, port), daemon=True)
    process.start()
    return process


def _serve(data: Path, port: int) -> None:
    settings = build_settings(data_dir=data)
    app = build_app(settings, clock=SystemClock(), host=HOST)
    run_server(app, host=HOST, port=port, token=None, stop=threading.Event())


def messages(address: str, *, wait_s: float = PATIENCE_S, **options: Any) -> Iterator[dict[str, Any]]:
    """The messages of a WebSocket until it is closed, or until none comes for `wait_s`."""
    with connect(f"ws://{address}", open_timeout=PATIENCE_S, max_size=None, **options) as opened:
        while True:
            try:
                yield json.loads(opened.recv(wait_s))
            except (ConnectionClosed, TimeoutError):
                return
