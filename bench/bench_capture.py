"""The whole capture against the stand-in gateway: after a lost connection, and under a steady load.

    python -m bench.bench_capture                          both, a minute of load
    python -m bench.bench_capture sustained --minutes 10   the load alone

Gateway and capture run in their own processes, like `nq sandbox` and `nq capture`. This one reads
the files of the capture log. All three share one monotonic clock; gateway and capture share the market
clock.

Reconnecting: the time from a dropped connection (close, reset, cut within a record) to the first record
in the log that was published after the drop. Records of the replay's overlap do not count.

Sustained: 100,000 trades a second, with publishing, merging and symbols as usual. The lag is sampled a
hundred times a second: how long ago the gateway received the newest record of the log. It is an upper
bound for any record and includes the gateway's ticks of 10 ms. At the end the lake must hold every
trade of the log once.
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
from collections.abc import Callable, Iterator
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


# ── the measured processes ──────────────────────────────────────────────────────────────────────


def gateway(load: int) -> None:
    """Serve a steady load. Each input line is a fault; each output line reports one that happened."""
    from nq_pipeline.clock import ShiftedClock, to_ns
    from nq_pipeline.sandbox.gateway.fault_script import Fault, FaultScript, parse_fault
    from nq_pipeline.sandbox.gateway.feed import Limits
    from nq_pipeline.sandbox.gateway.gateway import Gateway
    from nq_pipeline.sandbox.synthetic.market import market
    from nq_pipeline_tests.testing.load_tape import LoadTape

    tape = LoadTape(market(7), load)
    tape.records("trades", to_ns(OPENS), to_ns(OPENS) + 1)  # build the repeated second before the start
    clock = ShiftedClock(OPENS + timedelta(seconds=5))

    class ReportingScript(FaultScript):
        def claim(self, fault: Fault, session_id: int, records: int = 0) -> bool:
            report(dropped=time.monotonic(), market=served.now_ns())
            return super().claim(fault, session_id, records)

    script = ReportingScript()
    limits = Limits(connections_per_s=1_000)
    served = Gateway(tape, clock=clock, limits=limits, script=script)

    async def serve() -> None:
        await served.start()
        report(port=served.port, market=served.now_ns(), monotonic=time.monotonic())
        while line := await asyncio.to_thread(sys.stdin.readline):
            script.add(parse_fault(line))
        await served.stop()

    asyncio.run(serve())


def capture(data: Path, port: int, market: int, monotonic: float) -> None:
    """Capture and publish until the input ends; the clock shows `market` (ns) at the time `monotonic`."""
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

    def report_progress(totals: Any) -> None:
        report(
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
    running.run(stop, publish=publish, progress=report_progress)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    report(published=published, peak_mb=int(status["VmHWM"].split()[0]) / 1024, cpu_s=time.process_time())


def report(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


class ChildProcess:
    """A measured process; `reports` are the JSON lines it printed."""

    def __init__(self, *words: object, module: str = "bench.bench_capture") -> None:
        command = [sys.executable, "-m", module, *map(str, words)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid
        self.reports: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self.reports.append(json.loads(line))

    def send(self, line: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def wait_for(self, condition: Callable[[dict[str, Any]], Any]) -> Any:
        """Wait until the newest report meets a condition, and return it."""
        give_up = time.monotonic() + PATIENCE_S
        while not (self.reports and condition(self.reports[-1])):
            if self._process.poll() is not None or time.monotonic() > give_up:
                raise SystemExit(f"the process ended or timed out; its last report: {self.reports[-1:]}")
            time.sleep(0.005)
        return self.reports[-1]

    def kill(self) -> None:
        self._process.kill()
        self._reader.join()

    def end(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(PATIENCE_S)
        finally:
            self._process.kill()
            self._reader.join()


@contextmanager
def captured(load: int) -> Iterator[tuple[ChildProcess, ChildProcess, Path]]:
    """A gateway and a verified, up-to-date capture of it."""
    with tempfile.TemporaryDirectory() as data, ExitStack() as ends:
        served = ChildProcess("gateway", load)
        ends.callback(served.end)
        where = served.wait_for(lambda r: "port" in r)
        running = ChildProcess("capture", data, where["port"], where["market"], where["monotonic"])
        ends.callback(running.end)
        running.wait_for(lambda r: r.get("verified", 0) == 1 and not r["open"])
        yield served, running, Path(data) / "sandbox" / "capture" / DATASET


# ── after a lost connection ─────────────────────────────────────────────────────────────────────


def reconnecting() -> None:
    """Milliseconds from a drop to the first new record in the log."""
    latencies: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with captured(DROP_LOAD) as (served, running, folder):
        for number in range(DROPS):
            time.sleep(0.5)
            kind = KINDS[number % len(KINDS)]
            before = newest_segment(folder)
            served.send(kind)
            drop = served.wait_for(lambda r, n=number: len(served.reports) == n + 2)
            latencies[kind].append(1e3 * (first_after(folder, before, drop["market"]) - drop["dropped"]))
            running.wait_for(lambda r, n=number: r.get("verified", 0) == n + 2 and not r["open"])
    every = [ms for of_kind in latencies.values() for ms in of_kind]
    print(f"drop to the first new record in the log, {DROP_LOAD:,} records/s, {DROPS} drops:")
    print(f"  median {median(every):.0f} ms, longest {max(every):.0f} ms")
    print("  " + ", ".join(f"{kind} {median(times):.0f} ms" for kind, times in latencies.items()))


def newest_segment(folder: Path) -> Path:
    """The segment with the highest number."""
    return max(folder.glob("*/*.dbn"), key=lambda path: path.name.split("-")[1])


def first_after(folder: Path, before: Path, market_ns: int) -> float:
    """When, by the monotonic clock, a later segment first held a trade published after an instant."""
    from nq_pipeline.dbn.framer import Framer

    give_up = time.monotonic() + PATIENCE_S
    while (path := newest_segment(folder)) == before:
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
        began, lags, clock = time.monotonic(), [], served.reports[0]
        while (now := time.monotonic()) < began + 60 * minutes:
            if (newest_ns := last_received(newest_segment(folder))) is not None:
                passed = int((time.monotonic() - clock["monotonic"]) * 1e9)
                lags.append((clock["market"] + passed - newest_ns) / 1e6)
            time.sleep(max(0.0, now + 1 / SAMPLES_PER_S - time.monotonic()))
        behind = [r["records"] - r["published"] for r in running.reports if "records" in r]
        root = folder.parents[1]
        running.end()
        done = running.reports[-1]
        records, rows = count_trades(root)
    p50, p99 = np.percentile(lags, [50, 99])
    print(f"{LOAD:,} records/s for {minutes:g} minutes, {len(lags):,} samples:")
    print(f"  log lag: median {p50:.0f} ms, p99 {p99:.0f} ms, longest {max(lags):.0f} ms")
    print(f"  memory of the capture: {done['peak_mb']:.0f} MB; processor {done['cpu_s']:.0f} s")
    print(f"  published behind the log: at most {max(behind) / LOAD:.1f} s")
    print(f"  distinct trades in the log {records:,}, in the lake {rows:,}")
    if records != rows:
        raise SystemExit("the lake does not hold the trades of the log")


def last_received(path: Path) -> int | None:
    """The `ts_recv` of the trade that a segment ends with."""
    with path.open("rb") as file:
        file.seek(-TRADE, os.SEEK_END)
        record = file.read(TRADE)
    if len(record) < TRADE or record[0] != TRADE // 4 or record[1] != 0:
        return None
    return int.from_bytes(record[32:40], "little")


def count_trades(root: Path) -> tuple[int, int]:
    """Count the distinct trades of the log, and the rows of the lake."""
    import polars as pl

    from nq_pipeline.capture.log.reader import tail
    from nq_pipeline.lake.tables import TRADES

    distinct = pl.DataFrame(schema={"key": pl.UInt64})
    for block in tail(root / "capture" / DATASET):
        trades = block.frame.array(0)
        # Sequence and instrument together are unique in the load.
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
