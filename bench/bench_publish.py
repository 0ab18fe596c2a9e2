"""Socket to published Parquet, beside the official client's `Live.add_stream` and `to_parquet`.

    python -m bench.bench_publish

The gateway of `bench_capture_log` sends both the same trades of 3,000 instruments. Ours works like
`nq capture`: one thread writes the fsynced capture log, another publishes to `lake/trades`, measured
until every record is a row of 29 columns, with symbols, series and contract keys, sorted, deduplicated
and fsynced. The official client writes a file with `add_stream`, its first figure, and then 14 columns
in file order with `DBNStore.to_parquet(schema="trades")`. Both must hold the same trades. Then how long
one publication of a second's trades takes, early and late in ten minutes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from bench.bench_capture_log import DATASET, TRADES, official, ours, stream
from nq_pipeline.capture.log.writer import CaptureLog
from nq_pipeline.capture.publisher import Publisher
from nq_pipeline.clock import PinnedClock
from nq_pipeline.dbn.framer import Framer
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import TRADES as TABLE
from nq_pipeline.workspace import Workspace

ROUNDS = 3
FORMATS = ("manifest", "delta")
"""Of the lake."""
NOON = PinnedClock(datetime(2025, 6, 10, 15, 10, tzinfo=UTC))
SECONDS, PER_SECOND = 600, 300
PUBLISH_EVERY_S = 0.05
"""A capture publishes every second; here the whole stream takes less."""


def lake_of(folder: Path, form: str) -> Lake:
    return Workspace(folder / "sandbox", delta=form == "delta").lake


def publisher(folder: Path, form: str) -> Publisher:
    lake = lake_of(folder, form)
    return Publisher(folder / DATASET, lake, clock=NOON, run_id="bench")


def publish(folder: Path, port: int, form: str) -> dict[str, float]:
    """Capture and publish concurrently; the seconds of both, and the peak memory of this process."""
    published, captured, rows = publisher(folder, form), threading.Event(), 0

    def follow() -> None:
        nonlocal rows
        last = False
        while not last:
            last = captured.wait(PUBLISH_EVERY_S)
            rows += published.publish().rows.get("trades", 0)

    follower = threading.Thread(target=follow)
    follower.start()
    try:
        started, logged = ours(port, folder)
    finally:
        captured.set()
        follower.join()
    seconds = time.perf_counter() - started
    assert rows == TRADES, rows
    return {"seconds": seconds, "log_seconds": logged - started, "megabytes": peak_megabytes()}


def to_parquet(folder: Path) -> dict[str, float]:
    import databento

    started = time.perf_counter()
    databento.DBNStore.from_file(folder / "stream.dbn").to_parquet(folder / "trades.parquet", schema="trades")
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "megabytes": peak_megabytes()}


def peak_megabytes() -> float:
    """The peak memory of this process (Linux)."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in status if line.startswith("VmHWM"))) / 1024


def digest(folder: Path, way: str) -> Any:
    """A digest of the trades that ignores the order of rows, and the size of the files."""
    import duckdb

    files = [str(folder / "trades.parquet")] if way == "theirs" else lake_of(folder, way).files(TABLE)
    instant = "ts_event_ns" if way == "delta" else "epoch_ns(ts_event)"
    sums = ", ".join(
        f"sum(hash({name}::{kind}))"
        for name, kind in ((instant, "BIGINT"), ("sequence", "BIGINT"), ("price", "DOUBLE"),
                           ("instrument_id", "BIGINT"), ("side", "VARCHAR"), ("size", "BIGINT"))
    )  # fmt: skip
    with duckdb.connect() as connection:
        rows = connection.execute(f"SELECT count(*), {sums} FROM read_parquet({files})").fetchone()
    return rows, sum(Path(file).stat().st_size for file in files)


def publications(folder: Path, form: str) -> list[float]:
    """Seconds of each publication over ten minutes of trades."""
    data = stream()
    framer, took, at = Framer(), [], 0
    published = publisher(folder, form)
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
    """Run one way in its own process; its output."""
    command = [sys.executable, "-m", "bench.bench_publish", way, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{way} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def ours_once(port: str, form: str) -> tuple[dict[str, float], Any]:
    with tempfile.TemporaryDirectory() as folder:
        return run("publish", folder, port, form), digest(Path(folder), form)


def official_once(port: str) -> tuple[float, dict[str, float], Any]:
    with tempfile.TemporaryDirectory() as folder:
        return float(run("official", folder, port)), run("to_parquet", folder), digest(Path(folder), "theirs")


def main() -> None:
    serving = subprocess.Popen(
        [sys.executable, "-m", "bench.bench_capture_log", "gateway"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert serving.stdout is not None
        port = serving.stdout.readline().strip()
        rounds = [
            ({form: ours_once(port, form) for form in FORMATS}, *official_once(port)) for _ in range(ROUNDS)
        ]
    finally:
        serving.kill()
        serving.communicate()
    if any(mine[0] != theirs[0] for ours, _, _, theirs in rounds for _, mine in ours.values()):
        raise SystemExit("the ways published different trades")
    stream = [seconds for _, seconds, *_ in rounds]
    whole = [seconds + converted["seconds"] for _, seconds, converted, _ in rounds]
    ours, _, converted, (_, their_size) = rounds[-1]
    for form in FORMATS:
        mine = [each[form][0]["seconds"] for each, *_ in rounds]
        print(f"socket to published {form}: {TRADES / min(mine) / 1e6:.2f} M records/s (best of {ROUNDS})")
        for title, theirs in (("Live.add_stream alone", stream), ("add_stream, then to_parquet", whole)):
            ratio = median(theirs[i] / mine[i] for i in range(ROUNDS))
            rate = TRADES / min(theirs) / 1e6
            print(f"  beside {title}: {ratio:.1f}x by the median round (it: {rate:.2f} M records/s)")
        last, (_, size) = ours[form]
        print(f"  memory {last['megabytes']:.0f} MB, files {size / 1e6:.0f} MB (29 columns)")
        with tempfile.TemporaryDirectory() as folder:
            took = [1e3 * seconds for seconds in run("publications", folder, form)]
        early, late = median(took[60:360]), median(took[-300:])
        print(
            f"  one publication of {PER_SECOND} trades: {early:.0f} ms early, {late:.0f} ms late "
            "in ten minutes"
        )
    print(
        f"to_parquet: {converted['megabytes']:.0f} MB of memory, files {their_size / 1e6:.0f} MB (14 columns)"
    )


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            main()
        case ["publish", folder, port, form]:
            print(json.dumps(publish(Path(folder), int(port), form)))
        case ["official", folder, port]:
            print(official(int(port), Path(folder)))
        case ["to_parquet", folder]:
            print(json.dumps(to_parquet(Path(folder))))
        case ["publications", folder, form]:
            print(json.dumps(publications(Path(folder), form)))
