"""Whatever is killed, a client that returns with its cursor gets every record of the log once."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import connect

from nq_pipeline.capture.log.reader import tail
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing import capture_writer, served
from nq_pipeline_tests.testing.capture_writer import DATASET

KILLS = 5


class Client:
    """Follows the stream over any number of connections, and counts the trades."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.cursor = ""
        self.seen: Counter[int] = Counter()

    def follow(self, seconds: float) -> None:
        """Read for some time, or until the connection breaks."""
        until = time.monotonic() + seconds
        query = f"?cursor={self.cursor}" if self.cursor else ""
        address = f"ws://127.0.0.1:{self._port}/stream{query}"
        with (
            suppress(OSError, WebSocketException, ConnectionClosed, TimeoutError),
            connect(address, max_size=None, open_timeout=5) as opened,
        ):
            while (left := until - time.monotonic()) > 0:
                self._take(opened.recv(left))

    def _take(self, text: Any) -> None:
        message = orjson.loads(text)
        if message["type"] == "trades":
            self.seen.update(row["sequence"] for row in message["rows"])
        self.cursor = message["cursor"] or self.cursor


@pytest.mark.parametrize("seed", [1])
def test_a_client_misses_nothing_over_kills(tmp_path: Path, seed: int) -> None:
    chance, workspace = random.Random(seed), Workspace(tmp_path / "sandbox")
    workspace.lake.root.mkdir(parents=True)
    forks, port = served.FORKS, served.free_port()
    client, synced = Client(port), 0
    ours, theirs = multiprocessing.Pipe(duplex=False)
    server = served.start_server(tmp_path, port)
    while not client.cursor:
        client.follow(0.2)

    def start_capture() -> Any:
        first = max(0, synced - chance.choice([0, 50, 2_000]))  # a replay overlaps what is there
        process = forks.Process(
            target=capture_writer.capture,
            args=(workspace.capture, first, chance.random(), theirs),
            daemon=True,
        )
        process.start()
        return process

    capture = start_capture()
    for _ in range(KILLS):
        client.follow(chance.uniform(0.1, 0.5))
        match chance.choice(["server", "capture", "client"]):
            case "server":
                server.kill()
                server.join()
                server = served.start_server(tmp_path, port)
            case "capture":
                capture.kill()
                capture.join()
                while ours.poll():
                    synced, _ = capture_writer.parse_report(ours.recv_bytes())
                capture = start_capture()
    capture.kill()
    capture.join()
    logged = {
        int(number)
        for block in tail(workspace.capture / DATASET)
        for number in block.frame.array(0)["sequence"].tolist()
    }
    give_up = time.monotonic() + 60
    while client.seen.keys() != logged and time.monotonic() < give_up:
        client.follow(0.5)
    server.kill()
    server.join()
    assert len(logged) > 1_000
    assert client.seen.keys() == logged
    assert set(client.seen.values()) == {1}
