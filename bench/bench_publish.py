"""Captured records to published Parquet, beside the official client's `add_stream` and `to_parquet`.

    python -m bench.bench_publish

The gateway of `bench_capture_log` sends the same trades of 3,000 instruments, with a symbol mapping
for each, to both. Ours: socket to fsynced capture log, then log to `lake/trades`: 29 columns, with
symbols, series and contract keys, sorted, checked for known keys, fsynced, and found by its
manifest. The official client: socket to a file by `Live.add_stream`, then
`DBNStore.to_parquet(schema="trades")`: 14 columns, in the order of the file. Both must hold the same
trades. Then how long one publication of a second's trades takes, early and late in an hour.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from bench.bench_capture_log import DATASET, TRADES, official, ours, stream
from nq_pipeline.clock import PinnedClock
from nq_pipeline.lake.lake import Lake
from nq_pipeline.lake.schemas import TRADES as TABLE
from nq_pipeline.live.framer import Framer
from nq_pipeline.live.log import CaptureLog
from nq_pipeline.live.publish import Publisher

ROUNDS = 3
NOON = PinnedClock(datetime(2025, 6, 10, 15, 10, tzinfo=UTC))
SECONDS, PER_SECOND = 3_600, 300


def publisher(folder: Path) -> Publisher:
    lake = Lake(folder / "sandbox" / "lake")
    return Publisher(folder / DATASET, lake, clock=NOON, run_id="bench")


def publish(folder: Path) -> dict[str, float]:
    """Publish a whole log; seconds, and the memory of this process at its highest."""
    started = time.perf_counter()
    done = publisher(folder).publish()
    seconds = time.perf_counter() - started
    assert done.rows == {"trades": TRADES}, done
    return {"seconds": seconds, "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}


def to_parquet(folder: Path) -> dict[str, float]:
    import databento

    started = time.perf_counter()
    databento.DBNStore.from_file(folder / "stream.dbn").to_parquet(folder / "trades.parquet", schema="trades")
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}


def digest(folder: Path, way: str) -> Any:
    """What both must agree on, whatever the order of rows."""
    import duckdb

    if way == "ours":
        files = [str(p) for p in Lake(folder / "sandbox" / "lake").files(TABLE)]
    else:
        files = [str(folder / "trades.parquet")]
    sums = ", ".join(
        f"sum(hash({name}::{kind}))"
        for name, kind in (("epoch_ns(ts_event)", "BIGINT"), ("sequence", "BIGINT"), ("price", "DOUBLE"),
                           ("instrument_id", "BIGINT"), ("side", "VARCHAR"), ("size", "BIGINT"))
    )  # fmt: skip
    with duckdb.connect() as connection:
        rows = connection.execute(f"SELECT count(*), {sums} FROM read_parquet({files})").fetchone()
    return rows, sum(Path(file).stat().st_size for file in files)


def hour(folder: Path) -> list[float]:
    """Seconds that each publication of an hour takes."""
    data = stream()
    framer, took, at = Framer(), [], 0
    published = publisher(folder)
    with CaptureLog(folder, DATASET, clock=NOON) as log:
        for second in range(SECONDS):
            step = len(data) - (TRADES - PER_SECOND) * 48 if second == 0 else PER_SECOND * 48
            for frame in framer.feed(data[at : at + step]):
                log.append(frame)
            at += step
            log.sync()
            started = time.perf_counter()
            published.publish(log.synced)
            took.append(time.perf_counter() - started)
    return took


def run(way: str, *arguments: object) -> Any:
    """One way in a process of its own; what it prints."""
    command = [sys.executable, "-m", "bench.bench_publish", way, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{way} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def round_of(port: str, way: str) -> tuple[float, dict[str, float], Any]:
    """Seconds from socket to file, what came of file to Parquet, and its digest."""
    first, second = ("ours", "publish") if way == "ours" else ("official", "to_parquet")
    with tempfile.TemporaryDirectory() as folder:
        captured = float(run(first, folder, port))
        published = run(second, folder)
        return captured, published, digest(Path(folder), way)


def main() -> None:
    serving = subprocess.Popen(
        [sys.executable, "-m", "bench.bench_capture_log", "gateway"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert serving.stdout is not None
        port = serving.stdout.readline().strip()
        rounds = [(round_of(port, "ours"), round_of(port, "official")) for _ in range(ROUNDS)]
    finally:
        serving.kill()
        serving.communicate()
    if any(mine[2][0] != theirs[2][0] for mine, theirs in rounds):
        raise SystemExit("the two ways published different trades")
    for title, seconds in (
        ("socket to Parquet", lambda r: r[0] + r[1]["seconds"]),
        ("file to Parquet", lambda r: r[1]["seconds"]),
    ):
        mine, theirs = min(seconds(m) for m, _ in rounds), min(seconds(t) for _, t in rounds)
        ratio = median(seconds(t) / seconds(m) for m, t in rounds)
        speeds = f"ours {TRADES / mine / 1e6:.2f}, official {TRADES / theirs / 1e6:.2f} M records/s"
        print(f"{title}: {ratio:.1f}x by the median of {ROUNDS} rounds; best: {speeds}")
    (_, mine, (_, size)), (_, theirs, (_, their_size)) = rounds[-1]
    print(f"memory: ours {mine['megabytes']:.0f}, official {theirs['megabytes']:.0f} MB")
    print(f"files: ours {size / 1e6:.0f} MB (29 columns), official {their_size / 1e6:.0f} MB (14 columns)")
    with tempfile.TemporaryDirectory() as folder:
        took = [1e3 * seconds for seconds in run("hour", folder)]
    early, late = median(took[60:360]), median(took[-300:])
    print(f"one publication of {PER_SECOND} trades: {early:.0f} ms early, {late:.0f} ms late in an hour")


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            main()
        case ["ours", folder, port]:
            print(ours(int(port), Path(folder)))
        case ["official", folder, port]:
            print(official(int(port), Path(folder)))
        case ["publish", folder]:
            print(json.dumps(publish(Path(folder))))
        case ["to_parquet", folder]:
            print(json.dumps(to_parquet(Path(folder))))
        case ["hour", folder]:
            print(json.dumps(hour(Path(folder))))
