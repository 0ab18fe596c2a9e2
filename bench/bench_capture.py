"""The whole capture against the stand-in gateway: after a lost connection, and under a steady load.

    python -m bench.bench_capture                          both, a minute of load
    python -m bench.bench_capture sustained --minutes 10   the load alone

Gateway and capture are processes of their own, as `nq sandbox` and `nq capture` are; a third one,
this, only looks at the files of the capture log. All three read one monotonic clock, and gateway
and capture the same market clock.

Reconnecting: from the moment the gateway drops the connection (close, reset, cut within a record)
to the first record in the log that was published after it. Records of the replay's overlap do not
count: their time of receipt is before the drop.

Sustained: 100,000 trades a second with publishing, merging and symbols as ever. The lag is looked
at a hundred times a second: how long ago the newest record in the log was received by the gateway.
That is no less than what any record waited, and includes the gateway's own ticks of 10 ms. At the
end every trade of the log must be in the lake, once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from nq_pipeline.configuration import build_settings
from nq_pipeline.workspace import Workspace

DATASET = "GLBX.MDP3"
OPENS = datetime.fromisoformat("2025-06-10T13:30:00+00:00")
DROPS, DROP_LOAD = 21, 2_000
KINDS = ("fin", "rst", "cut")
LOAD = 100_000
SAMPLES_PER_S = 100
PATIENCE_S = 120.0
TRADE = 48
"""Bytes of a trade, DBN version 3."""


# ── the two processes that are looked at ────────────────────────────────────────────────────────


def gateway(load: int) -> None:
    """Serve a steady load; every line of the input is a fault, every line of the output is one struck."""
    from nq_pipeline.clock import ShiftedClock, to_ns
    from nq_pipeline.sandbox.gateway.fault_script import Fault, FaultScript, parse_fault
    from nq_pipeline.sandbox.gateway.feed import Limits
    from nq_pipeline.sandbox.gateway.gateway import Gateway
    from nq_pipeline.sandbox.synthetic.market import market
    from nq_pipeline.sandbox.synthetic.tape import LoadTape

    tape = LoadTape(market(7), load)
    tape.records(
        "trades", to_ns(OPENS), to_ns(OPENS) + 1
    )  # what every second is made of takes a while to make
    clock = ShiftedClock(OPENS + timedelta(seconds=5))

    class Noted(FaultScript):
        def claim(self, fault: Fault, session_id: int, records: int = 0) -> bool:
            say(struck=time.monotonic(), market=served.now_ns())
            return super().claim(fault, session_id, records)

    script = Noted()
    limits = Limits(connections_per_s=1_000)
    served = Gateway(tape, clock=clock, limits=limits, script=script)

    async def serve() -> None:
        await served.start()
        say(port=served.port, market=served.now_ns(), monotonic=time.monotonic())
        while line := await asyncio.to_thread(sys.stdin.readline):
            script.add(parse_fault(line))
        await served.stop()

    asyncio.run(serve())


def capture(data: Path, port: int, market: int, monotonic: float) -> None:
    """Capture and publish until the input ends, by a clock that showed an instant at a monotonic time."""
    from nq_pipeline.capture.capture import Capture
    from nq_pipeline.capture.publisher import Publisher
    from nq_pipeline.clock import ShiftedClock, from_ns
    from nq_pipeline.sandbox.gateway.gateway import HOST, KEY

    clock = ShiftedClock(from_ns(market) + timedelta(seconds=time.monotonic() - monotonic))
    settings = build_settings(
        data_dir=data,
        databento_api_key=KEY,
        databento_gateway=f"{HOST}:{port}",
        capture_schema="trades",
    )
    running = Capture(settings, clock=clock)
    log, lake = Workspace.of(settings).capture / DATASET, Workspace.of(settings).lake
    publisher = Publisher(log, lake, clock=clock, run_id=running.run_id)
    stop, published = threading.Event(), 0

    def publish() -> None:
        nonlocal published
        published += publisher.publish().rows.get("trades", 0)

    def report(totals: Any) -> None:
        say(
            records=totals.records,
            published=published,
            verified=totals.verified_gaps,
            open=totals.open_gaps,
            failure=totals.publish_failure,
            lag_p99_ms=totals.lag_p99_ms,
        )

    def wait() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=wait, daemon=True).start()
    running.run(stop, publish=publish, progress=report)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    say(published=published, peak_mb=int(status["VmHWM"].split()[0]) / 1024, cpu_s=time.process_time())


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


class Child:
    """One of them; `heard` holds what it said."""

    def __init__(self, *words: object) -> None:
        command = [sys.executable, "-m", "bench.bench_capture", *map(str, words)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.heard: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self.heard.append(json.loads(line))

    def tell(self, line: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def until(self, said: Any) -> Any:
        """Wait until the last thing it said is as wanted."""
        give_up = time.monotonic() + PATIENCE_S
        while not (self.heard and said(self.heard[-1])):
            if self._process.poll() is not None or time.monotonic() > give_up:
                raise SystemExit(f"the benchmark came to nothing: {self.heard[-1:]}")
            time.sleep(0.005)
        return self.heard[-1]

    def end(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(PATIENCE_S)
        finally:
            self._process.kill()
            self._reader.join()


@contextmanager
def captured(load: int) -> Iterator[tuple[Child, Child, Path]]:
    """A gateway, and a capture of it that has come to the present and proved it."""
    with tempfile.TemporaryDirectory() as data, ExitStack() as ends:
        served = Child("gateway", load)
        ends.callback(served.end)
        where = served.until(lambda said: "port" in said)
        running = Child("capture", data, where["port"], where["market"], where["monotonic"])
        ends.callback(running.end)
        running.until(lambda said: said.get("verified", 0) == 1 and not said["open"])
        yield served, running, Path(data) / "sandbox" / "capture" / DATASET


# ── after a lost connection ─────────────────────────────────────────────────────────────────────


def reconnecting() -> None:
    """Milliseconds from a drop to the first new record in the log."""
    took: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with captured(DROP_LOAD) as (served, running, folder):
        for number in range(DROPS):
            time.sleep(0.5)
            kind = KINDS[number % len(KINDS)]
            before = newest(folder)
            served.tell(kind)
            drop = served.until(lambda said, n=number: len(served.heard) == n + 2)
            took[kind].append(1e3 * (first_after(folder, before, drop["market"]) - drop["struck"]))
            running.until(lambda said, n=number: said.get("verified", 0) == n + 2 and not said["open"])
    every = [ms for of_kind in took.values() for ms in of_kind]
    print(f"drop to the first new record in the log, {DROP_LOAD:,} records/s, {DROPS} drops:")
    print(f"  median {median(every):.0f} ms, longest {max(every):.0f} ms")
    print("  " + ", ".join(f"{kind} {median(times):.0f} ms" for kind, times in took.items()))


def newest(folder: Path) -> Path:
    """The segment with the highest number."""
    return max(folder.glob("*/*.dbn"), key=lambda path: path.name.split("-")[1])


def first_after(folder: Path, before: Path, market_ns: int) -> float:
    """When, by the monotonic clock, a later segment first held a trade published after an instant."""
    from nq_pipeline.dbn.framer import Framer

    give_up = time.monotonic() + PATIENCE_S
    while (path := newest(folder)) == before:
        time.sleep(0.0005)
    framer = Framer()
    with path.open("rb") as file:
        while time.monotonic() < give_up:
            for frame in framer.feed(file.read()):
                if (frame.array(0)["ts_recv"] > np.uint64(market_ns)).any():
                    return time.monotonic()
            time.sleep(0.0005)
    raise SystemExit("no new record came")


# ── under a steady load ─────────────────────────────────────────────────────────────────────────


def sustained(minutes: float) -> None:
    """Lag, memory and completeness at a steady load."""
    with captured(LOAD) as (served, running, folder):
        began, lags, clock = time.monotonic(), [], served.heard[0]
        while (now := time.monotonic()) < began + 60 * minutes:
            if (newest_ns := last_received(newest(folder))) is not None:
                passed = int((time.monotonic() - clock["monotonic"]) * 1e9)
                lags.append((clock["market"] + passed - newest_ns) / 1e6)
            time.sleep(max(0.0, now + 1 / SAMPLES_PER_S - time.monotonic()))
        behind = [said["records"] - said["published"] for said in running.heard if "records" in said]
        root = folder.parents[1]
        running.end()
        done = running.heard[-1]
        records, rows = held(root)
    p50, p99 = np.percentile(lags, [50, 99])
    print(f"{LOAD:,} records/s for {minutes:g} minutes, {len(lags):,} samples:")
    print(f"  log lag: median {p50:.0f} ms, p99 {p99:.0f} ms, longest {max(lags):.0f} ms")
    print(f"  memory of the capture: {done['peak_mb']:.0f} MB; processor {done['cpu_s']:.0f} s")
    print(f"  published behind the log: at most {max(behind) / LOAD:.1f} s")
    print(f"  trades in the log without doubles {records:,}, in the lake {rows:,}")
    if records != rows:
        raise SystemExit("the lake is not the log")


def last_received(path: Path) -> int | None:
    """The `ts_recv` of the trade that a segment ends with."""
    with path.open("rb") as file:
        file.seek(-TRADE, os.SEEK_END)
        record = file.read(TRADE)
    if len(record) < TRADE or record[0] != TRADE // 4 or record[1] != 0:
        return None
    return int.from_bytes(record[32:40], "little")


def held(root: Path) -> tuple[int, int]:
    """Different trades in the log, and rows of the lake."""
    import polars as pl

    from nq_pipeline.capture.log import tail
    from nq_pipeline.lake.tables import TRADES

    distinct = pl.DataFrame(schema={"key": pl.UInt64})
    for block in tail(root / "capture" / DATASET):
        trades = block.frame.array(0)
        # Number and instrument of the load are different for every record.
        key = trades["sequence"].astype(np.uint64) << np.uint64(32) | trades["instrument_id"]
        distinct = pl.concat([distinct, pl.DataFrame({"key": key})])
    rows = Workspace(root).lake.scan(TRADES).select(pl.len()).collect().item()
    return distinct["key"].n_unique(), rows


def main() -> None:
    reconnecting()
    sustained(1)


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            main()
        case ["gateway", load]:
            gateway(int(load))
        case ["capture", data, port, market, monotonic]:
            capture(Path(data), int(port), int(market), float(monotonic))
        case ["reconnecting"]:
            reconnecting()
        case ["sustained", *options]:
            parser = argparse.ArgumentParser(prog="python -m bench.bench_capture sustained")
            parser.add_argument("--minutes", type=float, default=10.0)
            sustained(parser.parse_args(options).minutes)
        case _:
            raise SystemExit(__doc__)
