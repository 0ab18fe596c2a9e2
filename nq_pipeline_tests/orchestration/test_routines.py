"""The routines of a day: when they run, and what comes of a vendor that is not ready."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import dagster as dg
import pytest

from nq_pipeline.configuration import build_settings
from nq_pipeline.market.sessions import CHICAGO
from nq_pipeline.orchestration.build import build_defs
from nq_pipeline.orchestration.resources import Vendors
from nq_pipeline.orchestration.schedules import (
    health_before_open,
    retention_after_close,
    settlements_and_open_interest,
)

TUESDAY = datetime(2025, 6, 10, 7, 30, tzinfo=CHICAGO)


def ticked(schedule: dg.ScheduleDefinition, at: datetime, **given: object) -> dg.RunRequest | dg.SkipReason:
    vendors = Vendors(build_settings(**given))
    context = dg.build_schedule_context(scheduled_execution_time=at, resources={"vendors": vendors})
    return schedule(context)  # type: ignore[return-value]


@pytest.mark.parametrize("schedule", [health_before_open, retention_after_close])
def test_a_daily_schedule_runs_once_on_trade_dates_only(
    schedule: dg.ScheduleDefinition,
) -> None:
    due = ticked(schedule, TUESDAY)
    assert isinstance(due, dg.RunRequest) and due.run_key == "2025-06-10"
    holiday = ticked(schedule, datetime(2025, 12, 25, 7, 30, tzinfo=CHICAGO))
    assert isinstance(holiday, dg.SkipReason)
    assert holiday.skip_message == "no trade date ended: 2025-12-25 is a holiday"


@pytest.mark.parametrize(
    "schedule", [health_before_open, retention_after_close, settlements_and_open_interest]
)
def test_a_pinned_clock_stops_every_daily_schedule(schedule: dg.ScheduleDefinition) -> None:
    skipped = ticked(schedule, TUESDAY, now=TUESDAY)
    assert isinstance(skipped, dg.SkipReason) and "NQ_NOW" in (skipped.skip_message or "")


def test_a_late_tick_fetches_no_settlements() -> None:
    late = ticked(settlements_and_open_interest, TUESDAY.replace(hour=16))
    assert isinstance(late, dg.SkipReason) and "min late" in (late.skip_message or "")


def test_an_unconfigured_vendor_fails_the_health_job(tmp_path: Path) -> None:
    live = build_settings(environment="live", data_dir=tmp_path, sources=("databento",))
    result = build_defs(live).resolve_job_def("health").execute_in_process(raise_on_error=False)
    assert not result.success
    failure = result.failure_data_for_node("ask_vendors")
    assert failure is not None and "DATABENTO_API_KEY" in str(failure.user_failure_data)


def test_retention_reports_what_it_removed_as_numbers(tmp_path: Path) -> None:
    page = tmp_path / "sandbox/reports/2020-01-02T15-00-00Z.html"
    page.parent.mkdir(parents=True)
    page.write_text("page")
    with dg.DagsterInstance.ephemeral() as instance:
        done = (
            build_defs(build_settings(data_dir=tmp_path))
            .resolve_job_def("retention")
            .execute_in_process(instance=instance)
        )
    output = next(e for e in done.all_node_events if e.event_type_value == "STEP_OUTPUT")
    figures = output.step_output_data.metadata
    assert (figures["reports/removed"].value, figures["raw/removed"].value) == (1, 0)
    assert not page.exists()
