"""An S3 stand-in on a loopback port, and a proxy before it that shows an object store's faults.

The root `conftest.py` has the fixtures: `s3` (the server), `bucket` (a new bucket with its address and
environment variables), `s3_faults` (the proxy) and `flaky_bucket` (a new bucket behind the proxy).
"""

from __future__ import annotations

import http.client
import socket
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import requests

ACCESS_KEY = "standin-access-5b70"
SECRET_KEY = "standin-secret-e41d90c2"
SIGNED = {"Authorization": f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/20250701/us-east-1/s3/aws4_request"}
"""moto reads who signed, not whether the signature is right."""
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


@dataclass(frozen=True)
class Fault:
    """What the proxy does to a request instead of only passing it on; one of these.

    Attributes
    ----------
    status
        Answer with this status and do not pass the request on.
    delay_s
        Wait this long before passing it on.
    dies_mid_upload
        Read half of the request's body, then reset the connection; nothing reaches the store.
    loses_answer
        Pass the request on, then reset the connection instead of sending the answer.
    cuts_answer
        Send half of the answer's body, then reset the connection.
    ignores_conditions
        Pass the request on without its conditions, as stores do that have no conditional writes.
    method, path
        Only requests of this method (empty: any) and with this text in the path.
    times
        How many requests it concerns.
    """

    status: int = 0
    delay_s: float = 0.0
    dies_mid_upload: bool = False
    loses_answer: bool = False
    cuts_answer: bool = False
    ignores_conditions: bool = False
    method: str = ""
    path: str = ""
    times: int = 1


@dataclass
class FaultProxy:
    """A running proxy: its address, every request so far (method, path), and the faults still to show."""

    endpoint: str
    requests: list[tuple[str, str]] = field(default_factory=list)
    _faults: list[Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def show(self, *faults: Fault) -> None:
        """Show these faults next, each to as many requests as it says."""
        with self._lock:
            self._faults += [fault for fault in faults for _ in range(fault.times)]

    def clear(self) -> None:
        """Show no more faults."""
        with self._lock:
            self._faults.clear()

    @property
    def left(self) -> int:
        """How many faults were not shown yet."""
        return len(self._faults)

    def fault_of(self, method: str, path: str) -> Fault:
        """The fault to show to a request, which is then used up."""
        with self._lock:
            self.requests.append((method, path))
            for number, fault in enumerate(self._faults):
                if fault.method in ("", method) and fault.path in path:
                    return self._faults.pop(number)
        return Fault()


@dataclass(frozen=True)
class Bucket:
    """An empty bucket of the stand-in."""

    name: str
    endpoint: str

    @property
    def url(self) -> str:
        """For `NQ_LAKE_URL`."""
        return f"s3://{self.name}/lakes/nq"

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables with which any S3 client finds the stand-in."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
        }

    def names(self) -> list[str]:
        """The names of all objects, read without the product's code."""
        listing = requests.get(
            f"{self.endpoint}/{self.name}?list-type=2&max-keys=1000", headers=SIGNED, timeout=60
        )
        return [part.partition("</Key>")[0] for part in listing.text.split("<Key>")[1:]]

    def read(self, name: str) -> bytes:
        """An object, read without the product's code."""
        answer = requests.get(f"{self.endpoint}/{self.name}/{name}", headers=SIGNED, timeout=60)
        answer.raise_for_status()
        return answer.content


def new_bucket(endpoint: str) -> Bucket:
    bucket = Bucket(f"bucket-{uuid.uuid4().hex[:12]}", endpoint)
    made = requests.put(f"{endpoint}/{bucket.name}", timeout=60)
    assert made.status_code == 200, made.text
    return bucket


@contextmanager
def serve_s3() -> Iterator[str]:
    """Run the stand-in in a process of its own; yields its address."""
    program = Path(__file__).with_name("s3_server.py")
    with subprocess.Popen(
        [sys.executable, str(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdin and process.stdout
        port = process.stdout.readline().strip()
        assert port, "the S3 stand-in did not start"
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.stdin.close()


@contextmanager
def serve_faults(endpoint: str) -> Iterator[FaultProxy]:
    """Run a proxy before the stand-in."""
    host = urlsplit(endpoint).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            fault = proxy.fault_of(self.command, self.path)
            if fault.dies_mid_upload:
                self.rfile.read(length // 2)
                self._reset()
                return
            body = self.rfile.read(length)
            time.sleep(fault.delay_s)
            if fault.status:
                self._send(fault.status, {}, SLOW_DOWN)
                return
            upstream = http.client.HTTPConnection(host, timeout=60)
            left_out = {"connection", "if-none-match"} if fault.ignores_conditions else {"connection"}
            headers = {name: value for name, value in self.headers.items() if name.lower() not in left_out}
            upstream.request(self.command, self.path, body, headers)
            reply = upstream.getresponse()
            answer = reply.read()
            upstream.close()
            if fault.loses_answer:
                self._reset()
                return
            kept = {k: v for k, v in reply.getheaders() if k.lower() not in ("connection", "server", "date")}
            self._send(reply.status, kept, answer, cut=fault.cuts_answer)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _answer  # noqa: N815

        def _send(self, status: int, headers: Mapping[str, str], body: bytes, *, cut: bool = False) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "transfer-encoding"):
                    self.send_header(name, value)
            length = {name.lower(): value for name, value in headers.items()}.get("content-length")
            head = self.command == "HEAD"
            self.send_header("Content-Length", length if head and length else str(len(body)))
            self.end_headers()
            if not head:
                self.wfile.write(body[: len(body) // 2] if cut else body)
            if cut:
                self._reset()

        def _reset(self) -> None:
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that hangs up is no news."""

    server = Server(("127.0.0.1", 0), Handler)
    proxy = FaultProxy(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
