"""Schedules. `schedule_policy.py` decides whether a tick runs; a tick that launches nothing says why."""

from datetime import UTC, datetime, time
from functools import partial
from typing import Any

import dagster as dg

from nq_pipeline.clock import real_now
from nq_pipeline.lake.tables import TRADES
from nq_pipeline.orchestration.jobs import (
    chain_job,
    health_job,
    housekeeping_job,
    pressure_job,
    retention_job,
    spend_job,
)
from nq_pipeline.orchestration.names import ENVIRONMENT
from nq_pipeline.orchestration.resources import Vendors
from nq_pipeline.schedule_policy import (
    CADENCE,
    SCHEDULED,
    Tick,
    chain_tick,
    pressure_tick,
    reference_tick,
    trade_date_tick,
)
from nq_pipeline.settings import Settings
from nq_pipeline.workspace import Workspace

EVERY_FIVE_MINUTES = f"*/{int(CADENCE.total_seconds() // 60)} * * * *"
SETTLEMENT_TIME, OPEN_INTEREST_TIME = time(16, 30), time(8, 15)
"""Settlements are fetched in the daily pause, while the trade date that closed at 16:00 is still the current
one; open interest shortly before regular hours, after the clearing house has published that of the day
before. No vendor promises a time; these are our choice."""
HEALTH_TIME = time(7, 30)
COMPACTION_TIME = time(19, 15)
"""Past midnight UTC, when compaction treats the trade date as over."""
RETENTION_TIME = time(19, 45)
"""After the compaction."""

RUNNING: dict[str, Any] = {
    "execution_timezone": "America/Chicago",
    "default_status": dg.DefaultScheduleStatus.RUNNING,
}
_scheduled = partial(dg.schedule, **RUNNING)


def _cron(at: time) -> str:
    """The cron expression of every day at a time."""
    return f"{at.minute} {at.hour} * * *"


def _chains(key: str, scheduled: datetime, tick: Tick, settings: Settings) -> dg.RunRequest | dg.SkipReason:
    """The run of the chains of a tick, or why there is none."""
    if tick.trade_date is None:
        return dg.SkipReason(tick.reason)
    return dg.RunRequest(
        run_key=key,
        partition_key=tick.trade_date.isoformat(),
        tags={SCHEDULED: scheduled.isoformat(), ENVIRONMENT: settings.environment},
    )


@_scheduled(
    job=chain_job,
    cron_schedule=EVERY_FIVE_MINUTES,
    description="Every five minutes while the market is open within NQ_CHAIN_WINDOW.",
)
def chains_while_open(
    context: dg.ScheduleEvaluationContext, vendors: dg.ResourceParam[Vendors]
) -> dg.RunRequest | dg.SkipReason:
    settings, scheduled = vendors.settings(), context.scheduled_execution_time.astimezone(UTC)
    tick = chain_tick(scheduled, real_now(), window=settings.chains.window, pinned=settings.now)
    return _chains(scheduled.isoformat(), scheduled, tick, settings)


@_scheduled(
    job=chain_job,
    cron_schedule=[_cron(SETTLEMENT_TIME), _cron(OPEN_INTEREST_TIME)],
    description=f"Settlements in the daily pause ({SETTLEMENT_TIME:%H:%M} CT), as the last snapshot of the "
    f"trade date that closed; open interest before the regular open ({OPEN_INTEREST_TIME:%H:%M} CT), as the "
    "first of the one that is open.",
)
def settlements_and_open_interest(
    context: dg.ScheduleEvaluationContext, vendors: dg.ResourceParam[Vendors]
) -> dg.RunRequest | dg.SkipReason:
    settings, scheduled = vendors.settings(), context.scheduled_execution_time.astimezone(UTC)
    tick = reference_tick(scheduled, real_now(), pinned=settings.now)
    return _chains(f"reference:{scheduled.isoformat()}", scheduled, tick, settings)


@_scheduled(
    job=pressure_job,
    cron_schedule=EVERY_FIVE_MINUTES,
    description="Every five minutes while NQ_CAPTURE_WINDOW is open and for an hour after it; an hour into "
    "the next session once more for the trade date before it. Chains have a schedule of their own, because "
    "their window can differ: a capture may run all night.",
)
def pressure_while_captured(
    context: dg.ScheduleEvaluationContext, vendors: dg.ResourceParam[Vendors]
) -> list[dg.RunRequest] | dg.SkipReason:
    settings, scheduled = vendors.settings(), context.scheduled_execution_time.astimezone(UTC)
    captured = {file.trade_date for file in Workspace.of(settings).lake.manifest(TRADES).files}
    tick = pressure_tick(vendors.market_now(), captured, window=settings.capture.window, pinned=settings.now)
    if not tick.trade_dates:
        return dg.SkipReason(tick.reason)
    days = [day.isoformat() for day in tick.trade_dates]
    return [dg.RunRequest(run_key=f"{scheduled.isoformat()}:{day}", partition_key=day) for day in days]


def _daily(name: str, job: dg.JobDefinition, at: time, note: str = "") -> dg.ScheduleDefinition:
    """A schedule that launches one run on each trade date, at a time of day in Chicago."""

    def evaluate(
        context: dg.ScheduleEvaluationContext, vendors: dg.ResourceParam[Vendors]
    ) -> dg.RunRequest | dg.SkipReason:
        tick = trade_date_tick(context.scheduled_execution_time, pinned=vendors.settings().now)
        if tick.trade_date is None:
            return dg.SkipReason(tick.reason)
        return dg.RunRequest(run_key=tick.trade_date.isoformat())

    description = f"At {at:%H:%M} CT on each trade date{note}."
    return _scheduled(name=name, job=job, cron_schedule=_cron(at), description=description)(evaluate)


health_before_open = _daily(
    "health_before_open", health_job, HEALTH_TIME, ", an hour before the regular open"
)
housekeeping_after_close = _daily("housekeeping_after_close", housekeeping_job, COMPACTION_TIME)
retention_after_close = _daily(
    "retention_after_close", retention_job, RETENTION_TIME, ", after the compaction"
)
spend_hourly = dg.ScheduleDefinition(
    name="spend_hourly",
    job=spend_job,
    cron_schedule="7 * * * *",  # between the ticks of the chains
    **RUNNING,
    description="Every hour, whether the market is open or not: days and months end, reservations age.",
)

SCHEDULES = (
    *(chains_while_open, settlements_and_open_interest, pressure_while_captured),
    *(health_before_open, housekeeping_after_close, retention_after_close, spend_hourly),
)
