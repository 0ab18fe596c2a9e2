"""`nq serve`: data for programs."""

from __future__ import annotations

import signal
import threading

import click

from nq_pipeline.cli.exit_codes import report_errors
from nq_pipeline.cli.output import load, note_sandbox, url


@click.command(short_help="Serve the lake and the live stream over HTTP, until Ctrl-C.")
@click.option("--port", type=click.IntRange(0, 65535), default=3100, show_default=True,
              help="Port to listen on; 0 lets the system choose.")  # fmt: skip
@click.option("--host", default="127.0.0.1", show_default=True,
              help="Address to listen on. Beyond this machine it needs NQ_SERVE_TOKEN.")  # fmt: skip
@report_errors
def serve(port: int, host: str) -> None:
    """Serve the lake and the live stream to programs, read-only, until Ctrl-C.

    Tables as JSON, CSV or Arrow IPC, SQL, a WebSocket with trades, quotes, gaps and snapshots as
    they come, replays of recorded spans, and metrics for Prometheus. The page / describes it all.

    \b
    Example:
      nq serve --port 3100
    """
    from nq_pipeline.runtime import market_clock
    from nq_pipeline.serve.access import check_access
    from nq_pipeline.serve.app import build_app
    from nq_pipeline.serve.server import run_server
    from nq_pipeline.signals import on_signal

    settings, stop = load(), threading.Event()
    check_access(host, settings.serve.token)
    note_sandbox(settings)
    app = build_app(settings, clock=market_clock(settings), host=host)
    with on_signal(lambda _: stop.set(), signal.SIGINT, signal.SIGTERM):
        run_server(
            app,
            host=host,
            port=port,
            token=settings.serve.token,
            stop=stop,
            on_ready=lambda bound: click.echo(f"Serving {url(host, bound)}/ until Ctrl-C."),
        )
