"""The promises: nothing missing, nothing twice, whatever is cut off and however often."""

from __future__ import annotations

import random
import time
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from nq_pipeline.capture.log import list_segments
from nq_pipeline.capture.publisher import Publisher
from nq_pipeline.clock import to_ns
from nq_pipeline.lake.tables import TRADES
from nq_pipeline.sandbox.gateway.fault_script import Fault
from nq_pipeline.sandbox.gateway.feed import DATASET
from nq_pipeline.sandbox.gateway.gateway import Gateway
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.capture.test_capture import (
    OPENS,
    PATIENCE_S,
    Running,
    all_verified,
    complete,
    gaps,
    served,
)
from nq_pipeline_tests.testing import killable_capture
from nq_pipeline_tests.testing.gateway_client import unlimited

SOAK = (pytest.mark.slow, pytest.mark.timeout(3600))
KINDS = ["fin", "rst", "cut", "garbage", "silence"]
KEY = ("instrument_id", "ts_event", "sequence", "price", "size")


def published(
    it: Gateway, data: Path, last_ns: int, *, first: datetime = OPENS
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The trades of the lake and those of the tape between two instants, as multisets to compare."""
    first_ns = to_ns(first)
    truth = it.records("trades", first_ns - 10**9, last_ns + 10**9)
    truth = truth[(truth["ts_event"] >= first_ns) & (truth["ts_event"] < last_ns)]
    wanted = pl.DataFrame({name: truth[name].astype("i8") for name in KEY})
    rows = Workspace(data / "sandbox").lake.scan(TRADES).collect()
    have = rows.select(
        pl.col("instrument_id", "sequence", "size").cast(pl.Int64),
        pl.col("ts_event").dt.epoch("ns"),
        (pl.col("price") * 1e9).round().cast(pl.Int64),
    ).select(KEY)
    have = have.filter(pl.col("ts_event").is_between(first_ns, last_ns, closed="left"))
    return have.sort(KEY), wanted.sort(KEY)


def last_published(data: Path) -> int:
    newest = Workspace(data / "sandbox").lake.scan(TRADES).select(pl.col("ts_event").dt.epoch("ns").max())
    return int(newest.collect().item())


def publisher(it: Gateway, data: Path) -> Publisher:
    log, lake = data / "sandbox" / "capture" / DATASET, Workspace(data / "sandbox").lake
    return Publisher(log, lake, clock=it.clock, run_id="soak")


def disconnect(it: Gateway, data: Path, times: int) -> None:
    """Lose the connection in every way, one after the other, each when the last is made good."""
    running = Running(it, data, publish=publisher(it, data).publish)
    try:
        for number in range(times):
            running.until(lambda: all_verified(running))
            it.script.add(Fault(KINDS[number % len(KINDS)]))
            running.until(lambda n=number: len(it.script.injected) > n)
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


def kill(it: Gateway, data: Path, times: int) -> int:
    """Capture and be killed, again and again; returns how often records were in the log by then.

    Every fourth time at a random moment of the start, else of the first second with records: amid
    the replay of all that was sent so far, or in the present.
    """
    moments, folder = random.Random(times), data / "sandbox" / "capture" / DATASET
    for number in range(times):
        before, give_up = len(list_segments(folder)), time.monotonic() + PATIENCE_S
        process = killable_capture.start(it, data)
        while number % 4 and len(list_segments(folder)) == before and time.monotonic() < give_up:
            time.sleep(0.005)
        time.sleep(moments.random())
        process.kill()
        process.join()
    return len({segment.session for segment in list_segments(folder)})


@pytest.mark.parametrize(
    ("times", "load", "records"), [(6, 4_000, 100_000), pytest.param(200, 4_000, 1_000_000, marks=SOAK)]
)
def test_after_kills_at_random_moments_the_lake_is_what_was_sent(
    times: int, load: int, records: int, tmp_path: Path
) -> None:
    enough = OPENS + timedelta(seconds=records / load)
    with served(limits=unlimited(), load=load) as it:
        streaming = kill(it, tmp_path, times)
        running = Running(it, tmp_path, publish=publisher(it, tmp_path).publish)
        try:
            running.until(lambda: all_verified(running) and it.clock.now() > enough)
        finally:
            running.finish()
        assert complete(it, tmp_path)
        have, wanted = published(it, tmp_path, last_published(tmp_path))
    assert have.height >= records and have.equals(wanted)
    assert streaming > times / 2, "most captures were killed before anything came"
    assert set(gaps(tmp_path)["state"]) == {"verified"}
