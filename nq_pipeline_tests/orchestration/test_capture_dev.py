"""The capture under a real `dagster dev`, and what is left when its processes are killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nq_pipeline_tests.testing.capture_runs import read_gaps
from nq_pipeline_tests.testing.dagster_dev import Dev
from nq_pipeline_tests.testing.standing import DAY, Market, market

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PATIENCE_S = 240.0
LOAD = 300


@pytest.fixture
def it(tmp_path: Path) -> Iterator[Market]:
    with market(tmp_path / "data", load=LOAD) as it:
        yield it


@pytest.fixture
def dev(it: Market, tmp_path: Path) -> Iterator[Dev]:
    folder = tmp_path / "clone"
    folder.mkdir()
    dev = Dev(folder, it.settings)
    try:
        dev.start()
        yield dev
    finally:
        dev.stop()


def runs(dev: Dev) -> list[dict[str, Any]]:
    """The runs of the capture, oldest first."""
    found = dev.graphql(
        """{ runsOrError(filter: {pipelineName: "capture"}) { ... on Runs {
            results { runId status tags { key value } } } } }"""
    )["runsOrError"]["results"]
    for run in found:
        run["tags"] = {tag["key"]: tag["value"] for tag in run["tags"]}
    return list(reversed(found))


def until(dev: Dev, enough: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not enough():
        assert time.monotonic() < give_up, dev.tail()
        time.sleep(0.5)


def capturing(it: Market, after_ns: int) -> bool:
    """Whether somebody captures, and what the market did after an instant is published and proven."""
    return (
        bool(it.capturing)
        and it.published_until() > after_ns
        and set(read_gaps(it.data)["state"]) == {"verified"}
    )


def check_one_successor(dev: Dev, it: Market, times: int) -> None:
    found = runs(dev)
    assert [run["status"] for run in found] == ["FAILURE"] * times + ["STARTED"]
    assert [run["tags"]["nq/attempt"] for run in found] == [str(n) for n in range(1, times + 2)]
    assert {run["tags"]["dagster/partition"] for run in found} == {DAY}
    assert it.is_whole()


def test_a_killed_worker_has_exactly_one_successor_and_no_row_is_missing_or_twice(
    dev: Dev, it: Market
) -> None:
    until(dev, lambda: capturing(it, 0))
    worker = it.capturing
    assert worker
    os.kill(worker, signal.SIGKILL)
    until(dev, lambda: it.capturing is None)
    killed_at = it.now_ns
    until(dev, lambda: capturing(it, killed_at))
    assert it.capturing != worker
    time.sleep(35)  # one more tick of the sensor launches nothing
    check_one_successor(dev, it, 1)


def test_after_a_power_cut_the_dead_run_is_reported_and_has_exactly_one_successor(
    dev: Dev, it: Market
) -> None:
    until(dev, lambda: capturing(it, 0))
    dev.kill()
    until(dev, lambda: it.capturing is None)
    cut_at = it.now_ns
    dev.start()
    assert [run["status"] for run in runs(dev)] == ["STARTED"]  # as Dagster has it
    until(dev, lambda: capturing(it, cut_at))
    time.sleep(35)
    check_one_successor(dev, it, 1)


def test_a_run_cancelled_in_the_ui_is_flushed_and_not_started_again(dev: Dev, it: Market) -> None:
    until(dev, lambda: capturing(it, 0))
    (run,) = runs(dev)
    dev.graphql(
        "mutation($id: String!) { terminateRun(runId: $id, terminatePolicy: SAFE_TERMINATE) { __typename } }",
        id=run["runId"],
    )
    until(dev, lambda: runs(dev)[0]["status"] == "CANCELED")
    assert it.capturing is None and it.is_whole()
    until(dev, lambda: "stopped by the operator" in dev.tail())
    assert len(runs(dev)) == 1
