"""A scripted webhook on loopback, which keeps what it was sent."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


@dataclass
class Receiver:
    """What came, and what the next requests are answered: (status, Retry-After, seconds to wait)."""

    url: str = ""
    texts: list[str] = field(default_factory=list)
    requests: int = 0
    answers: list[tuple[int, str, float]] = field(default_factory=list)
    always: tuple[int, str, float] = (200, "", 0.0)


@contextmanager
def receiver() -> Iterator[Receiver]:
    state = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            state.requests += 1
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, retry_after, wait = state.answers.pop(0) if state.answers else state.always
            time.sleep(wait)
            if status == 200 and self.path == "/services/T0/B0/marked-path":
                assert self.headers["Content-Type"] == "application/json"
                state.texts.append(json.loads(body)["text"])
            self.send_response(status)
            if retry_after:
                self.send_header("Retry-After", retry_after)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/services/T0/B0/marked-path"
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
