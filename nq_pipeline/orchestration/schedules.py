"""Schedules: thin wrappers around the decisions in `ticks.py`."""

from datetime import UTC, datetime

import dagster as dg

from nq_pipeline.lake.tables import TRADES
from nq_pipeline.orchestration.jobs import chain_job, housekeeping_job, pressure_job, spend_job
from nq_pipeline.orchestration.resources import Vendors
from nq_pipeline.schedule_policy import (
    CADENCE,
    SCHEDULED,
    chain_tick,
    housekeeping_tick,
    pressure_tick,
)
from nq_pipeline.workspace import Workspace

TIMEZONE = "America/Chicago"


@dg.schedule(
    job=chain_job,
    cron_schedule=f"*/{int(CADENCE.total_seconds() // 60)} * * * *",
    execution_timezone=TIMEZONE,
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every five minutes while the market is open within NQ_CHAIN_WINDOW; skips say why.",
)
def chains_while_open(
    context: dg.ScheduleEvaluationContext, vendors: dg.ResourceParam[Vendors]
) -> dg.RunRequest | dg.SkipReason:
    settings, scheduled = vendors.settings(), context.scheduled_execution_time.astimezone(UTC)
    tick = chain_tick(scheduled, datetime.now(UTC), window=settings.chain_window, pinned=settings.now)
    if tick.trade_date is None:
        return dg.SkipReason(tick.reason)
    return dg.RunRequest(
        run_key=scheduled.isoformat(),
        partition_key=tick.trade_date.isoformat(),
        tags={SCHEDULED: scheduled.isoformat(), "nq/environment": settings.environment},
    )


@dg.schedule(
    job=pressure_job,
    cron_schedule=f"*/{int(CADENCE.total_seconds() // 60)} * * * *",
    execution_timezone=TIMEZONE,
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every five minutes while NQ_CAPTURE_WINDOW is open and for an hour after it; an hour into "
    "the next session the trade date before it once more. Apart from the chains, because the capture "
    "goes on all night and they are asked for in regular hours.",
)
def pressure_while_captured(
    context: dg.ScheduleEvaluationContext, vendors: dg.ResourceParam[Vendors]
) -> list[dg.RunRequest] | dg.SkipReason:
    settings, scheduled = vendors.settings(), context.scheduled_execution_time.astimezone(UTC)
    captured = {file.trade_date for file in Workspace.of(settings).lake.manifest(TRADES).files}
    tick = pressure_tick(vendors.market_now(), captured, window=settings.capture_window, pinned=settings.now)
    if not tick.trade_dates:
        return dg.SkipReason(tick.reason)
    days = [day.isoformat() for day in tick.trade_dates]
    return [dg.RunRequest(run_key=f"{scheduled.isoformat()}:{day}", partition_key=day) for day in days]


@dg.schedule(
    job=housekeeping_job,
    cron_schedule="15 19 * * *",  # past midnight UTC, when the trade date is over for compaction
    execution_timezone=TIMEZONE,
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Once in the evening of each trade date.",
)
def housekeeping_after_close(
    context: dg.ScheduleEvaluationContext, vendors: dg.ResourceParam[Vendors]
) -> dg.RunRequest | dg.SkipReason:
    tick = housekeeping_tick(context.scheduled_execution_time, pinned=vendors.settings().now)
    if tick.trade_date is None:
        return dg.SkipReason(tick.reason)
    return dg.RunRequest(run_key=tick.trade_date.isoformat())


spend_hourly = dg.ScheduleDefinition(
    name="spend_hourly",
    job=spend_job,
    cron_schedule="7 * * * *",  # beside the ticks of the chains
    execution_timezone=TIMEZONE,
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="The spend ledger every hour, market or not: days and months end, reservations age.",
)
