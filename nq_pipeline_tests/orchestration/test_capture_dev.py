"""The capture under a real `dagster dev`, and what is left when its processes are killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nq_pipeline_tests.testing.capture_market import DAY, CaptureMarket, capture_market
from nq_pipeline_tests.testing.dagster_dev import Dev, dagster_dev

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
LOAD = 300


@pytest.fixture
def it(tmp_path: Path) -> Iterator[CaptureMarket]:
    with capture_market(tmp_path / "data", load=LOAD) as it:
        yield it


@pytest.fixture
def dev(it: CaptureMarket, tmp_path: Path) -> Iterator[Dev]:
    folder = tmp_path / "clone"
    folder.mkdir()
    with dagster_dev(folder, it.settings) as dev:
        yield dev


def check_one_successor(dev: Dev, it: CaptureMarket, times: int) -> None:
    found = dev.capture_runs()
    assert [run["status"] for run in found] == ["FAILURE"] * times + ["STARTED"]
    assert [run["tags"]["nq/attempt"] for run in found] == [str(n) for n in range(1, times + 2)]
    assert {run["tags"]["dagster/partition"] for run in found} == {DAY}
    assert it.is_whole()


def test_a_killed_worker_has_one_successor_and_loses_no_row(dev: Dev, it: CaptureMarket) -> None:
    dev.wait_until(lambda: it.is_captured_since(0))
    worker = it.capturing
    assert worker
    os.kill(worker, signal.SIGKILL)
    dev.wait_until(lambda: it.capturing is None)
    killed_at = it.now_ns
    dev.wait_until(lambda: it.is_captured_since(killed_at))
    assert it.capturing != worker
    time.sleep(35)  # one more tick of the sensor launches nothing
    check_one_successor(dev, it, 1)


def test_after_a_power_cut_the_dead_run_has_one_successor(dev: Dev, it: CaptureMarket) -> None:
    dev.wait_until(lambda: it.is_captured_since(0))
    assert [run["status"] for run in dev.capture_runs()] == ["STARTED"]  # and still so after the cut
    dev.kill()
    dev.wait_until(lambda: it.capturing is None)
    cut_at = it.now_ns
    dev.start()
    dev.wait_until(lambda: it.is_captured_since(cut_at))
    time.sleep(35)
    check_one_successor(dev, it, 1)


def test_a_run_cancelled_in_the_ui_is_flushed_and_stays_ended(dev: Dev, it: CaptureMarket) -> None:
    dev.wait_until(lambda: it.is_captured_since(0))
    (run,) = dev.capture_runs()
    dev.graphql(
        "mutation($id: String!) { terminateRun(runId: $id, terminatePolicy: SAFE_TERMINATE) { __typename } }",
        id=run["runId"],
    )
    dev.wait_until(lambda: dev.capture_runs()[0]["status"] == "CANCELED")
    assert it.capturing is None and it.is_whole()
    dev.wait_until(lambda: "stopped by the operator" in dev.tail())
    assert len(dev.capture_runs()) == 1
