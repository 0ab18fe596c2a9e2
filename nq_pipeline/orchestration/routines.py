"""The routines of a day beside the five-minute ones: reference data, health, retention.

One job and one schedule each; every tick that launches nothing says why.
"""

from datetime import UTC, datetime, timedelta

import dagster as dg

from nq_pipeline import retention
from nq_pipeline.market import sessions
from nq_pipeline.orchestration.jobs import KIND, MAX_RUNTIME, chain_job, prune
from nq_pipeline.orchestration.resources import Vendors
from nq_pipeline.orchestration.schedules import TIMEZONE
from nq_pipeline.schedule_policy import SCHEDULED, housekeeping_tick, lateness
from nq_pipeline.verify.doctor import probe_sources

AFTER_CLOSE, BEFORE_OPEN = "30 16 * * *", "15 8 * * *"
"""In the daily pause, whose trade date is still the one that closed at 16:00 and whose settlements are
out; and shortly before regular hours, when the clearing house's open interest of the day before has
come. Our choice: no vendor promises a time."""


@dg.schedule(
    job=chain_job,
    cron_schedule=[AFTER_CLOSE, BEFORE_OPEN],
    execution_timezone=TIMEZONE,
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Settlements in the daily pause (16:30 CT) and open interest before the regular open "
    "(08:15 CT), as the last row of the trade date that closed and the first of the one that is open.",
)
def settlements_and_open_interest(
    context: dg.ScheduleEvaluationContext, vendors: dg.ResourceParam[Vendors]
) -> dg.RunRequest | dg.SkipReason:
    settings, scheduled = vendors.settings(), context.scheduled_execution_time.astimezone(UTC)
    tick = housekeeping_tick(scheduled, pinned=settings.now)
    if tick.trade_date is None:
        return dg.SkipReason(tick.reason)
    if (late := lateness(scheduled, datetime.now(UTC))) is not None:
        return dg.SkipReason(f"this tick is {late:.0f} min late, and a chain is only had as it is now")
    return dg.RunRequest(
        run_key=f"reference:{scheduled.isoformat()}",
        partition_key=sessions.trade_date(scheduled).isoformat(),
        tags={SCHEDULED: scheduled.isoformat(), "nq/environment": settings.environment},
    )


@dg.op(description="Ask every vendor for free whether it is configured, reachable and entitled.")
def ask_vendors(context: dg.OpExecutionContext, vendors: dg.ResourceParam[Vendors]) -> None:
    from nq_pipeline.sandbox.process import endpoints

    with endpoints(vendors.settings()) as settings:
        probes = probe_sources(settings)
    ill = []
    for name in settings.sources:
        probe = probes[name]
        well = all((probe.configured, probe.reachable, probe.entitled))
        context.log.info(f"{name}: {'well' if well else 'to be mended'}: {probe.detail}")
        if not well:
            ill.append(f"{name}: {probe.detail}; {probe.mend}".rstrip("; "))
    context.add_output_metadata({"vendors": len(settings.sources), "ill": len(ill)})
    if ill:
        raise dg.Failure(" | ".join(ill), allow_retries=False)


@dg.job(
    name="health",
    description="What `nq doctor` asks, free of charge. It fails, and alerts, when a vendor in NQ_SOURCES is "
    "not ready, in time to mend it before the open.",
    tags={KIND: "health", MAX_RUNTIME: "300"},
)
def health_job() -> None:
    ask_vendors()


@dg.schedule(
    job=health_job,
    cron_schedule="30 7 * * *",
    execution_timezone=TIMEZONE,
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="An hour before the regular open of each trade date, 07:30 CT.",
)
def health_before_open(
    context: dg.ScheduleEvaluationContext, vendors: dg.ResourceParam[Vendors]
) -> dg.RunRequest | dg.SkipReason:
    return _once(context, vendors)


@dg.op(description="Remove old answers, capture segments and reports, and forget old runs.")
def remove_old(context: dg.OpExecutionContext, vendors: dg.ResourceParam[Vendors]) -> None:
    settings = vendors.settings()
    figures: dict[str, int | str] = {}
    for part in retention.sweep(settings, settings.clock.now()):
        context.log.info(f"removed: {part.sentence}")
        figures |= {f"{part.what}/removed": part.files, f"{part.what}/bytes": part.bytes}
        if part.kept:
            figures[f"{part.what}/stays"] = part.kept
    if settings.keep_run_days:
        before = datetime.now(UTC) - timedelta(days=settings.keep_run_days)
        for kind, runs in prune(context.instance, before).items():
            context.log.info(f"{kind}: {runs} runs from before {before:%Y-%m-%d} forgotten")
            figures[f"runs/{kind}"] = runs
    context.add_output_metadata(figures)


@dg.job(
    name="retention",
    description="What is old and proven to be in the lake goes: answers, capture segments, reports, expired "
    "cache entries, runs. Settings: NQ_KEEP_RAW_DAYS, NQ_KEEP_CAPTURE_DAYS, NQ_KEEP_REPORT_DAYS, "
    "NQ_KEEP_RUN_DAYS. `nq retention --dry-run` says what would go.",
    tags={KIND: "retention", MAX_RUNTIME: "3600"},
)
def retention_job() -> None:
    remove_old()


@dg.schedule(
    job=retention_job,
    cron_schedule="45 19 * * *",
    execution_timezone=TIMEZONE,
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="In the evening of each trade date, half an hour after the compaction.",
)
def retention_after_close(
    context: dg.ScheduleEvaluationContext, vendors: dg.ResourceParam[Vendors]
) -> dg.RunRequest | dg.SkipReason:
    return _once(context, vendors)


def _once(context: dg.ScheduleEvaluationContext, vendors: Vendors) -> dg.RunRequest | dg.SkipReason:
    """Once on each trade date."""
    tick = housekeeping_tick(context.scheduled_execution_time, pinned=vendors.settings().now)
    if tick.trade_date is None:
        return dg.SkipReason(tick.reason)
    return dg.RunRequest(run_key=tick.trade_date.isoformat())


JOBS = [health_job, retention_job]
SCHEDULES = [settlements_and_open_interest, health_before_open, retention_after_close]
