"""The promises: nothing missing, nothing twice, whatever is cut off and however often."""

from __future__ import annotations

import random
import time
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from nq_pipeline.capture.log.segments import list_segments
from nq_pipeline.sandbox.gateway.fault_script import Fault
from nq_pipeline.sandbox.gateway.feed import DATASET
from nq_pipeline.sandbox.gateway.gateway import Gateway
from nq_pipeline_tests.testing import killable_capture
from nq_pipeline_tests.testing.capture_runs import (
    OPENS,
    PATIENCE_S,
    RunningCapture,
    all_verified,
    last_published,
    log_is_complete,
    published_and_sent,
    publisher_of,
    read_gaps,
    serve_gateway,
)
from nq_pipeline_tests.testing.gateway_client import unlimited

SOAK = (pytest.mark.slow, pytest.mark.timeout(3600))
KINDS = ["fin", "rst", "cut", "garbage", "silence"]


def recovered(it: Gateway, running: RunningCapture, number: int) -> bool:
    return len(it.script.injected) > number and running.stats.verified_gaps > number + 1


def disconnect(it: Gateway, data: Path, times: int) -> None:
    """Lose the connection in every way, one after the other, each when the last is made good."""
    running = RunningCapture(it, data, publish=publisher_of(it, data).publish)
    try:
        for number in range(times):
            running.until(lambda: all_verified(running))
            it.script.add(Fault(KINDS[number % len(KINDS)]))
            running.until(partial(recovered, it, running, number))
        running.until(lambda: all_verified(running))
    finally:
        running.finish()


@pytest.mark.parametrize("times", [6, pytest.param(60, marks=SOAK)])
def test_after_disconnects_of_all_kinds_the_lake_is_what_was_sent(times: int, tmp_path: Path) -> None:
    with serve_gateway(limits=unlimited()) as it:
        disconnect(it, tmp_path, times)
        assert log_is_complete(it, tmp_path)
        have, wanted = published_and_sent(it, tmp_path, last_published(tmp_path))
    assert have.equals(wanted)
    found = read_gaps(tmp_path)
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
    ("times", "load", "records"), [(4, 4_000, 60_000), pytest.param(200, 4_000, 1_000_000, marks=SOAK)]
)
def test_after_kills_at_random_moments_the_lake_is_what_was_sent(
    times: int, load: int, records: int, tmp_path: Path
) -> None:
    enough = OPENS + timedelta(seconds=records / load + 1)  # the last records may not be published yet
    with serve_gateway(limits=unlimited(), load=load) as it:
        streaming = kill(it, tmp_path, times)
        running = RunningCapture(it, tmp_path, publish=publisher_of(it, tmp_path).publish)
        try:
            running.until(lambda: all_verified(running) and it.clock.now() > enough)
        finally:
            running.finish()
        assert log_is_complete(it, tmp_path)
        have, wanted = published_and_sent(it, tmp_path, last_published(tmp_path))
    assert have.height >= records and have.equals(wanted)
    assert streaming > times / 2, "most captures were killed before anything came"
    assert set(read_gaps(tmp_path)["state"]) == {"verified"}
