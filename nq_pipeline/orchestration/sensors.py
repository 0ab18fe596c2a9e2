"""Sensors: the first chain of a sandbox, the live capture and its checks.

`schedule_policy.first_tick`, `capture_policy.decide_capture` and `capture.quality` decide; a tick that
launches nothing says why.
"""

import json

import dagster as dg

from nq_pipeline.capture import quality
from nq_pipeline.capture.capture_policy import (
    ATTEMPT_TAG,
    LIVE_CAPTURE_TAG,
    NOT_BEGUN,
    SETTINGS_TAG,
    decide_capture,
    settings_fingerprint,
)
from nq_pipeline.clock import real_now
from nq_pipeline.errors import LedgerError
from nq_pipeline.finding import Finding
from nq_pipeline.market import sessions
from nq_pipeline.orchestration.capture_runs import (
    has_any_ended,
    is_first_starting,
    missing_key,
    missing_roots,
    refusal,
    situation,
)
from nq_pipeline.orchestration.checks import capture_evaluations
from nq_pipeline.orchestration.cluster.run_leases import fail_lost_runs
from nq_pipeline.orchestration.jobs import capture_job, chain_job
from nq_pipeline.orchestration.names import CHOSEN_CHAIN, ENVIRONMENT
from nq_pipeline.orchestration.resources import Vendors
from nq_pipeline.schedule_policy import first_tick

DIED = "The process of this capture has died. What it had written is safe, and what it missed is a gap."
NEVER_BEGAN = "This capture was created and never began. It wrote nothing, and another one takes its place."
REPEAT_S = 900
"""An unchanged result of a check is recorded again after this long, with its current figures."""


@dg.sensor(
    job=chain_job,
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Asks the sandbox for a first chain when this instance has none, at any hour, so that "
    "there is something to see. In live only the schedules ask.",
)
def first_snapshot(
    context: dg.SensorEvaluationContext, vendors: dg.ResourceParam[Vendors]
) -> dg.RunRequest | dg.SkipReason:
    settings = vendors.settings()
    tick = first_tick(
        real_now(),
        environment=settings.environment,
        chosen=context.instance.get_latest_materialization_event(CHOSEN_CHAIN) is not None,
        window=settings.chains.window,
        pinned=settings.now,
    )
    if tick.trade_date is None:
        return dg.SkipReason(tick.reason)
    day = tick.trade_date.isoformat()
    return dg.RunRequest(run_key=f"first:{day}", partition_key=day, tags={ENVIRONMENT: settings.environment})


@dg.sensor(
    job=capture_job,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Keeps exactly one capture going while the market is open within NQ_CAPTURE_WINDOW, and "
    "reports runs of any kind whose process has died.",
)
def live_capture(
    context: dg.SensorEvaluationContext, vendors: dg.ResourceParam[Vendors]
) -> dg.RunRequest | dg.SkipReason:
    settings = vendors.settings()
    suspects = json.loads(context.cursor or "[]")
    context.update_cursor("[]")
    try:
        context.update_cursor(json.dumps(fail_lost_runs(context.instance, settings, suspects)))
        decision = decide_capture(situation(context.instance, vendors))
    except LedgerError as error:  # a run whose lease cannot be read may well be alive
        return dg.SkipReason(f"no capture is started or ended: {error}")
    for run_id in decision.dead:
        run = context.instance.get_run_by_id(run_id)
        if run is None or run.status.value not in (*NOT_BEGUN, "STARTED"):  # it has just ended by itself
            continue
        context.instance.report_run_failed(run, NEVER_BEGAN if run.status.value in NOT_BEGUN else DIED)
    if decision.trade_date is None:
        return dg.SkipReason(decision.reason)
    day = decision.trade_date.isoformat()
    return dg.RunRequest(
        # Dagster launches a key only once, so it has the number of the attempt.
        run_key=f"{settings.environment}:{day}:{decision.number}",
        partition_key=day,
        tags={
            LIVE_CAPTURE_TAG: settings.environment,
            ATTEMPT_TAG: str(decision.number),
            SETTINGS_TAG: settings_fingerprint(settings),
        },
    )


@dg.sensor(
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Checks the capture of databento/trades while its window is open and once after it has "
    "closed: gaps, entitlement, freshness, completeness. A result is recorded when it changes.",
)
def capture_checks(
    context: dg.SensorEvaluationContext, vendors: dg.ResourceParam[Vendors]
) -> dg.SensorResult | dg.SkipReason:
    settings = vendors.settings()
    if settings.now:
        return dg.SkipReason("NQ_NOW holds the clock, and nothing is captured")
    if missing := missing_key(settings):
        return dg.SkipReason(f"not configured: {missing}")
    now, window = vendors.market_now(), settings.capture.window
    day, is_open = quality.last_opened(now, window), sessions.is_open(now, window)
    before = json.loads(context.cursor or "{}")
    if not is_open and before.get("closed") == day.isoformat():
        return dg.SkipReason(f"the window of {day} is closed and was checked")
    found = quality.read_capture_day(
        settings,
        now,
        day,
        missing=missing_roots(context.instance, day),
        refusal=refusal(context.instance, settings, day),
    )
    if not (is_open or found.has_begun):
        return dg.SkipReason(f"nothing was captured on {day}")
    begun = before or found.has_begun or has_any_ended(context.instance)
    if not begun or is_first_starting(context.instance):
        # A new instance within the window: its first capture is starting or replaying.
        return dg.SensorResult(
            cursor=json.dumps({"at": 0}),
            skip_reason=f"the first capture of {day} has just begun; its checks follow",
        )
    findings = quality.judge_capture(found)
    verdicts = {name: f"{day} {_verdict(name, finding)}" for name, finding in findings.items()}
    at = real_now().timestamp()
    again = not is_open or at - before.get("at", 0) >= REPEAT_S
    changed = {n: f for n, f in findings.items() if again or before["verdicts"].get(n) != verdicts[n]}
    cursor = {
        "verdicts": verdicts,
        "at": at if again else before["at"],
        "closed": "" if is_open else day.isoformat(),
    }
    return dg.SensorResult(
        asset_events=capture_evaluations(changed),
        cursor=json.dumps(cursor),
        skip_reason="; ".join(finding.sentence for finding in findings.values()),
    )


def _verdict(name: str, finding: Finding) -> str:
    """What has to change for a result to be recorded again; a moved age or share does not count."""
    return finding.sentence if name in ("gaps", "entitlement") else f"{finding.passed} {finding.severity}"
