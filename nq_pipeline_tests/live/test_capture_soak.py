"""The promises: nothing missing, nothing twice, whatever is cut off and however often."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from nq_pipeline.clock import to_ns
from nq_pipeline.lake.lake import Lake
from nq_pipeline.lake.schemas import TRADES
from nq_pipeline.live.publish import Publisher
from nq_pipeline.sandbox.gateway import DATASET, Gateway
from nq_pipeline.sandbox.gateway_script import Fault
from nq_pipeline_tests.live.test_capture import OPENS, Running, all_verified, complete, gaps, served
from nq_pipeline_tests.sandbox.gateway_client import unlimited

REPOSITORY = Path(__file__).parents[2]
SOAK = (pytest.mark.slow, pytest.mark.timeout(3600))
KINDS = ["fin", "rst", "cut", "garbage", "silence"]
KEY = ("instrument_id", "ts_event", "sequence", "price", "size")
PATIENCE_S = 120.0


def published(it: Gateway, data: Path, last_ns: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The trades of the lake and those of the tape up to an instant, as multisets to compare."""
    truth = it.records("trades", to_ns(OPENS) - 10**9, last_ns + 10**9)
    truth = truth[(truth["ts_event"] >= to_ns(OPENS)) & (truth["ts_event"] < last_ns)]
    wanted = pl.DataFrame({name: truth[name].astype("i8") for name in KEY})
    rows = Lake(data / "sandbox" / "lake").scan(TRADES).collect()
    have = rows.select(
        pl.col("instrument_id", "sequence", "size").cast(pl.Int64),
        pl.col("ts_event").dt.epoch("ns"),
        (pl.col("price") * 1e9).round().cast(pl.Int64),
    ).select(KEY)
    have = have.filter(pl.col("ts_event") >= to_ns(OPENS), pl.col("ts_event") < last_ns)
    return have.sort(KEY), wanted.sort(KEY)


def last_published(data: Path) -> int:
    newest = Lake(data / "sandbox" / "lake").scan(TRADES).select(pl.col("ts_event").dt.epoch("ns").max())
    return int(newest.collect().item())


def publisher(it: Gateway, data: Path) -> Publisher:
    log, lake = data / "sandbox" / "capture" / DATASET, Lake(data / "sandbox" / "lake")
    return Publisher(log, lake, clock=it.clock, run_id="soak")


def disconnect(it: Gateway, data: Path, times: int) -> None:
    """Lose the connection in every way, one after the other, each when the last is made good."""
    running = Running(it, data, publish=publisher(it, data).publish)
    try:
        for number in range(times):
            running.until(lambda: all_verified(running))
            it.script.add(Fault(KINDS[number % len(KINDS)]))
            running.until(lambda n=number: len(it.script.struck) > n)
            running.until(lambda n=number: running.capture.totals.verified_gaps > n + 1)
        running.until(lambda: all_verified(running))
    finally:
        running.finish()


@pytest.mark.parametrize("times", [10, pytest.param(60, marks=SOAK)])
def test_after_disconnects_of_all_kinds_the_lake_is_what_was_sent(times: int, tmp_path: Path) -> None:
    with served(limits=unlimited()) as it:
        disconnect(it, tmp_path, times)
        assert complete(it, tmp_path)
        have, wanted = published(it, tmp_path, last_published(tmp_path))
    assert have.equals(wanted)
    found = gaps(tmp_path)
    assert found.height == times + 1 and set(found["state"]) == {"verified"}


# ── kill -9 ─────────────────────────────────────────────────────────────────────────────────────

CAPTURE = """
import sys, threading
from datetime import datetime
from pathlib import Path
from nq_pipeline.clock import ShiftedClock
from nq_pipeline.lake.lake import Lake
from nq_pipeline.live.capture import Capture, Timing
from nq_pipeline.live.publish import Publisher
from nq_pipeline.settings import Settings

data, gateway, key, now = sys.argv[1:]
clock = ShiftedClock(datetime.fromisoformat(now))
settings = Settings(_env_file=None, data_dir=Path(data), databento_gateway=gateway, databento_api_key=key,
                    capture_schema="trades")
capture = Capture(settings, clock=clock, timing=Timing(heartbeat_s=1, late_s=0.5, settle_s=0.3))
log = settings.environment_dir / "capture" / settings.databento_dataset
publisher = Publisher(log, Lake(settings.environment_dir / "lake"), clock=clock, run_id="killed")
show = lambda totals: print(totals.records, flush=True)
capture.run(threading.Event(), publish=publisher.publish, progress=show)
"""


@pytest.fixture
def killed() -> Iterator[Any]:
    """Start a capture in a process of its own and kill it after some seconds of streaming."""
    started: list[subprocess.Popen[str]] = []

    def run(it: Gateway, data: Path, seconds: float) -> None:
        words = [str(data), it.address, next(iter(it.keys)), it.clock.now().isoformat()]
        process = subprocess.Popen(
            [sys.executable, "-c", CAPTURE, *words], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
        )
        started.append(process)
        assert process.stdout and process.stdout.readline(), "the capture did not begin"
        time.sleep(seconds)
        process.kill()
        process.wait(PATIENCE_S)

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("times", "load"), [(4, 2_000), pytest.param(200, 500, marks=SOAK)])
def test_after_kills_at_random_moments_the_lake_is_what_was_sent(
    times: int, load: int, tmp_path: Path, killed: Any
) -> None:
    moments = random.Random(times)
    with served(limits=unlimited(), load=load) as it:
        for _ in range(times):
            killed(it, tmp_path, moments.uniform(0.0, 1.5))
        running = Running(it, tmp_path, publish=publisher(it, tmp_path).publish)
        try:
            running.until(lambda: all_verified(running))
        finally:
            running.finish()
        assert complete(it, tmp_path)
        have, wanted = published(it, tmp_path, last_published(tmp_path))
    assert have.height > 2_000 and have.equals(wanted)
    assert set(gaps(tmp_path)["state"]) == {"verified"}
