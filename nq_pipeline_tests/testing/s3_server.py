"""Runs moto's S3 server until standard input closes, so that it cannot outlive the tests.

`python s3_server.py` prints the port on the first line. Unlike moto alone, a PUT with a condition
(`If-None-Match`, `If-Match`) is atomic here, as it is in S3: commits and `put_if_absent` depend on that.
"""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

Application = Callable[[dict[str, Any], Any], Iterable[bytes]]


def one_put_at_a_time(application: Application) -> Application:
    """The application, in which no PUT runs between another's condition and its write."""
    lock = threading.Lock()

    def serve(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] != "PUT":
            return application(environ, start_response)
        announced = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(announced)
        if len(body) < announced:  # the client died: S3 stores nothing of it
            start_response("400 Bad Request", [("Content-Length", "0")])
            return []
        environ["wsgi.input"] = io.BytesIO(body)
        with lock:
            return list(application(environ, start_response))

    return serve


if __name__ == "__main__":
    app = one_put_at_a_time(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=MotoRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.port, flush=True)
    sys.stdin.read()
    os._exit(0)
