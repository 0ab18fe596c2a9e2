"""The sensors that alert: on a failed run and a check at ERROR, until the next one succeeds.

`run_failures` sees every failed run and only records it. `alerts` looks at the newest result of every check,
ends the alerts of jobs that succeed again, and sends the pending messages; nothing else here waits for a
network. `alerts/advice.py` has the words.
"""

import json
from collections.abc import Iterable, Iterator

import dagster as dg

from nq_pipeline.alerts.advice import failed_check, failed_run
from nq_pipeline.alerts.message import Alert, one_line
from nq_pipeline.alerts.notifier import Notifier
from nq_pipeline.clock import real_now
from nq_pipeline.orchestration.names import CAPTURE, KIND, PARTITION
from nq_pipeline.orchestration.resources import Vendors
from nq_pipeline.settings import Settings

ASSET_PAGE_JOB = "__ASSET_JOB"
"""What Dagster calls the job of assets that somebody materialized from their page."""

BEGUN = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.STARTED]
STABLE_S = 300
"""A capture ends only at the close, so one that has run for this long counts as a success."""


@dg.run_failure_sensor(
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Records an alert for every run that fails. The sensor alerts sends it.",
)
def run_failures(context: dg.RunFailureSensorContext, vendors: dg.ResourceParam[Vendors]) -> None:
    settings, run = vendors.settings(), context.dagster_run
    alert = failed_run(
        run.job_name,
        failure_reason(context.instance, run.run_id)
        or one_line(context.failure_event.message or "no reason given"),
        kind=run.tags.get(KIND, ""),
        trade_date=run.tags.get(PARTITION),
        by_hand=run.job_name == ASSET_PAGE_JOB,
        where=[_page(settings, f"runs/{run.run_id}")],
    )
    Notifier(settings).fire(alert)


@dg.sensor(
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Raises an alert for every check that fails at ERROR, ends it when the check passes again, "
    "and sends what has not yet reached the webhook (NQ_ALERT_WEBHOOK).",
)
def alerts(
    context: dg.SensorEvaluationContext, vendors: dg.ResourceParam[Vendors]
) -> dg.SensorResult | dg.SkipReason:
    settings = vendors.settings()
    notifier = Notifier(settings)
    before: dict[str, int] = json.loads(context.cursor or "{}")
    assert context.repository_def is not None
    graph = context.repository_def.asset_graph
    promises = {key: graph.get_check_spec(key).description or "" for key in graph.asset_check_keys}
    firing, seen = {message.alert.key for message in notifier.firing()}, {}
    for key, record_id, run_id, evaluation in _newest_evaluations(context.instance, promises):
        name = f"{key.asset_key.to_user_string()}/{key.name}"
        seen[name] = record_id
        alert = _alert(settings, name, promises[key], run_id, evaluation)
        if not evaluation.passed and evaluation.severity == dg.AssetCheckSeverity.ERROR:
            if record_id != before.get(name):
                notifier.fire(alert)
        elif alert.key in firing:  # also when it ended while the state of the alerts was out of reach
            notifier.resolve(alert.key, alert.what)
    _resolve_runs(notifier, context.instance)
    sent = notifier.deliver()
    status = f"{len(notifier.firing())} firing, {sent.delivered} sent, {sent.waiting} waiting"
    return dg.SensorResult(
        cursor=json.dumps(before | seen), skip_reason=f"{status}: {sent.reason}" if sent.reason else status
    )


def _newest_evaluations(
    instance: dg.DagsterInstance, keys: Iterable[dg.AssetCheckKey]
) -> Iterator[tuple[dg.AssetCheckKey, int, str, dg.AssetCheckEvaluation]]:
    """The newest evaluation of every check that has one, with the id of its record and of its run."""
    newest = instance.event_log_storage.get_latest_asset_check_execution_by_key(list(keys))
    for key, record in newest.items():
        # A check in progress has an event, too, but no evaluation yet.
        event = record.event.dagster_event if record.event else None
        if event and event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            yield key, record.id, record.run_id, event.asset_check_evaluation_data


def _alert(
    settings: Settings, name: str, promise: str, run_id: str, evaluation: dg.AssetCheckEvaluation
) -> Alert:
    """What an evaluation of a check would alert of."""
    page = _page(settings, f"assets/{evaluation.asset_key.to_user_string()}?view=checks")
    # The sensor capture_checks evaluates outside any run.
    run = [_page(settings, f"runs/{run_id}")] if run_id else []
    return failed_check(
        name, evaluation.description or "no reason given", promise=promise, where=[page, *run]
    )


def _resolve_runs(notifier: Notifier, instance: dg.DagsterInstance) -> None:
    """End the alerts of jobs whose newest run succeeded or has been running for long."""
    for message in notifier.firing():
        kind, _, job = message.alert.key.partition("/")
        if kind != "run":
            continue
        newest = instance.get_run_records(dg.RunsFilter(job_name=job, statuses=BEGUN), limit=1)
        if newest and _succeeds(newest[0]):
            notifier.resolve(message.alert.key, f"{job} succeeds again")


def _succeeds(record: dg.RunRecord) -> bool:
    run = record.dagster_run
    if run.tags.get(KIND) == CAPTURE and run.status == dg.DagsterRunStatus.STARTED and record.start_time:
        return real_now().timestamp() - record.start_time >= STABLE_S
    return run.is_success


def _page(settings: Settings, path: str) -> str:
    return f"{settings.alerts.ui_url.rstrip('/')}/{path}"


def failure_reason(instance: dg.DagsterInstance, run_id: str) -> str:
    """Why the first failed step of a run failed: its sentence where it gave one; empty if no step failed."""
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_FAILURE):
        data = entry.dagster_event.step_failure_data if entry.dagster_event else None
        if data and data.user_failure_data and data.user_failure_data.description:
            return data.user_failure_data.description
        if data and data.error:
            cause = data.error.cause or data.error
            if cause.cls_name == "DagsterExecutionInterruptedError":
                return "its process was interrupted"
            return one_line(cause.message)
    return ""
