"""A stand-in gateway under load that Dagster's processes use as the sandbox's."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

from nq_pipeline.capture.log.locks import lock_pid
from nq_pipeline.clock import ShiftedClock
from nq_pipeline.configuration import load as load_settings
from nq_pipeline.orchestration.resources import Vendors
from nq_pipeline.sandbox.gateway.fault_script import Fault
from nq_pipeline.sandbox.gateway.gateway import KEY, Gateway
from nq_pipeline_tests.testing.capture_runs import (
    NOW,
    OPENS,
    last_published,
    published_and_sent,
    read_gaps,
    serve_gateway,
)
from nq_pipeline_tests.testing.gateway_client import unlimited

_FIELDS = {
    "NQ_DATA_DIR": "data_dir",
    "NQ_DATABENTO_URL": "databento_url",
    "NQ_DATABENTO_GATEWAY": "databento_gateway",
    "DATABENTO_API_KEY": "databento_api_key",
    "NQ_CAPTURE_SCHEMA": "capture_schema",
}
DAY = OPENS.date().isoformat()


@dataclass(frozen=True)
class CaptureMarket:
    """The gateway, the settings that lead to it, and where the capture writes."""

    gateway: Gateway
    settings: dict[str, str]
    data: Path

    @property
    def capturing(self) -> int | None:
        """The id of the process that captures; None if there is none."""
        return lock_pid(self.data / "sandbox" / "capture")

    @property
    def now_ns(self) -> int:
        return self.gateway.now_ns()

    @property
    def vendors(self) -> Vendors:
        """What runs and sensors in this process are given."""
        return Vendors(load_settings(**{_FIELDS[k]: v for k, v in self.settings.items()}))

    def gaps_are_verified(self) -> bool:
        """Whether the capture has found gaps and all of them are verified."""
        states = set(read_gaps(self.data)["state"])
        return states == {"verified"}

    def is_captured_since(self, after_ns: int) -> bool:
        """Whether a process captures, and what came after an instant is published and verified."""
        return bool(self.capturing) and self.published_until() > after_ns and self.gaps_are_verified()

    def published_until(self) -> int:
        """The newest published trade, nanoseconds UTC; 0 without any."""
        try:
            return last_published(self.data)
        except TypeError:
            return 0

    def is_whole(self) -> bool:
        """Whether the lake has every trade since the opening exactly once, up to its newest."""
        have, wanted = published_and_sent(self.gateway, self.data, self.published_until())
        return have.height > 0 and have.equals(wanted)


@contextmanager
def capture_market(
    data: Path,
    *faults: Fault,
    load: int,
    now: datetime = NOW,
    wanted: str = "trades",
    not_entitled: Collection[str] = ("mbo",),
    key: str = KEY,
    waits: bool = False,
) -> Iterator[CaptureMarket]:
    """A market twenty seconds after its opening, or at another instant, whose clock runs.

    `wanted` is the schema a capture begins with, `not_entitled` what the plan lacks. A market that `waits`
    starts its clock anew whenever it is asked for the time, so that a slow machine misses nothing of it.
    """
    with (
        serve_gateway(
            *faults, load=load, now=now, limits=unlimited(), not_entitled=not_entitled, keys=(key,)
        ) as gateway,
        _clock(gateway, waits) as url,
    ):
        settings = {
            "NQ_DATA_DIR": str(data),
            "NQ_DATABENTO_URL": url,
            "NQ_DATABENTO_GATEWAY": gateway.address,
            "DATABENTO_API_KEY": next(iter(gateway.keys)),
            "NQ_CAPTURE_SCHEMA": wanted,
        }
        yield CaptureMarket(gateway, settings, data)


@contextmanager
def _clock(gateway: Gateway, waits: bool) -> Iterator[str]:
    """An HTTP server that answers where the gateway is and what time it is there; yields its URL."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if waits and isinstance(gateway.clock, ShiftedClock):
                gateway.clock._since = time.monotonic()
            reply = {"address": gateway.address, "now": gateway.clock.now().isoformat()}
            body = json.dumps(reply).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
