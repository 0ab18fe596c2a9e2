"""Socket to fsynced capture log, beside the official client's `Live.add_stream`.

    python -m bench.bench_capture_log

A gateway in its own process sends both the same prebuilt DBN over loopback: trades of 3,000 instruments
with a symbol mapping each. Ours is the official protocol with framer and log in place of its decoding,
measured until every record is fsynced. The official client writes a file with `add_stream`, which
neither syncs nor rotates, measured until `block_for_close` returns. Both must write the same records.
Then framer and log alone, fed from memory, and how long a record waits for its fsync at 100,000
records/s.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from statistics import median
from typing import Any

import databento_dbn
import numpy as np

from nq_pipeline.capture.log.segments import list_segments
from nq_pipeline.capture.log.writer import CaptureLog
from nq_pipeline.dbn.framer import Framer
from nq_pipeline.dbn.layout import RTYPES, SYMBOL_MAPPING, record_dtype

DATASET = "GLBX.MDP3"
KEY = "db-" + "0" * 29
TRADES, SYMBOLS, ROUNDS = 2_000_000, 3_000, 5
CHUNK = 64 * 1024
PACE, PACED_S = 100_000, 10


def stream() -> bytes:
    """What the gateway sends after the start of a session."""
    head = databento_dbn.Metadata(
        dataset=DATASET,
        start=1_749_567_600_000_000_000,
        stype_in=None,
        stype_out=databento_dbn.SType.INSTRUMENT_ID,
        schema=None,
        version=3,
    )
    mappings = blank_records(SYMBOL_MAPPING, SYMBOLS)
    mappings["instrument_id"] = np.arange(SYMBOLS)
    mappings["stype_in_symbol"] = b"NQ.OPT"
    mappings["stype_out_symbol"] = [f"NQU5 C{20_000 + 5 * i}".encode() for i in range(SYMBOLS)]
    random = np.random.default_rng(1)
    trades = blank_records(RTYPES["trades"], TRADES)
    trades["sequence"] = np.arange(TRADES)
    trades["ts_event"] = head.start + np.cumsum(random.integers(1, 100_000, TRADES, dtype=np.uint64))
    trades["ts_recv"] = trades["ts_event"] + np.uint64(150_000)
    trades["instrument_id"] = random.integers(0, SYMBOLS, TRADES)
    trades["price"] = 250_000_000 * random.integers(1, 4_000, TRADES)
    trades["size"], trades["action"], trades["side"] = 1, b"T", b"B"
    return bytes(head) + mappings.tobytes() + trades.tobytes()


def blank_records(rtype: int, count: int) -> np.ndarray[Any, Any]:
    array = np.zeros(count, record_dtype(rtype, 3))
    array["length"], array["rtype"] = array.dtype.itemsize // 4, rtype
    return array


def gateway() -> None:
    """Serve the stream to one client after the other, until the input ends."""
    data = stream()
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], flush=True)
        while True:
            client, _ = server.accept()
            with client:
                client.sendall(b"lsg_version=0.8.0\ncram=challenge\n")
                heard = client.recv(CHUNK)
                client.sendall(b"success=1|session_id=1\n")
                while b"start_session" not in heard:
                    heard += client.recv(CHUNK)
                client.sendall(data)


def ours(port: int, folder: Path) -> tuple[float, float]:
    """The start of the session and the end of its last fsync, on this process's performance counter."""
    from databento.live.protocol import DatabentoLiveProtocol

    class LoggedSession(DatabentoLiveProtocol):
        """The official session; its bytes go through the framer into the log."""

        def __init__(self, log: CaptureLog) -> None:
            super().__init__(KEY, DATASET)
            self.log, self.framer = log, Framer()

        def _process_dbn(self, data: bytes) -> None:
            for frame in self.framer.feed(data):
                self.log.append(frame)

    async def session(log: CaptureLog) -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        _, protocol = await loop.create_connection(lambda: LoggedSession(log), "127.0.0.1", port)
        await protocol.authenticated
        protocol.subscribe("trades", symbols="NQ.OPT", stype_in="parent")
        started = time.perf_counter()
        protocol.start()
        await protocol.disconnected
        log.sync()
        return started, time.perf_counter()

    with CaptureLog(folder, DATASET) as log:
        return asyncio.run(session(log))


def official(port: int, folder: Path) -> float:
    import databento

    live = databento.Live(KEY, gateway="127.0.0.1", port=port)
    live.add_stream(str(folder / "stream.dbn"))
    live.subscribe(DATASET, "trades", symbols="NQ.OPT", stype_in="parent")
    started = time.perf_counter()
    live.start()
    live.block_for_close()
    return time.perf_counter() - started


def alone(folder: Path) -> float:
    """Framer and log fed from memory, until every record is fsynced."""
    data = stream()
    with CaptureLog(folder, DATASET) as log:
        framer, started = Framer(), time.perf_counter()
        for at in range(0, len(data), CHUNK):
            for frame in framer.feed(data[at : at + CHUNK]):
                log.append(frame)
        log.sync()
        return time.perf_counter() - started


def paced(folder: Path) -> list[float]:
    """Seconds from append to fsync, sampled a hundred times a second at a steady pace."""
    data = stream()
    framer, waiting, lags = Framer(), deque[tuple[float, Any]](), []
    at, step = 0, 48 * PACE // 100
    with CaptureLog(folder, DATASET) as log:
        started = time.perf_counter()
        for tick in range(100 * PACED_S):
            for frame in framer.feed(data[at : at + step]):
                waiting.append((time.perf_counter(), log.append(frame)))
            at += step
            while (now := time.perf_counter()) < started + (tick + 1) / 100:
                while waiting and waiting[0][1] <= log.synced:
                    lags.append(now - waiting.popleft()[0])
                time.sleep(0.001)
    return lags


def digest(folder: Path) -> str:
    """SHA-256 of the records, whichever program wrote them."""
    found = [s.path for s in list_segments(folder / DATASET)] or [folder / "stream.dbn"]
    hashed = hashlib.sha256()
    for path in found:
        data = path.read_bytes()
        hashed.update(data[8 + int.from_bytes(data[4:8], "little") :])
    return hashed.hexdigest()


def measure(way: str, *arguments: object) -> Any:
    """Run one way in its own process on an empty folder; its output, and the digest of its records."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "bench.bench_capture_log", way, folder, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{way} failed:\n{done.stderr}")
        return json.loads(done.stdout), digest(Path(folder))


def main() -> None:
    serving = subprocess.Popen(
        [sys.executable, "-m", "bench.bench_capture_log", "gateway"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert serving.stdout is not None
        port = serving.stdout.readline().strip()
        rounds = [(measure("ours", port), measure("official", port)) for _ in range(ROUNDS)]
    finally:
        serving.kill()
        serving.communicate()
    if any(mine[1] != theirs[1] for mine, theirs in rounds):
        raise SystemExit("the two ways wrote different records")
    count = (TRADES + SYMBOLS) / 1e6
    mine, theirs = min(m[0] for m, _ in rounds), min(t[0] for _, t in rounds)
    ratio = median(t[0] / m[0] for m, t in rounds)
    memory, _ = min((measure("alone") for _ in range(ROUNDS)), key=lambda result: float(result[0]))
    lags, _ = measure("paced")
    print(f"socket to fsynced log:             {count / mine:6.2f} M records/s")
    print(f"socket to file by Live.add_stream: {count / theirs:6.2f} M records/s")
    print(f"ratio: {theirs / mine:.1f}x by the best of {ROUNDS} rounds, {ratio:.1f}x by the median round")
    print(f"framer and log from memory:        {count / memory:6.2f} M records/s")
    p50, p99 = np.percentile(lags, [50, 99]) * 1e3
    print(f"append to fsync at {PACE:,} records/s for {PACED_S} s: p50 {p50:.0f} ms, p99 {p99:.0f} ms")


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            main()
        case ["gateway"]:
            gateway()
        case ["ours", folder, port]:
            started, ended = ours(int(port), Path(folder))
            print(ended - started)
        case ["official", folder, port]:
            print(official(int(port), Path(folder)))
        case ["alone", folder]:
            print(alone(Path(folder)))
        case ["paced", folder]:
            print(json.dumps(paced(Path(folder))))
