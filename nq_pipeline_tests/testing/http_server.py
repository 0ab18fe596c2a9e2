"""A small scripted HTTP server on a loopback port, which can also answer badly."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

JSON = "application/json"


@dataclass(frozen=True)
class Asked:
    """One request as it arrived; header names in lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """What to send back.

    `cut` announces the whole body and closes the connection after half of it; `drip_s` pauses
    that long after each tenth of the body; `hang_up` closes the connection without a word. `reason`
    stands beside the status; `endless` sends the body again and again, as long as somebody reads.
    """

    body: bytes = b""
    status: int = 200
    content_type: str | None = JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False
    drip_s: float = 0.0
    hang_up: bool = False
    reason: str | None = None
    endless: bool = False


Respond = Callable[[Asked], Answer]


@dataclass
class Server:
    """A running server: its address and everything it was asked, in order."""

    url: str
    asked: list[Asked]
    _stopping: threading.Event


HTML = b"<!doctype html><html><body>Just a moment</body></html>"

FAULTS: dict[str, Callable[[Answer], Answer]] = {
    "challenge": lambda good: Answer(status=202, headers={"x-amzn-waf-action": "challenge"}),
    "captcha": lambda good: Answer(status=405, headers={"x-amzn-waf-action": "captcha"}),
    "http_401": lambda good: Answer(status=401, body=b'{"error":"unauthorized"}'),
    "http_403": lambda good: Answer(status=403, body=b'{"error":"forbidden"}'),
    "http_404": lambda good: Answer(status=404, body=b"{}"),
    "http_419": lambda good: Answer(status=419, body=b'{"message":"CSRF token mismatch."}'),
    "http_429": lambda good: Answer(status=429, content_type=None),
    "http_500": lambda good: Answer(status=500, body=b"oops", content_type="text/plain"),
    "redirect": lambda good: Answer(status=302, headers={"Location": "http://127.0.0.1:9/elsewhere"}),
    "hang_up": lambda good: Answer(hang_up=True),
    "truncated": lambda good: replace(good, cut=True),
    "drip": lambda good: replace(good, drip_s=0.4),
    "html": lambda good: Answer(body=HTML, content_type="text/html; charset=UTF-8"),
    "empty_body": lambda good: Answer(body=b""),
    "half_json": lambda good: replace(good, body=good.body[: len(good.body) // 2]),
    "json_number": lambda good: Answer(body=b"42"),
    "json_list_of_numbers": lambda good: Answer(body=b"[1,2,3]"),
    "json_null": lambda good: Answer(body=b"null"),
    "not_utf8": lambda good: Answer(body=b'{"data":"\xff\xfe"}'),
}
"""Ways to misbehave that every vendor speaking HTTP can fall into: good answer in, bad one out."""


@contextmanager
def serve(respond: Respond) -> Iterator[Server]:
    """Run a server on a free loopback port; `respond` is called for every request."""
    stopping = threading.Event()
    asked: list[Asked] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            parts = urlsplit(self.path)
            length = int(self.headers.get("Content-Length") or 0)
            question = Asked(
                method=self.command,
                path=parts.path,
                query=dict(parse_qsl(parts.query, keep_blank_values=True)),
                headers={name.lower(): value for name, value in self.headers.items()},
                body=self.rfile.read(length),
            )
            asked.append(question)
            self._send(respond(question))

        do_GET = do_POST = _answer  # noqa: N815

        def _send(self, answer: Answer) -> None:
            if answer.hang_up:
                self.close_connection = True
                return
            self.send_response(answer.status, answer.reason)
            if answer.content_type is not None:
                self.send_header("Content-Type", answer.content_type)
            for name, value in answer.headers.items():
                for one in value.split("\n"):
                    self.send_header(name, one)
            if not answer.endless:
                self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            try:
                if answer.cut:
                    self.wfile.write(answer.body[: len(answer.body) // 2])
                    self.close_connection = True
                elif answer.drip_s:
                    step = max(1, len(answer.body) // 10)
                    for start in range(0, len(answer.body), step):
                        self.wfile.write(answer.body[start : start + step])
                        self.wfile.flush()
                        if stopping.wait(answer.drip_s):
                            break
                elif answer.endless:
                    while not stopping.is_set():
                        self.wfile.write(answer.body)
                else:
                    self.wfile.write(answer.body)
            except OSError:  # the client went away, as it may
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    class _Http(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that hangs up is no news."""

    http = _Http(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield Server(f"http://127.0.0.1:{http.server_port}", asked, stopping)
    finally:
        stopping.set()
        http.shutdown()
        http.server_close()
        thread.join()
        time.sleep(0)
