"""The run that captures and the sensors around it, in this process, against a gateway over real sockets."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.storage.runs.schema import RunsTable
from dagster._core.storage.runs.sql_run_storage import SqlRunStorage
from dagster._core.test_utils import create_run_for_test

from nq_pipeline.capture.capture_policy import (
    ATTEMPT_TAG,
    LIVE_CAPTURE_TAG,
    STARTING_UP,
    STOPPED_TAG,
    TO_BEGIN,
    decide_capture,
)
from nq_pipeline.capture.log.locks import hold_capture_lock
from nq_pipeline.configuration import build_settings
from nq_pipeline.orchestration.build import build_defs
from nq_pipeline.orchestration.capture_runs import situation
from nq_pipeline.orchestration.names import CAPTURE_HEALTH, LIVE_TRADES
from nq_pipeline.orchestration.resources import Vendors
from nq_pipeline.orchestration.sensors import capture_checks, live_capture
from nq_pipeline.sandbox.gateway.fault_script import Fault
from nq_pipeline_tests.testing.capture_market import DAY, capture_market
from nq_pipeline_tests.testing.capture_runs import CLOSES, OPENS, read_gaps
from nq_pipeline_tests.testing.dagster_runs import (
    PATIENCE_S,
    cancel_when,
    run_capture,
    run_failure,
    shorten_intervals,
    skip_message,
    tick,
)

ROOT = Path(__file__).parents[2]
CHECKS = {"gaps", "entitlement", "freshness", "completeness"}


@pytest.fixture(autouse=True)
def _short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_intervals(monkeypatch)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as instance:
        yield instance


def latest_checks(instance: dg.DagsterInstance) -> dict[str, tuple[bool, str]]:
    """Whether each check of the capture passed last, and its severity."""
    keys = [dg.AssetCheckKey(LIVE_TRADES, name) for name in CHECKS]
    found = instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    evaluations = {
        key.name: record.event.dagster_event.asset_check_evaluation_data
        for key, record in found.items()
        if record.event and record.event.dagster_event
    }
    return {name: (e.passed, e.severity.value) for name, e in evaluations.items()}


def sealed(instance: dg.DagsterInstance) -> dict[str, Any]:
    """The metadata of the last sealed partition."""
    event = instance.get_latest_materialization_event(LIVE_TRADES)
    assert event and event.asset_materialization
    return {name: value.value for name, value in event.asset_materialization.metadata.items()}


def recorded(result: object) -> dict[str, bool]:
    """The checks that a tick recorded, and whether they passed."""
    assert isinstance(result, dg.SensorResult)
    return {e.check_name: e.passed for e in result.asset_events if isinstance(e, dg.AssetCheckEvaluation)}


def cursor(result: object) -> str | None:
    assert isinstance(result, dg.SensorResult)
    return result.cursor


def test_a_cancelled_run_stops_by_itself_and_flushes(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    with capture_market(tmp_path, load=300) as it:
        canceller = cancel_when(instance, it.gaps_are_verified)
        run = run_capture(it, instance)
        canceller.join()
        assert run.status is dg.DagsterRunStatus.CANCELED
        assert it.is_whole() and it.capturing is None
        assert not instance.get_materialized_partitions(LIVE_TRADES)
        assert set(latest_checks(instance)) == CHECKS
        assert latest_checks(instance)["entitlement"][0]
        assert "stopped by the operator" in skip_message(tick(live_capture, it, instance))


@pytest.mark.parametrize(
    "text", ["A live data license is required to access GLBX.MDP3.", "Authentication failed."]
)
def test_a_permanent_refusal_is_not_tried_again(
    instance: dg.DagsterInstance, tmp_path: Path, text: str
) -> None:
    with capture_market(tmp_path, Fault("refuse_auth", text=text), load=1) as it:
        run = run_capture(it, instance)
        assert run.status is dg.DagsterRunStatus.FAILURE and STOPPED_TAG in run.tags
        why = run_failure(instance, run)
        assert text in why
        assert skip_message(tick(live_capture, it, instance)).startswith(
            f"ALERT: run {run.run_id[:8]} ended for good: {why}"
        )
        entitled = recorded(tick(capture_checks, it, instance))["entitlement"]
        refused = "license" in text  # a wrong key says nothing about the plan
        assert entitled is not refused
        assert latest_checks(instance)["entitlement"] == (not refused, "ERROR" if refused else "WARN")


def test_a_second_capture_fails_and_may_be_tried_again(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    with capture_market(tmp_path, load=1) as it, hold_capture_lock(tmp_path / "sandbox" / "capture"):
        run = run_capture(it, instance)
        assert run.status is dg.DagsterRunStatus.FAILURE and STOPPED_TAG not in run.tags
        assert f"process {os.getpid()}" in run_failure(instance, run)
        assert skip_message(tick(live_capture, it, instance)).startswith("capturing since")


def test_another_trade_date_and_a_closed_window_are_refused(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    with capture_market(tmp_path / "a", load=1) as it:
        run = run_capture(it, instance, partition_key="2025-06-09")
        assert run_failure(instance, run).endswith("launch the partition 2025-06-10.")
    with capture_market(tmp_path / "b", load=1, now=CLOSES + timedelta(minutes=5)) as it:
        run = run_capture(it, instance)
        assert run_failure(instance, run) == "The capture window is closed: 2025-06-10 closed at 15:00 CT."
        assert STOPPED_TAG not in run.tags
        assert skip_message(tick(live_capture, it, instance)).startswith(
            "the stand-in's market is at Tue 2025-06-10 15:05 CT: 2025-06-10 closed at 15:00 CT"
        )
        assert skip_message(tick(capture_checks, it, instance)) == "nothing was captured on 2025-06-10"


def test_the_sensor_launches_the_market_s_trade_date(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    with capture_market(tmp_path, load=1) as it:
        request = tick(live_capture, it, instance)
    assert isinstance(request, dg.RunRequest)
    assert (request.run_key, request.partition_key) == (f"sandbox:{DAY}:1", DAY)
    assert request.tags[LIVE_CAPTURE_TAG] == "sandbox" and request.tags[ATTEMPT_TAG] == "1"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"environment": "live"}, "set DATABENTO_API_KEY"),
        ({"now": "2025-06-10T15:00:00Z"}, "NQ_NOW holds the clock"),
    ],
)
def test_sensors_skip_without_a_key_or_with_a_pinned_clock(
    instance: dg.DagsterInstance, tmp_path: Path, settings: dict[str, str], words: str
) -> None:
    vendors = Vendors(build_settings(data_dir=tmp_path, **settings))
    for sensor in (live_capture, capture_checks):
        context = dg.build_sensor_context(instance=instance, resources={"vendors": vendors})
        assert words in skip_message(sensor(context))


def test_a_check_is_recorded_when_it_changes(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    with capture_market(tmp_path, load=30, now=OPENS + timedelta(minutes=3)) as it:
        new = tick(capture_checks, it, instance)
        assert not recorded(new)  # the first capture of a new instance is about to begin
        run = create_run_for_test(instance, job_name="capture", status=dg.DagsterRunStatus.STARTED)
        begun = tick(capture_checks, it, instance, cursor(new))
        assert not recorded(begun)  # it replays what it missed
        instance.delete_run(run.run_id)
        first = tick(capture_checks, it, instance, cursor(begun))
        assert set(recorded(first)) == CHECKS
        second = tick(capture_checks, it, instance, cursor(first))
        assert isinstance(second, dg.SensorResult) and second.skip_reason and not recorded(second)

        canceller = cancel_when(instance, it.gaps_are_verified)
        run_capture(it, instance)
        canceller.join()
        changed = recorded(tick(capture_checks, it, instance, cursor(second)))
        assert changed["gaps"] and changed["freshness"] and changed["completeness"]


def test_the_checks_run_at_any_time(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    with capture_market(tmp_path, load=1) as it:
        defs = build_defs(it.vendors.given)
        result = dg.materialize(
            [*defs.assets, *defs.asset_checks],  # type: ignore[misc]
            selection=dg.AssetSelection.checks(dg.AssetCheckKey(LIVE_TRADES, "gaps")),
            instance=instance,
            resources={"vendors": it.vendors},
        )
    assert [e.check_name for e in result.get_asset_check_evaluations()] == ["gaps"]


WORKER = """
import sys
import dagster as dg
import pytest
from nq_pipeline.definitions import defs
from nq_pipeline_tests.testing.dagster_runs import shorten_intervals

shorten_intervals(pytest.MonkeyPatch())
job = defs.resolve_job_def("capture")
job.execute_in_process(instance=dg.DagsterInstance.get(), partition_key=sys.argv[1])
"""


def test_a_killed_run_is_found_dead_and_completed_by_the_next(tmp_path: Path) -> None:
    """The short form of what `test_capture_dev.py` does under a real `dagster dev`."""
    home = tmp_path / "home"
    home.mkdir()
    with (
        capture_market(tmp_path / "data", load=300) as it,
        dg.DagsterInstance.from_config(str(home)) as instance,
    ):
        environment = {**os.environ, **it.settings, "DAGSTER_HOME": str(home), "PYTHONPATH": str(ROOT)}
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, DAY],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            give_up = time.monotonic() + PATIENCE_S
            while not (it.capturing and it.gaps_are_verified()):
                assert time.monotonic() < give_up and worker.poll() is None
                time.sleep(0.3)
            assert skip_message(tick(live_capture, it, instance)).startswith("capturing since")
        finally:
            worker.send_signal(signal.SIGKILL)
            worker.wait()

        now = situation(instance, it.vendors)
        assert now.holder is None
        assert decide_capture(now).reason.endswith("is starting or sealing")  # too young to be called dead
        decision = decide_capture(replace(now, now=now.now + STARTING_UP))
        (run,) = instance.get_runs()
        assert decision.dead == (run.run_id,) and decision.trade_date
        instance.report_run_failed(run)

        canceller = cancel_when(instance, lambda: len(read_gaps(it.data)) > 1 and it.gaps_are_verified())
        run_capture(it, instance)
        canceller.join()
        assert it.is_whole()


@pytest.mark.parametrize("status", ["NOT_STARTED", "MANAGED"])
def test_a_run_that_never_began_is_ended_and_replaced(
    instance: dg.DagsterInstance, tmp_path: Path, status: str
) -> None:
    tags = {"nq/kind": "capture", LIVE_CAPTURE_TAG: "sandbox", ATTEMPT_TAG: "1", "dagster/partition": DAY}
    left = create_run_for_test(instance, job_name="capture", status=dg.DagsterRunStatus(status), tags=tags)
    storage, long_ago = instance.run_storage, datetime.now(UTC) - TO_BEGIN
    assert isinstance(storage, SqlRunStorage)
    with storage.connect() as rows:
        rows.execute(RunsTable.update().values(update_timestamp=long_ago.replace(tzinfo=None)))
    with capture_market(tmp_path, load=1) as it:
        request = tick(live_capture, it, instance)
    assert isinstance(request, dg.RunRequest) and request.tags[ATTEMPT_TAG] == "2"
    ended = instance.get_run_by_id(left.run_id)
    assert ended and ended.status is dg.DagsterRunStatus.FAILURE


def test_a_capture_that_reaches_the_close_seals_its_partition(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    lacks = ("mbo", "mbp-1")
    soon = CLOSES - timedelta(seconds=5)
    with capture_market(tmp_path, load=1, now=soon, wanted="mbo", not_entitled=lacks, waits=True) as it:
        run = run_capture(it, instance)
        assert run.status is dg.DagsterRunStatus.SUCCESS
        assert it.is_whole()
        gaps = read_gaps(it.data)
        spend = build_defs(it.vendors.given).resolve_job_def("spend").execute_in_process(instance=instance)
    assert instance.get_materialized_partitions(LIVE_TRADES) == {DAY}
    shown = sealed(instance)
    assert shown["dagster/partition_row_count"] == shown["rows_trades"]
    assert shown["rows_trades"] > 20_000
    assert shown["open_gaps"] == 0 and shown["verified_gaps"] == gaps.height
    # One of the options, one of the futures. A lost connection adds gaps with a cause of their own.
    assert gaps["cause"].to_list().count("late start") == 2
    assert (shown["schema_options"], shown["schema_futures"]) == ("trades", "trades")
    assert shown["missing_roots"] == "none" and shown["lag_p99_ms"] > 0

    checks = latest_checks(instance)
    assert checks.pop("entitlement") == (False, "WARN")
    assert len(checks) == 3 and all(passed for passed, _ in checks.values())
    (refused,) = [e for e in spend.get_asset_check_evaluations() if e.check_name == "entitlement"]
    assert (refused.passed, refused.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert refused.metadata["refused_schemas"].value == len(lacks)

    (observed,) = instance.fetch_observations(CAPTURE_HEALTH, limit=1).records
    assert observed.asset_observation
    plotted = {
        name for name, v in observed.asset_observation.metadata.items() if isinstance(v.value, int | float)
    }
    assert {"records", "records_per_s", "bytes", "reconnects", "open_gaps"} <= plotted
