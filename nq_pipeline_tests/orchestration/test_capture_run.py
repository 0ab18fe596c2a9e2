"""The run that captures and the sensors around it, in this process, against a gateway over real sockets."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

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
from nq_pipeline.capture.locks import hold_capture_lock
from nq_pipeline.configuration import build_settings
from nq_pipeline.orchestration.build import build_defs
from nq_pipeline.orchestration.capture_runs import situation
from nq_pipeline.orchestration.names import CAPTURE_HEALTH, LIVE_TRADES
from nq_pipeline.orchestration.resources import Vendors
from nq_pipeline.orchestration.sensors import capture_checks, live_capture
from nq_pipeline.sandbox.gateway.fault_script import Fault
from nq_pipeline_tests.testing.capture_runs import CLOSES, OPENS, read_gaps
from nq_pipeline_tests.testing.standing import DAY, Market, market

PATIENCE_S = 60.0


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as instance:
        yield instance


def captured(it: Market, instance: dg.DagsterInstance, **more: object) -> dg.DagsterRun:
    """Run the job to its end, which may be a bad one."""
    job = build_defs(it.vendors.given).resolve_job_def("capture")
    result = job.execute_in_process(
        instance=instance,
        raise_on_error=False,
        **{"partition_key": DAY, "tags": {LIVE_CAPTURE_TAG: "sandbox", ATTEMPT_TAG: "1"}, **more},  # type: ignore[arg-type]
    )
    run = instance.get_run_by_id(result.run_id)
    assert run
    return run


def said(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str:
    """The sentence that a run failed with."""
    for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE):
        assert entry.dagster_event and entry.dagster_event.step_failure_data.user_failure_data
        return entry.dagster_event.step_failure_data.user_failure_data.description or ""
    return ""


def tick(
    sensor: dg.SensorDefinition, it: Market, instance: dg.DagsterInstance, cursor: str | None = None
) -> dg.RunRequest | dg.SkipReason | dg.SensorResult:
    context = dg.build_sensor_context(instance=instance, cursor=cursor, resources={"vendors": it.vendors})
    result = sensor(context)
    assert isinstance(result, dg.RunRequest | dg.SkipReason | dg.SensorResult)
    return result


def skipped(result: object) -> str:
    assert isinstance(result, dg.SkipReason), result
    return result.skip_message or ""


def latest_checks(instance: dg.DagsterInstance) -> dict[str, tuple[bool, str]]:
    keys = [dg.AssetCheckKey(LIVE_TRADES, name) for name in CHECKS]
    found = instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    evaluations = {
        key.name: record.event.dagster_event.asset_check_evaluation_data
        for key, record in found.items()
        if record.event and record.event.dagster_event
    }
    return {name: (e.passed, e.severity.value) for name, e in evaluations.items()}


CHECKS = ("gaps", "entitlement", "freshness", "completeness")


def later(act: Callable[[], object], when: Callable[[], object]) -> threading.Thread:
    """Do something from a thread once something else is true."""

    def wait() -> None:
        give_up = time.monotonic() + PATIENCE_S
        while not when() and time.monotonic() < give_up:
            time.sleep(0.05)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def all_proven(it: Market) -> bool:
    found = read_gaps(it.data)
    return bool(found.height) and set(found["state"]) == {"verified"}


def test_a_capture_that_reaches_the_close_seals_its_partition_with_totals(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    with market(tmp_path, load=1, now=CLOSES - timedelta(seconds=8)) as it:
        run = captured(it, instance)
        assert run.status is dg.DagsterRunStatus.SUCCESS
        assert it.is_whole()
    assert instance.get_materialized_partitions(LIVE_TRADES) == {DAY}
    event = instance.get_latest_materialization_event(LIVE_TRADES)
    assert event and event.asset_materialization
    shown = {name: value.value for name, value in event.asset_materialization.metadata.items()}
    assert shown["dagster/partition_row_count"] == shown["rows_trades"] > 20_000
    assert (shown["open_gaps"], shown["verified_gaps"], shown["schema_options"]) == (0, 1, "trades")
    assert shown["missing_roots"] == "none" and shown["lag_p99_ms"] > 0
    assert set(latest_checks(instance)) == set(CHECKS)
    assert all(passed for passed, _ in latest_checks(instance).values())

    (observed,) = instance.fetch_observations(CAPTURE_HEALTH, limit=1).records
    assert observed.asset_observation
    plotted = {
        name for name, v in observed.asset_observation.metadata.items() if isinstance(v.value, int | float)
    }
    assert {"records", "records_per_s", "bytes", "reconnects", "open_gaps"} <= plotted


def test_a_plan_without_mbo_is_captured_as_trades_and_both_checks_of_entitlement_say_so(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    lacks = ("mbo", "mbp-1")
    with market(tmp_path, load=1, now=CLOSES - timedelta(seconds=8), wanted="mbo", not_entitled=lacks) as it:
        run = captured(it, instance)
        assert run.status is dg.DagsterRunStatus.SUCCESS
        assert it.is_whole()
        spend = build_defs(it.vendors.given).resolve_job_def("spend").execute_in_process(instance=instance)
    event = instance.get_latest_materialization_event(LIVE_TRADES)
    assert event and event.asset_materialization
    shown = event.asset_materialization.metadata
    assert (shown["schema_options"].value, shown["schema_futures"].value) == ("trades", "trades")
    assert latest_checks(instance)["entitlement"] == (False, "WARN")
    (said,) = [e for e in spend.get_asset_check_evaluations() if e.check_name == "entitlement"]
    assert (said.passed, said.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert said.description == "databento refuses mbo (live): mbp-1 is asked for instead"
    assert said.metadata["refused_schemas"].value == len(lacks)


def test_a_run_marked_as_cancelled_stops_by_itself_and_flushes(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    with market(tmp_path, load=300) as it:

        def cancel() -> None:
            (run,) = instance.get_runs()
            instance.report_run_canceled(run)

        canceller = later(cancel, lambda: all_proven(it))
        run = captured(it, instance)
        canceller.join()
        assert run.status is dg.DagsterRunStatus.CANCELED
        assert it.is_whole() and it.capturing is None
        assert not instance.get_materialized_partitions(LIVE_TRADES)
        assert set(latest_checks(instance)) == set(CHECKS)
        assert "stopped by the operator" in skipped(tick(live_capture, it, instance))


@pytest.mark.parametrize(
    "text", ["A live data license is required to access GLBX.MDP3.", "Authentication failed."]
)
def test_a_refusal_for_good_is_shown_and_not_tried_again(
    instance: dg.DagsterInstance, tmp_path: Path, text: str
) -> None:
    with market(tmp_path, Fault("refuse_auth", text=text), load=300) as it:
        run = captured(it, instance)
        assert run.status is dg.DagsterRunStatus.FAILURE and STOPPED_TAG in run.tags
        why = said(instance, run)
        assert text in why
        assert skipped(tick(live_capture, it, instance)).startswith(
            f"ALERT: run {run.run_id[:8]} ended for good: {why}"
        )
        judged = tick(capture_checks, it, instance)
        assert isinstance(judged, dg.SensorResult)
        entitled = {e.check_name: e.passed for e in judged.asset_events}["entitlement"]  # type: ignore[union-attr]
        refused = "license" in text  # a wrong key says nothing about the plan
        assert entitled is not refused
        assert latest_checks(instance)["entitlement"] == (not refused, "ERROR" if refused else "WARN")


def test_a_capture_beside_another_one_fails_in_a_sentence_and_may_be_tried_again(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    with market(tmp_path, load=300) as it, hold_capture_lock(tmp_path / "sandbox" / "capture"):
        run = captured(it, instance)
        assert run.status is dg.DagsterRunStatus.FAILURE and STOPPED_TAG not in run.tags
        assert f"process {os.getpid()}" in said(instance, run)
        assert skipped(tick(live_capture, it, instance)).startswith("capturing since")


def test_another_trade_date_and_a_closed_window_are_refused_in_a_sentence(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    with market(tmp_path / "a", load=300) as it:
        run = captured(it, instance, partition_key="2025-06-09")
        assert said(instance, run).endswith("launch the partition 2025-06-10.")
    with market(tmp_path / "b", load=300, now=CLOSES + timedelta(minutes=5)) as it:
        run = captured(it, instance)
        assert said(instance, run) == "The capture window is closed: 2025-06-10 closed at 15:00 CT."
        assert STOPPED_TAG not in run.tags
        assert skipped(tick(live_capture, it, instance)).startswith(
            "the stand-in's market is at Tue 2025-06-10 15:05 CT: 2025-06-10 closed at 15:00 CT"
        )
        assert skipped(tick(capture_checks, it, instance)) == "nothing was captured of 2025-06-10"


def test_the_sensor_asks_for_a_run_of_the_market_s_trade_date(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    with market(tmp_path, load=300) as it:
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
def test_without_a_key_or_with_a_pinned_clock_both_sensors_skip_in_words(
    instance: dg.DagsterInstance, tmp_path: Path, settings: dict[str, str], words: str
) -> None:
    vendors = Vendors(build_settings(data_dir=tmp_path, **settings))
    for sensor in (live_capture, capture_checks):
        context = dg.build_sensor_context(instance=instance, resources={"vendors": vendors})
        assert words in skipped(sensor(context))


def test_a_judgement_is_recorded_when_it_is_new_and_not_again_before_it_changes(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    with market(tmp_path, load=30, now=OPENS + timedelta(minutes=3)) as it:
        new = tick(capture_checks, it, instance)
        assert isinstance(new, dg.SensorResult)
        assert not new.asset_events  # the first capture of a new instance is only about to begin
        run = create_run_for_test(instance, job_name="capture", status=dg.DagsterRunStatus.STARTED)
        begun = tick(capture_checks, it, instance, new.cursor)
        assert isinstance(begun, dg.SensorResult) and not begun.asset_events  # it replays what it missed
        instance.delete_run(run.run_id)
        first = tick(capture_checks, it, instance, begun.cursor)
        assert isinstance(first, dg.SensorResult)
        assert {e.check_name for e in first.asset_events} == set(CHECKS)  # type: ignore[union-attr]
        second = tick(capture_checks, it, instance, first.cursor)
        assert isinstance(second, dg.SensorResult)
        assert not second.asset_events and second.skip_reason

        stopped = later(lambda: instance.report_run_canceled(instance.get_runs()[0]), lambda: all_proven(it))
        captured(it, instance)
        stopped.join()
        third = tick(capture_checks, it, instance, second.cursor)
        assert isinstance(third, dg.SensorResult)
        changed = {e.check_name: e.passed for e in third.asset_events}  # type: ignore[union-attr]
        assert changed["gaps"] and changed["freshness"] and changed["completeness"]


def test_the_checks_can_be_asked_for_at_any_time(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    with market(tmp_path, load=300) as it:
        defs = build_defs(it.vendors.given)
        result = dg.materialize(
            [*defs.assets, *defs.asset_checks],  # type: ignore[list-item,misc]
            selection=dg.AssetSelection.checks(dg.AssetCheckKey(LIVE_TRADES, "gaps")),
            instance=instance,
            resources={"vendors": it.vendors},
        )
    assert [e.check_name for e in result.get_asset_check_evaluations()] == ["gaps"]


def test_a_killed_run_is_found_dead_and_its_successor_completes_what_it_left(tmp_path: Path) -> None:
    """The short form of what `test_capture_dev.py` does under a real `dagster dev`."""
    home = tmp_path / "home"
    home.mkdir()
    with market(tmp_path / "data", load=300) as it, dg.DagsterInstance.from_config(str(home)) as instance:
        command = [sys.executable, "-m", "dagster", "asset", "materialize", "-m", "nq_pipeline.definitions"]
        environment = {**os.environ, **it.settings, "DAGSTER_HOME": str(home)}
        worker = subprocess.Popen(
            [*command, "--select", "databento/trades", "--partition", DAY],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            give_up = time.monotonic() + PATIENCE_S
            while not (it.capturing and all_proven(it)):
                assert time.monotonic() < give_up and worker.poll() is None
                time.sleep(0.1)
            assert skipped(tick(live_capture, it, instance)).startswith("capturing since")
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

        stopped = later(
            lambda: instance.report_run_canceled(instance.get_runs()[0]),
            lambda: len(read_gaps(it.data)) > 1 and all_proven(it),
        )
        captured(it, instance)
        stopped.join()
        assert it.is_whole()


@pytest.mark.parametrize("status", ["NOT_STARTED", "MANAGED"])
def test_a_run_that_never_began_is_ended_and_succeeded(
    instance: dg.DagsterInstance, tmp_path: Path, status: str
) -> None:
    tags = {"nq/kind": "capture", LIVE_CAPTURE_TAG: "sandbox", ATTEMPT_TAG: "1", "dagster/partition": DAY}
    left = create_run_for_test(instance, job_name="capture", status=dg.DagsterRunStatus(status), tags=tags)
    storage, long_ago = instance.run_storage, datetime.now(UTC) - TO_BEGIN
    assert isinstance(storage, SqlRunStorage)
    with storage.connect() as rows:
        rows.execute(RunsTable.update().values(update_timestamp=long_ago.replace(tzinfo=None)))
    with market(tmp_path, load=300) as it:
        request = tick(live_capture, it, instance)
    assert isinstance(request, dg.RunRequest) and request.tags[ATTEMPT_TAG] == "2"
    ended = instance.get_run_by_id(left.run_id)
    assert ended and ended.status is dg.DagsterRunStatus.FAILURE
