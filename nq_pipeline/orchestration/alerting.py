"""What becomes an alert: a failed run, and a check at ERROR; it ends when the next one is well.

Two sensors. `run_failures` hears of every failed run and only writes it down. `alerts` looks at the
newest judgement of every check, ends the alerts of jobs that run again, and sends what is waiting:
nothing else here waits for a network.
"""

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

import dagster as dg

from nq_pipeline.alerts.message import Alert, sentence
from nq_pipeline.alerts.notifier import Notifier
from nq_pipeline.orchestration.jobs import CAPTURE, KIND
from nq_pipeline.orchestration.resources import Vendors
from nq_pipeline.settings import Settings

BY_HAND = "__ASSET_JOB"
"""What Dagster calls the job of assets that somebody materialized."""

BEGUN = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.STARTED]
LASTING_S = 300
"""A capture ends at the close only; one that has gone on for so long is well."""

SO_WHAT = {
    "chains": "There is no chain of this moment; the next tick asks again.",
    "capture": "Nothing is captured until the sensor live_capture has started it again; what is missed "
    "meanwhile is a gap.",
    "backfill": "The day is not there; what was bought of it is kept and not bought again.",
    "spend": "Nobody looks at the month; the budgets hold all the same.",
    "housekeeping": "Files are not merged and the catalog is not published; what is written is safe.",
    "retention": "Old files stay; only the disk fills.",
    "health": "A vendor would not answer at the open; the chain of the next one would be chosen.",
}
"""By the run's tag `nq/kind`."""
SO_WHAT_OF_CHECK = {
    "budget": "It was neither asked for nor paid, and the run went on without it; the same is refused until "
    "the budget is raised, or its day or month is over.",
    "entitlement": "What the plan refuses is not in the lake, and nothing takes its place.",
    "reconciled": "That money counts against every day and month until it is booked, as if it were spent.",
    "plan_fee": "The month looks cheaper than it is.",
}
"""By the name of the check, where that says more than what it promises."""
WHAT_TO_DO = {
    "entitlement": "`nq doctor` says what the plan allows; docs/entitlement.md what an upgrade would add.",
    "budget": "`nq budget` shows the month; the sentence names the setting that raises the limit.",
    "reconciled": "look up what the vendor billed, then `nq budget reconcile`; docs/cost.md.",
    "plan_fee": "set NQ_PLAN_MONTHLY_USD to what the invoice says; `nq budget` shows the month.",
    "complete": "the check says why; docs/backfill.md what each state means.",
    "gaps": "docs/capturing.md says what can fill a gap.",
    "available": "`nq doctor` asks every vendor what is the matter.",
}
"""By the name of the check."""


@dg.run_failure_sensor(
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Writes down an alert for every run that fails; the sensor alerts sends it.",
)
def run_failures(context: dg.RunFailureSensorContext, vendors: dg.ResourceParam[Vendors]) -> None:
    settings, run = vendors.settings(), context.dagster_run
    name = "a run launched by hand" if run.job_name == BY_HAND else run.job_name
    day = run.tags.get("dagster/partition")
    Notifier(settings).tell(
        Alert(
            key=f"run/{run.job_name}",
            what=f"{name} failed{f' for {day}' if day else ''}: {_why(context)}",
            so_what=SO_WHAT.get(run.tags.get(KIND, ""), "What it was to write is not there."),
            what_to_do="read what the run says, mend it and launch it again.",
            where=[_page(settings, f"runs/{run.run_id}")],
        )
    )


@dg.sensor(
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="An alert for every check that fails at ERROR, an end for each that is well again, and "
    "what has not reached the webhook (NQ_ALERT_WEBHOOK) is sent.",
)
def alerts(
    context: dg.SensorEvaluationContext, vendors: dg.ResourceParam[Vendors]
) -> dg.SensorResult | dg.SkipReason:
    settings = vendors.settings()
    notifier = Notifier(settings)
    before: dict[str, int] = json.loads(context.cursor or "{}")
    assert context.repository_def is not None
    graph = context.repository_def.asset_graph
    meanings = {key: graph.get_check_spec(key).description or "" for key in graph.asset_check_keys}
    seen = {}
    for key, (number, run_id, evaluation) in _judgements(context.instance, meanings):
        name = f"{key.asset_key.to_user_string()}/{key.name}"
        seen[name] = number
        if number != before.get(name):
            _report(notifier, settings, name, meanings[key], run_id, evaluation)
    _heal_runs(notifier, context.instance)
    sent = notifier.deliver()
    firing = len(notifier.firing())
    said = f"{firing} firing, {sent.delivered} sent, {sent.waiting} waiting"
    return dg.SensorResult(
        cursor=json.dumps(before | seen),
        skip_reason=f"{said}: {sent.reason}" if sent.reason else said,
    )


def _judgements(
    instance: dg.DagsterInstance, keys: Mapping[dg.AssetCheckKey, str]
) -> Iterator[tuple[dg.AssetCheckKey, tuple[int, str, dg.AssetCheckEvaluation]]]:
    """The newest evaluation of every check that has one: its number, its run, what it says."""
    newest = instance.event_log_storage.get_latest_asset_check_execution_by_key(list(keys))
    for key, record in newest.items():
        # A check that is under way has an event, too, but no evaluation yet.
        event = record.event.dagster_event if record.event else None
        if event and event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            yield key, (record.id, record.run_id, event.asset_check_evaluation_data)


def _report(
    notifier: Notifier,
    settings: Settings,
    name: str,
    meaning: str,
    run_id: str,
    evaluation: dg.AssetCheckEvaluation,
) -> None:
    """Tell of a check at ERROR; one that has passed, or only warns, is an end."""
    key, said = f"check/{name}", evaluation.description or "no reason given"
    if evaluation.passed or evaluation.severity != dg.AssetCheckSeverity.ERROR:
        notifier.resolve(key, f"{name}: {said}")
        return
    page = _page(settings, f"assets/{evaluation.asset_key.to_user_string()}?view=checks")
    promised = f"This does not hold: {meaning.partition('. ')[0].rstrip('.')}." if meaning else ""
    # What the capture's sensor judges belongs to no run.
    run = [_page(settings, f"runs/{run_id}")] if run_id else []
    notifier.tell(
        Alert(
            key=key,
            what=f"{name}: {said}",
            so_what=SO_WHAT_OF_CHECK.get(evaluation.check_name, promised),
            what_to_do=WHAT_TO_DO.get(evaluation.check_name, "see the check and its details in the UI."),
            where=[page, *run],
        )
    )


def _heal_runs(notifier: Notifier, instance: dg.DagsterInstance) -> None:
    """End the alerts of jobs whose newest run went well, or has long been going."""
    for said in notifier.firing():
        kind, _, job = said.alert.key.partition("/")
        if kind != "run":
            continue
        newest = instance.get_run_records(dg.RunsFilter(job_name=job, statuses=BEGUN), limit=1)
        if newest and _is_well(newest[0]):
            notifier.resolve(said.alert.key, f"{job} runs well again")


def _is_well(record: dg.RunRecord) -> bool:
    run = record.dagster_run
    if run.tags.get(KIND) == CAPTURE and run.status == dg.DagsterRunStatus.STARTED and record.start_time:
        return datetime.now(UTC).timestamp() - record.start_time >= LASTING_S
    return run.is_success


def _page(settings: Settings, path: str) -> str:
    return f"{settings.ui_url.rstrip('/')}/{path}"


def _why(context: dg.RunFailureSensorContext) -> str:
    """What the step that failed said: its own sentence where it gave one."""
    for event in context.get_step_failure_events():
        data = event.step_failure_data
        if data.user_failure_data and data.user_failure_data.description:
            return data.user_failure_data.description
        if data.error:
            cause = data.error.cause or data.error
            if cause.cls_name == "DagsterExecutionInterruptedError":
                return "its process was told to end"
            return sentence(cause.message)
    return sentence(context.failure_event.message or "it says nothing")
