"""Sensors: thin wrappers; what to do is decided in `captures.py`, what is true in `capture_quality.py`."""

import json
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import dagster as dg

from nq_pipeline.capture import quality
from nq_pipeline.capture.capture_policy import (
    ATTEMPT_TAG,
    LIVE_CAPTURE_TAG,
    NOT_BEGUN,
    SETTINGS_TAG,
    STOPPED_TAG,
    Attempt,
    Situation,
    decide_capture,
    settings_fingerprint,
)
from nq_pipeline.capture.locks import is_run_alive
from nq_pipeline.capture.log import read_lock_holder
from nq_pipeline.errors import NotEntitled
from nq_pipeline.finding import Finding
from nq_pipeline.market import sessions
from nq_pipeline.orchestration.assets.chains import CHOSEN
from nq_pipeline.orchestration.assets.trades import HEALTH_ASSET
from nq_pipeline.orchestration.checks.capture import evaluations
from nq_pipeline.orchestration.jobs import CAPTURE, KIND, capture_job, chain_job
from nq_pipeline.orchestration.metadata import MISSING_ROOTS, NONE
from nq_pipeline.orchestration.resources import Vendors
from nq_pipeline.schedule_policy import first_tick
from nq_pipeline.settings import Settings
from nq_pipeline.workspace import Workspace

PARTITION = "dagster/partition"
ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
ATTEMPTS_LOOKED_AT = 50
GONE = "The process of this capture is gone. What it had written is kept, and what it missed is a gap."
NEVER_BEGAN = "This capture was created and never began; nothing was written. Another one takes its place."
FIRST_S = 120
"""The first capture of an instance may take so long for its first replay before it is judged."""
SAY_AGAIN_S = 900
"""A judgement that has not changed is recorded again after so long, with its figures of then."""


@dg.sensor(
    job=chain_job,
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Asks the sandbox for a first chain when this instance has none, at whatever hour, so that "
    "there is something to look at. In live only the schedules ask.",
)
def first_snapshot(
    context: dg.SensorEvaluationContext, vendors: dg.ResourceParam[Vendors]
) -> dg.RunRequest | dg.SkipReason:
    settings = vendors.settings()
    tick = first_tick(
        datetime.now(UTC),
        environment=settings.environment,
        chosen=context.instance.get_latest_materialization_event(CHOSEN) is not None,
        window=settings.chain_window,
        pinned=settings.now,
    )
    if tick.trade_date is None:
        return dg.SkipReason(tick.reason)
    day = tick.trade_date.isoformat()
    return dg.RunRequest(
        run_key=f"first:{day}", partition_key=day, tags={"nq/environment": settings.environment}
    )


@dg.sensor(
    job=capture_job,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Keeps exactly one capture going while the market is open within NQ_CAPTURE_WINDOW, and "
    "reports runs whose process has died. Each tick that launches nothing says why.",
)
def live_capture(
    context: dg.SensorEvaluationContext, vendors: dg.ResourceParam[Vendors]
) -> dg.RunRequest | dg.SkipReason:
    settings = vendors.settings()
    decision = decide_capture(situation(context.instance, vendors))
    for run_id in decision.dead:
        run = context.instance.get_run_by_id(run_id)
        if run is None or run.status.value not in (*NOT_BEGUN, "STARTED"):  # it has just ended in order
            continue
        context.instance.report_run_failed(run, NEVER_BEGAN if run.status.value in NOT_BEGUN else GONE)
    if decision.trade_date is None:
        return dg.SkipReason(decision.reason)
    day = decision.trade_date.isoformat()
    return dg.RunRequest(
        # Once used, a key launches nothing ever again, so it has the number of the attempt.
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
    description="Judges the capture of databento/trades while its window is open and once after it has "
    "closed: gaps, entitlement, freshness, completeness. A judgement is recorded when it has changed.",
)
def capture_checks(
    context: dg.SensorEvaluationContext, vendors: dg.ResourceParam[Vendors]
) -> dg.SensorResult | dg.SkipReason:
    settings = vendors.settings()
    if settings.now:
        return dg.SkipReason("NQ_NOW holds the clock, and nothing is captured")
    if missing := _unconfigured(settings):
        return dg.SkipReason(f"not configured: {missing}")
    now, window = vendors.market_now(), settings.capture_window
    day, is_open = quality.last_opened(now, window), sessions.is_open(now, window)
    before = json.loads(context.cursor or "{}")
    if not is_open and before.get("closed") == day.isoformat():
        return dg.SkipReason(f"the window of {day} is closed and was judged")
    found = quality.read_capture_day(
        settings,
        now,
        day,
        missing=_missing_roots(context.instance, day),
        refusal=_refusal(context.instance, settings, day),
    )
    if not (is_open or found.has_begun):
        return dg.SkipReason(f"nothing was captured of {day}")
    begun = before or found.has_begun or _any_ended(context.instance)
    if not begun or _first_is_new(context.instance):
        # A new instance within the window: its first capture starts, or replays what came before it.
        return dg.SensorResult(
            cursor=json.dumps({"at": 0}),
            skip_reason=f"the first capture of {day} has just begun; its checks follow",
        )
    findings = quality.judge_capture(found)
    verdicts = {name: f"{day} {_verdict(name, finding)}" for name, finding in findings.items()}
    at = datetime.now(UTC).timestamp()
    again = not is_open or at - before.get("at", 0) >= SAY_AGAIN_S
    changed = {n: f for n, f in findings.items() if again or before["verdicts"].get(n) != verdicts[n]}
    cursor = {
        "verdicts": verdicts,
        "at": at if again else before["at"],
        "closed": "" if is_open else day.isoformat(),
    }
    return dg.SensorResult(
        asset_events=evaluations(changed),
        cursor=json.dumps(cursor),
        skip_reason="; ".join(finding.sentence for finding in findings.values()),
    )


def _first_is_new(instance: dg.DagsterInstance) -> bool:
    """Whether the only capture so far goes on and was launched just now."""
    records = instance.get_run_records(dg.RunsFilter(job_name=capture_job.name), limit=2)
    if len(records) != 1 or records[0].dagster_run.is_finished:
        return False
    return (datetime.now(UTC) - records[0].create_timestamp).total_seconds() < FIRST_S


def _any_ended(instance: dg.DagsterInstance) -> bool:
    """Whether a capture has been and gone."""
    ended = dg.RunsFilter(job_name=capture_job.name, statuses=ENDED)
    return bool(instance.get_runs(ended, limit=1))


def _verdict(name: str, finding: Finding) -> str:
    """What makes a judgement another one: an age or a share that has moved does not."""
    return finding.sentence if name in ("gaps", "entitlement") else f"{finding.passed} {finding.severity}"


def situation(instance: dg.DagsterInstance, vendors: Vendors) -> Situation:
    """How things stand: the locks, the runs Dagster knows, the market."""
    settings, now = vendors.settings(), datetime.now(UTC)
    folder = Workspace.of(settings).capture
    unconfigured = _unconfigured(settings)
    return Situation(
        now=now,
        market=now if settings.now or unconfigured else vendors.market_now(),
        moved=settings.environment == "sandbox",
        window=settings.capture_window,
        settings=settings_fingerprint(settings),
        attempts=_attempts(instance, settings),
        holder=read_lock_holder(folder, settings.databento_dataset),
        pinned=settings.now,
        unconfigured=unconfigured,
    )


def _unconfigured(settings: Settings) -> str:
    stand_in = settings.environment == "sandbox" and "databento_url" not in settings.model_fields_set
    if stand_in or settings.databento_api_key:
        return ""
    return "set DATABENTO_API_KEY to capture live"


def _attempts(instance: dg.DagsterInstance, settings: Settings) -> list[Attempt]:
    """The latest runs of the capture of this environment, newest first."""
    records = instance.get_run_records(dg.RunsFilter(tags={KIND: CAPTURE}), limit=ATTEMPTS_LOOKED_AT)
    folder, environment = Workspace.of(settings).capture, settings.environment
    # One launched by hand has the tag as soon as it runs.
    ours = [r for r in records if r.dagster_run.tags.get(LIVE_CAPTURE_TAG, environment) == environment]
    attempts = [_attempt(record, folder) for record in ours]
    if ours and STOPPED_TAG in ours[0].dagster_run.tags:
        attempts[0] = replace(attempts[0], stopped=_sentence(instance, ours[0].dagster_run))
    return attempts


def _attempt(record: dg.RunRecord, folder: Path) -> Attempt:
    run = record.dagster_run
    number = run.tags.get(ATTEMPT_TAG, "0")
    return Attempt(
        run_id=run.run_id,
        status=run.status.value,
        trade_date=run.tags.get(PARTITION, ""),
        number=int(number) if number.isdecimal() else 0,
        alive=is_run_alive(folder, run.run_id),
        changed=record.update_timestamp,
        started=datetime.fromtimestamp(record.start_time, UTC) if record.start_time else None,
        ended=datetime.fromtimestamp(record.end_time, UTC) if record.end_time else None,
        settings=run.tags.get(SETTINGS_TAG, ""),
    )


def _refusal(instance: dg.DagsterInstance, settings: Settings, day: date) -> str:
    """Why the plan streams nothing, when that is how the last attempt of a trade date ended."""
    tags = {KIND: CAPTURE, LIVE_CAPTURE_TAG: settings.environment, PARTITION: day.isoformat()}
    for run in instance.get_runs(dg.RunsFilter(tags=tags), limit=1):
        if run.tags.get(STOPPED_TAG) == NotEntitled.__name__:
            return _sentence(instance, run)
    return ""


def _sentence(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str:
    """What the step of a failed run said."""
    for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE):
        event = entry.dagster_event
        said = event.step_failure_data.user_failure_data if event else None
        if said and said.description:
            return said.description
    return run.tags[STOPPED_TAG]


def _missing_roots(instance: dg.DagsterInstance, day: date) -> list[str]:
    """What the capture of a trade date observed last."""
    for record in instance.fetch_observations(HEALTH_ASSET, limit=1).records:
        if observed := record.asset_observation:
            shown = {name: value.value for name, value in observed.metadata.items()}
            if shown.get("trade_date") == day.isoformat():
                return [root for root in str(shown[MISSING_ROOTS]).split(",") if root != NONE]
    return []
