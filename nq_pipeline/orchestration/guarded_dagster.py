"""`dagster dev` with a guarded web server, for `nq ui`.

Dagster's web server accepts mutations from any page, even as a GET: an image on a page of another site could
launch a run. The guard is that of `nq serve`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from starlette.middleware import Middleware

from nq_pipeline.serve.access import AccessGuard

HOST = "127.0.0.1"


def guard_web_server() -> None:
    """Put the guard before every route of the web server that this process runs."""
    served: Any = import_module("dagster_webserver.webserver").DagsterWebserver
    unguarded = served.build_middleware

    def build_middleware(server: object) -> list[Middleware]:
        guard = Middleware(AccessGuard, host=HOST, token=None, allow_links=True)
        return [guard, *unguarded(server)]

    served.build_middleware = build_middleware


def start_guarded_server() -> None:
    """Let `dagster dev` of this process start this module instead of the web server."""
    dev: Any = import_module("dagster._cli.dev")
    start, own = dev.open_ipc_subprocess, "nq_pipeline.orchestration.guarded_dagster"

    def start_guarded(command: list[str], **options: Any) -> Any:
        return start([own if part == "dagster_webserver" else part for part in command], **options)

    dev.open_ipc_subprocess = start_guarded


if __name__ == "__main__":
    if sys.argv[1] == "dev":
        start_guarded_server()
        import_module("dagster._cli").main()
    else:
        guard_web_server()
        import_module("dagster_webserver.cli").main()
