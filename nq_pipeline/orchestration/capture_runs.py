"""What Dagster knows about the runs of the capture: their states, why they ended, what they observed."""

from dataclasses import replace
from datetime import UTC, date, datetime

import dagster as dg

from nq_pipeline.capture.capture_policy import (
    ATTEMPT_TAG,
    LIVE_CAPTURE_TAG,
    SETTINGS_TAG,
    STOPPED_TAG,
    Attempt,
    Situation,
    settings_fingerprint,
)
from nq_pipeline.capture.log.locks import is_run_alive, read_capture_holder, runs_alive
from nq_pipeline.clock import real_now
from nq_pipeline.errors import NotEntitled
from nq_pipeline.orchestration.alert_sensors import failure_reason
from nq_pipeline.orchestration.jobs import capture_job
from nq_pipeline.orchestration.metadata import MISSING_ROOTS, NONE
from nq_pipeline.orchestration.names import CAPTURE, CAPTURE_HEALTH, KIND, PARTITION
from nq_pipeline.orchestration.resources import Vendors
from nq_pipeline.settings import Settings
from nq_pipeline.sources.databento.spec import DatabentoSettings
from nq_pipeline.workspace import Workspace

ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
ATTEMPTS_READ = 50
FIRST_REPLAY_S = 120
"""How long the first capture of an instance may take for its first replay before its checks count."""


def is_first_starting(instance: dg.DagsterInstance) -> bool:
    """Whether the only capture of this instance is running and was launched just now."""
    records = instance.get_run_records(dg.RunsFilter(job_name=capture_job.name), limit=2)
    if len(records) != 1 or records[0].dagster_run.is_finished:
        return False
    return (real_now() - records[0].create_timestamp).total_seconds() < FIRST_REPLAY_S


def has_any_ended(instance: dg.DagsterInstance) -> bool:
    """Whether a capture of this instance has ended."""
    ended = dg.RunsFilter(job_name=capture_job.name, statuses=ENDED)
    return bool(instance.get_runs(ended, limit=1))


def situation(instance: dg.DagsterInstance, vendors: Vendors) -> Situation:
    """What the decision to start a capture rests on: the leases, the runs Dagster knows, the market.

    Raises `LedgerError` when the leases cannot be read.
    """
    settings, now = vendors.settings(), real_now()
    unconfigured = missing_key(settings)
    return Situation(
        now=now,
        market=now if settings.now or unconfigured else vendors.market_now(),
        moved=settings.environment == "sandbox",
        window=settings.capture.window,
        settings=settings_fingerprint(settings),
        attempts=_attempts(instance, settings),
        holder=read_capture_holder(settings, settings.vendor(DatabentoSettings).dataset),
        pinned=settings.now,
        unconfigured=unconfigured,
    )


def missing_key(settings: Settings) -> str:
    """What to set before anything can be captured; empty when nothing is missing."""
    stand_in = settings.environment == "sandbox" and "databento_url" not in settings.given
    if stand_in or settings.vendor(DatabentoSettings).api_key:
        return ""
    return "set DATABENTO_API_KEY to capture live"


def _attempts(instance: dg.DagsterInstance, settings: Settings) -> list[Attempt]:
    """The latest captures of this environment, newest first."""
    records = instance.get_run_records(dg.RunsFilter(tags={KIND: CAPTURE}), limit=ATTEMPTS_READ)
    environment, folder = settings.environment, Workspace.of(settings).capture
    leased = runs_alive(settings)

    def is_alive(run_id: str) -> bool:
        return run_id in leased or is_run_alive(folder, run_id)

    # A run launched by hand has the tag only once it runs.
    ours = [r for r in records if r.dagster_run.tags.get(LIVE_CAPTURE_TAG, environment) == environment]
    attempts = [_attempt(record, is_alive(record.dagster_run.run_id)) for record in ours]
    if ours and STOPPED_TAG in ours[0].dagster_run.tags:
        attempts[0] = replace(attempts[0], stopped=_failure(instance, ours[0].dagster_run))
    return attempts


def _attempt(record: dg.RunRecord, alive: bool) -> Attempt:
    run = record.dagster_run
    number = run.tags.get(ATTEMPT_TAG, "0")
    return Attempt(
        run_id=run.run_id,
        status=run.status.value,
        trade_date=run.tags.get(PARTITION, ""),
        number=int(number) if number.isdecimal() else 0,
        alive=alive,
        changed=record.update_timestamp,
        started=datetime.fromtimestamp(record.start_time, UTC) if record.start_time else None,
        ended=datetime.fromtimestamp(record.end_time, UTC) if record.end_time else None,
        settings=run.tags.get(SETTINGS_TAG, ""),
    )


def refusal(instance: dg.DagsterInstance, settings: Settings, day: date) -> str:
    """Why the plan streams nothing, if the last attempt of a trade date ended for that; else empty."""
    tags = {KIND: CAPTURE, LIVE_CAPTURE_TAG: settings.environment, PARTITION: day.isoformat()}
    for run in instance.get_runs(dg.RunsFilter(tags=tags), limit=1):
        if run.tags.get(STOPPED_TAG) == NotEntitled.__name__:
            return _failure(instance, run)
    return ""


def _failure(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str:
    """Why a capture ended for good; at least the class of the error."""
    return failure_reason(instance, run.run_id) or run.tags[STOPPED_TAG]


def missing_roots(instance: dg.DagsterInstance, day: date) -> list[str]:
    """The roots without instruments, as the capture of a trade date observed them last."""
    for record in instance.fetch_observations(CAPTURE_HEALTH, limit=1).records:
        if observed := record.asset_observation:
            shown = {name: value.value for name, value in observed.metadata.items()}
            if shown.get("trade_date") == day.isoformat():
                return [root for root in str(shown[MISSING_ROOTS]).split(",") if root != NONE]
    return []
