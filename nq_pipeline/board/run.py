"""Runs the board: the stream, the figures and the web server in one process, and in the sandbox a capture."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import uvicorn

from nq_pipeline.board.app import build_app
from nq_pipeline.board.feed import Feed
from nq_pipeline.board.live import LiveBoard
from nq_pipeline.capture.log.locks import read_capture_holder
from nq_pipeline.clock import Clock
from nq_pipeline.errors import BoardError
from nq_pipeline.settings import Settings
from nq_pipeline.sources.databento.spec import DatabentoSettings
from nq_pipeline.stream.hub import Hub
from nq_pipeline.workspace import Workspace

STOP_S = 30.0
"""How long the capture that the board started may take to end; it flushes its log."""


async def serve_board(
    settings: Settings,
    *,
    clock: Clock,
    host: str,
    port: int,
    note: str = "",
    on_ready: Callable[[str], object] = lambda _: None,
) -> None:
    """Serve the board until SIGINT or SIGTERM (on the main thread), or until cancelled.

    Parameters
    ----------
    settings
        From `runtime.endpoints`.
    clock
        From `runtime.gateway_clock`.
    port
        0 is a free one.
    note
        What else to say at the top of the page.
    on_ready
        Called with the page's address when it can be opened.

    Raises
    ------
    BoardError
        The port cannot be used.
    """
    hub = Hub(Workspace.of(settings), settings.vendor(DatabentoSettings).dataset, clock=clock)
    feed = Feed(uuid.uuid4().hex[:8])
    board = LiveBoard(settings, hub, feed, clock=clock, note=note)
    config = uvicorn.Config(
        build_app(feed),
        host=host,
        port=port,
        log_level="critical",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    async with hub.running():
        serving, running = asyncio.create_task(_serve(server)), asyncio.create_task(board.run())
        try:
            while not (server.started or serving.done()):
                await asyncio.sleep(0.01)
            if server.started:
                bound = server.servers[0].sockets[0].getsockname()[1]
                on_ready(f"http://{f'[{host}]' if ':' in host else host}:{bound}")
            done, _ = await asyncio.wait([serving, running], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            server.should_exit = True
            running.cancel()
            await asyncio.gather(serving, running, return_exceptions=True)


async def _serve(server: uvicorn.Server) -> None:
    try:
        await server.serve()
    except SystemExit:
        host, port = server.config.host, server.config.port
        raise BoardError(
            f"port {port} of {host} cannot be used; stop the program that uses it, or choose another with "
            f"`nq board --port {port % 65535 + 1}`"
        ) from None


def needs_capture(settings: Settings) -> bool:
    """Whether the board starts a capture: in the sandbox, if none runs."""
    dataset = settings.vendor(DatabentoSettings).dataset
    return settings.environment == "sandbox" and read_capture_holder(settings, dataset) is None


@contextmanager
def sandbox_capture(settings: Settings) -> Iterator[None]:
    """Run `nq capture` in a process as long as the context lasts; its output goes to `board-capture.log`."""
    settings.environment_dir.mkdir(parents=True, exist_ok=True)
    with (settings.environment_dir / "board-capture.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "nq_pipeline", "capture"],
            env={**os.environ, "NQ_DATA_DIR": str(settings.data_dir)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        process.kill()
        process.wait()
