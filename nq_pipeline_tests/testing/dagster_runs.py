"""Runs and sensor ticks in this process, and what Dagster recorded of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import dagster as dg
import pytest

from nq_pipeline.capture.capture import Capture
from nq_pipeline.capture.capture_policy import ATTEMPT_TAG, LIVE_CAPTURE_TAG
from nq_pipeline.orchestration import capture_watch
from nq_pipeline.orchestration.assets import trades
from nq_pipeline.orchestration.build import build_defs
from nq_pipeline_tests.testing.capture_market import DAY, CaptureMarket
from nq_pipeline_tests.testing.capture_runs import QUICK

PATIENCE_S = 240.0


def materialized(result: dg.ExecuteInProcessResult) -> dict[dg.AssetKey, dict[str, Any]]:
    """The metadata of every materialized asset."""
    return {
        event.asset_key: {name: value.value for name, value in event.materialization.metadata.items()}
        for event in result.get_asset_materialization_events()
        if event.asset_key
    }


def evaluations(result: dg.ExecuteInProcessResult, key: dg.AssetKey) -> dict[str, dg.AssetCheckEvaluation]:
    """The evaluated checks of an asset, by name."""
    return {e.check_name: e for e in result.get_asset_check_evaluations() if e.asset_key == key}


def failure(result: dg.ExecuteInProcessResult, node: str) -> str:
    """Why a step failed on purpose."""
    data = result.failure_data_for_node(node)
    assert data and data.user_failure_data
    return data.user_failure_data.description or ""


def run_failure(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str:
    """Why the first failed step of a run failed on purpose; empty if none did."""
    for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE):
        assert entry.dagster_event and entry.dagster_event.step_failure_data.user_failure_data
        return entry.dagster_event.step_failure_data.user_failure_data.description or ""
    return ""


def skip_message(result: object) -> str:
    """Why a tick launched nothing."""
    assert isinstance(result, dg.SkipReason), result
    return result.skip_message or ""


def tick(
    sensor: dg.SensorDefinition,
    market: CaptureMarket,
    instance: dg.DagsterInstance,
    cursor: str | None = None,
) -> dg.RunRequest | dg.SkipReason | dg.SensorResult:
    """One tick of a sensor of the capture."""
    context = dg.build_sensor_context(instance=instance, cursor=cursor, resources={"vendors": market.vendors})
    result = sensor(context)
    assert isinstance(result, dg.RunRequest | dg.SkipReason | dg.SensorResult)
    return result


def shorten_intervals(patch: pytest.MonkeyPatch) -> None:
    """Let a capture in this process prove, publish and report within fractions of a second."""
    patch.setattr(trades, "Capture", partial(Capture, timing=QUICK))
    patch.setattr(capture_watch, "CHECK_RUN_EVERY_S", 0.2)
    patch.setattr(capture_watch, "TICK_S", 0.05)


def run_capture(
    market: CaptureMarket,
    instance: dg.DagsterInstance,
    *,
    partition_key: str = DAY,
    tags: Mapping[str, str] | None = None,
) -> dg.DagsterRun:
    """Run the job of the capture until it ends, well or not."""
    job = build_defs(market.vendors.given).resolve_job_def("capture")
    result = job.execute_in_process(
        instance=instance,
        raise_on_error=False,
        partition_key=partition_key,
        tags=dict(tags) if tags is not None else {LIVE_CAPTURE_TAG: "sandbox", ATTEMPT_TAG: "1"},
    )
    run = instance.get_run_by_id(result.run_id)
    assert run
    return run


def cancel_when(
    instance: dg.DagsterInstance, condition: Callable[[], object], *, patience_s: float = PATIENCE_S
) -> threading.Thread:
    """Mark the newest run as cancelled, from a thread, once a condition holds."""

    def wait() -> None:
        give_up = time.monotonic() + patience_s
        while not condition() and time.monotonic() < give_up:
            time.sleep(0.2)  # the condition may read the lake
        instance.report_run_canceled(instance.get_runs()[0])

    thread = threading.Thread(target=wait)
    thread.start()
    return thread
