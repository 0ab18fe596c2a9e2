"""Runs an application on a port, until it is told to stop."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import closing
from threading import Event, Thread

import uvicorn
from pydantic import SecretStr
from starlette.types import ASGIApp

from nq_pipeline.errors import ServeError
from nq_pipeline.serve.access import check_access

NICENESS = 5
"""So that a capture on a busy machine runs first."""
LINGER_S = 3
"""How long open requests may take after the stop."""


def run_server(
    app: ASGIApp,
    *,
    host: str,
    port: int,
    token: SecretStr | None,
    stop: Event,
    on_ready: Callable[[int], object] = lambda port: None,
) -> None:
    """Serve until `stop` is set. `on_ready` gets the port, which the system chooses for 0.

    Raises
    ------
    ServeError
        The host needs a token, or the port cannot be used.
    """
    check_access(host, token)
    with closing(_listen(host, port)) as listening:
        os.nice(NICENESS)  # on Linux, of this thread and those it starts
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            ws_per_message_deflate=False,  # else every message is compressed for every client
            timeout_graceful_shutdown=LINGER_S,
        )
        server = uvicorn.Server(config)
        serving = Thread(target=server.run, kwargs={"sockets": [listening]}, name="serve")
        serving.start()
        try:
            while serving.is_alive() and not server.started and not stop.wait(0.02):
                pass
            if server.started:
                on_ready(listening.getsockname()[1])
            while serving.is_alive() and not stop.wait(0.1):
                pass
        finally:
            server.should_exit = True
            serving.join()
    if not server.started:
        raise ServeError("the server could not start; its messages above say why")


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise ServeError(
            f"port {port} of {host} cannot be used ({error.strerror}); stop the program that uses it, or "
            "choose another with --port"
        ) from None
    return listening
