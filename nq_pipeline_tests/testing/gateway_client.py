"""The official client and a bare socket, as the tests of the gateway hold them."""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import databento
import numpy as np
from databento.common.error import BentoError

from nq_pipeline.capture.log.writer import CaptureLog
from nq_pipeline.clock import ShiftedClock
from nq_pipeline.dbn.framer import Framer
from nq_pipeline.dbn.layout import Array
from nq_pipeline.sandbox.gateway.feed import DATASET, Limits
from nq_pipeline.sandbox.gateway.gateway import HOST, KEY, Gateway
from nq_pipeline.sandbox.synthetic.instruments import universe
from nq_pipeline.sandbox.synthetic.market import market
from nq_pipeline.sandbox.synthetic.records import blank_records
from nq_pipeline_tests.testing.load_tape import LoadTape

NOON = datetime(2025, 6, 10, 15, tzinfo=UTC)
"""The middle of a session, as the stand-ins' other tests have it."""
PATIENCE_S = 60.0
LISTED = universe(market(7), NOON.date())
EVERYTHING = LISTED["parent"].unique().sort().to_list()
"""The parents that have instruments at that time: all options and the futures."""


def gateway(*, now: datetime = NOON, speed: float = 1.0, load: int | None = 2_000, **more: Any) -> Gateway:
    """A gateway in the middle of a session, with a steady load instead of the market's own tape."""
    recording = LoadTape(market(7), load) if load else None
    return Gateway(recording, clock=ShiftedClock(now, speed), **more)


class Recorder:
    """The official client with everything it was called back with."""

    def __init__(self, served: Gateway, key: str = KEY, **options: Any) -> None:
        self.live = databento.Live(key, gateway=HOST, port=served.port, **options)
        self.heard: list[Any] = []
        self.live.add_callback(self.heard.append)

    def subscribe(self, schema: str = "trades", symbols: Any = EVERYTHING, **more: Any) -> None:
        self.live.subscribe(DATASET, schema, symbols, **{"stype_in": "parent", **more})

    def start(self) -> Recorder:
        self.live.start()
        return self

    def of(self, kind: str) -> list[Any]:
        return [record for record in list(self.heard) if type(record).__name__ == kind]

    def codes(self, kind: str) -> list[int]:
        return [int(record.code) for record in self.of(kind)]

    def array(self, schema: str = "trades") -> Array:
        """The data records of a schema, as DBN has them."""
        record = blank_records(schema).dtype
        rtype = {"trades": 0, "mbp-1": 1}[schema]
        bodies = [bytes(r)[: record.itemsize] for r in list(self.heard) if int(r.rtype) == rtype]
        return np.frombuffer(b"".join(bodies), record)

    def wait(self, enough: Callable[[], Any]) -> None:
        give_up = time.monotonic() + PATIENCE_S
        while not enough():
            assert time.monotonic() < give_up, f"nothing more came: {self.summary()}"
            time.sleep(0.01)

    def wait_for(self, records: int) -> Recorder:
        self.wait(lambda: len(self.heard) > records and len(self.array()) >= records)
        return self

    def end(self) -> str:
        """Wait for the end of the session; what the client says went wrong, '' for nothing."""
        try:
            self.live.block_for_close(timeout=PATIENCE_S)
        except BentoError as error:
            return str(error)
        return ""

    def summary(self) -> dict[str, int]:
        names = [type(record).__name__ for record in list(self.heard)]
        return {name: names.count(name) for name in set(names)}


@contextmanager
def recorder(served: Gateway, *, start: bool = True, **options: Any) -> Iterator[Recorder]:
    """A recorder, of all trades unless `start` is False; ended however the test ends."""
    client = Recorder(served, **{"heartbeat_interval_s": 5, **options})
    try:
        if start:
            client.subscribe()
            client.start()
        yield client
    finally:
        client.live.terminate()


class Bare:
    """A client that reads and writes the protocol's bytes itself."""

    def __init__(self, served: Gateway, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect((HOST, served.port))
        self.file = self.socket.makefile("rb")

    def line(self) -> bytes:
        return self.file.readline()

    def say(self, text: str) -> None:
        self.socket.sendall(text.encode())

    def authenticate(self, key: str = KEY, dataset: str = DATASET, more: str = "") -> bytes:
        """Answer the challenge; the gateway's verdict."""
        self.line()
        challenge = self.line().decode().strip().partition("=")[2]
        answer = hashlib.sha256(f"{challenge}|{key}".encode()).hexdigest()
        self.say(f"auth={answer}-{key[-5:]}|dataset={dataset}|encoding=dbn|ts_out=0{more}\n")
        return self.line()

    def read(self, size: int) -> bytes:
        return self.file.read(size)

    def rest(self) -> bytes:
        """Everything up to the end of the stream."""
        return self.file.read()

    def close(self) -> None:
        self.file.close()
        self.socket.close()


@contextmanager
def bare(served: Gateway, **options: Any) -> Iterator[Bare]:
    client = Bare(served, **options)
    try:
        yield client
    finally:
        client.close()


def unlimited(**more: Any) -> Limits:
    """Limits that do not slow tests with many connections."""
    return Limits(**{"connections_per_s": 1_000, **more})


def log_session(log: CaptureLog, served: Any, schema: str, start: int, most: int | None = None) -> int:
    """Log one session until it ends or has sent `most` records; returns the last `ts_event` of its data."""
    framer, seen, last = Framer(), 0, start
    with bare(served) as client:
        client.authenticate()
        client.say(
            f"schema={schema}|stype_in=parent|symbols={','.join(EVERYTHING)}|start={start}|id=0|is_last=1\n"
        )
        client.say("start_session=0\n")
        while (most is None or seen < most) and (piece := client.file.read1(4_096)):
            for frame in framer.feed(piece):
                log.append(frame)
                for tally in (frame.tallies[rtype] for rtype in (0, 1) if rtype in frame.tallies):
                    seen, last = seen + tally.count, tally.ts_event or last
    return last
