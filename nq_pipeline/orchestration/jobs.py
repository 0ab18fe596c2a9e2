"""Jobs: what is launched as one run, and the operations of the routine ones."""

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import dagster as dg

from nq_pipeline import retention
from nq_pipeline.clock import real_now
from nq_pipeline.lake.maintenance import maintain
from nq_pipeline.lake.tables import TABLES
from nq_pipeline.orchestration.assets.analytics import chain_analytics, trade_pressure
from nq_pipeline.orchestration.assets.backfill import HISTORIES
from nq_pipeline.orchestration.assets.chains import option_chains
from nq_pipeline.orchestration.assets.daily import daily_analytics
from nq_pipeline.orchestration.assets.report import report
from nq_pipeline.orchestration.assets.spend import spend_ledger
from nq_pipeline.orchestration.assets.trades import trades
from nq_pipeline.orchestration.names import (
    CAPTURE,
    CAPTURE_HOST,
    KIND,
    MAX_RUNTIME,
    PARTITION,
    PRIORITY,
    READS_LEDGER,
)
from nq_pipeline.orchestration.resources import Vendors
from nq_pipeline.orchestration.steps import failing_in_one_sentence
from nq_pipeline.verify.doctor import probe_sources, probe_store
from nq_pipeline.workspace import Workspace

chain_job = dg.define_asset_job(
    "chain_snapshot",
    selection=[option_chains, chain_analytics, daily_analytics, spend_ledger, report],
    description="Ask all vendors for option chains, choose, write and check; then price the chosen chain, "
    "measure it, write the report and check the spend ledger.",
    tags={KIND: "chains", READS_LEDGER: "chains", MAX_RUNTIME: "600"},
)
pressure_job = dg.define_asset_job(
    "pressure",
    selection=[trade_pressure],
    description="Count what aggressors bought and sold, from the trades captured so far.",
    tags={KIND: "pressure", MAX_RUNTIME: "300"},
)
spend_job = dg.define_asset_job(
    "spend",
    selection=[spend_ledger],
    description="Check the spend ledger: what the month has cost so far and is projected to cost.",
    tags={KIND: "spend", READS_LEDGER: "spend", MAX_RUNTIME: "300"},
)
backfill_job = dg.define_asset_job(
    "backfill",
    selection=HISTORIES,
    description="Buy a trade date of Databento's history. "
    "Choose the schemas and set max_usd in the launchpad.",
    tags={KIND: "backfill", MAX_RUNTIME: str(6 * 3600), PRIORITY: "-10"},
)
capture_job = dg.define_asset_job(
    "capture",
    selection=dg.AssetSelection.assets(trades).without_checks(),
    description="Capture options and futures live from Databento's gateway until the window closes. The "
    "sensor live_capture launches it. A run launched by hand needs the partition of the current trade date.",
    # The longest session is that of a holiday before a weekend, from Thursday evening to Monday.
    tags={KIND: CAPTURE, MAX_RUNTIME: str(5 * 24 * 3600), PRIORITY: "10", **CAPTURE_HOST},
)


@dg.op(
    description="Finish killed runs from their archived answers, merge the files of every trade date, "
    "publish the catalog and remove superseded files."
)
def compact_tables(context: dg.OpExecutionContext, vendors: dg.ResourceParam[Vendors]) -> None:
    from nq_pipeline.analytics.snapshot import price_and_measure
    from nq_pipeline.chains.replay import finish_killed_runs

    # Bookkeeping follows the machine's clock, never a pinned one.
    now, report = real_now(), context.log.info
    with failing_in_one_sentence():
        settings = vendors.settings()
        for killed in finish_killed_runs(settings, before=now, opener=vendors.opener, progress=report):
            if killed.chain.height:
                price_and_measure(settings, killed.chain, run_id=killed.request.run_id)
        maintain(Workspace.of(settings).lake, TABLES.values(), now=now, report=report)


@dg.job(
    name="housekeeping",
    description="Compaction: one sorted file per table and closed trade date, while others write and read.",
    tags={KIND: "housekeeping", MAX_RUNTIME: "3600"},
)
def housekeeping_job() -> None:
    compact_tables()


@dg.op(description="Check, free of charge, that each vendor is configured, reachable and entitled.")
def ask_vendors(context: dg.OpExecutionContext, vendors: dg.ResourceParam[Vendors]) -> None:
    from nq_pipeline.runtime import endpoints

    with failing_in_one_sentence(), endpoints(vendors.settings()) as settings:
        probes = probe_sources(settings)
    problems, used = [], {name: probes[name] for name in settings.chains.sources}
    if store := probe_store(settings):
        used["store"] = store
    for name, probe in used.items():
        ready = all((probe.configured, probe.reachable, probe.entitled))
        context.log.info(f"{name}: {'ready' if ready else 'not ready'}: {probe.detail}")
        if not ready:
            problems.append(f"{name}: {probe.detail}; {probe.remedy}".rstrip("; "))
    context.add_output_metadata({"vendors": len(settings.chains.sources), "not_ready": len(problems)})
    if problems:
        raise dg.Failure(" | ".join(problems), allow_retries=False)


@dg.job(
    name="health",
    description="The free checks of `nq doctor`. The job fails, and alerts, when a vendor in NQ_SOURCES "
    "is not ready, in time to fix it before the open.",
    tags={KIND: "health", MAX_RUNTIME: "300"},
)
def health_job() -> None:
    ask_vendors()


@dg.op(description="Remove old answers, capture segments and reports, and delete old runs.")
def remove_old(context: dg.OpExecutionContext, vendors: dg.ResourceParam[Vendors]) -> None:
    figures: dict[str, int | str] = {}
    with failing_in_one_sentence():
        settings = vendors.settings()
        swept = retention.sweep(settings, settings.clock.now())
    for part in swept:
        context.log.info(f"removed: {part.sentence}")
        figures |= {f"{part.what}/removed": part.files, f"{part.what}/bytes": part.bytes}
        if part.kept:
            figures[f"{part.what}/stays"] = part.kept
    if settings.retention.run_days:
        before = real_now() - timedelta(days=settings.retention.run_days)
        for kind, runs in delete_old_runs(context.instance, before).items():
            context.log.info(f"{kind}: {runs} runs from before {before:%Y-%m-%d} deleted")
            figures[f"runs/{kind}"] = runs
    context.add_output_metadata(figures)


@dg.job(
    name="retention",
    description="Remove old data that is proven to be in the lake: answers, capture segments, reports, "
    "expired cache entries, runs. Settings: NQ_KEEP_RAW_DAYS, NQ_KEEP_CAPTURE_DAYS, NQ_KEEP_REPORT_DAYS, "
    "NQ_KEEP_RUN_DAYS. `nq retention --dry-run` shows what it would remove.",
    tags={KIND: "retention", MAX_RUNTIME: "3600", **CAPTURE_HOST},
)
def retention_job() -> None:
    remove_old()


def delete_old_runs(instance: dg.DagsterInstance, before: datetime) -> dict[str, int]:
    """Delete the finished runs created before an instant, except the last success of each trade date.

    A trade date has 78 snapshots, each close to a megabyte of history. Runs of backfills and of daily jobs
    are few and stay. Returns the number of deleted runs by kind.
    """
    deleted = {}
    for kind in ("chains", "pressure", "spend", CAPTURE):
        old = instance.get_runs(dg.RunsFilter(tags={KIND: kind}, created_before=before))
        runs = list(_superseded(old))
        for run in runs:
            _delete_run(instance, run)
        deleted[kind] = len(runs)
    return deleted


def _superseded(runs: Iterable[dg.DagsterRun]) -> Iterator[dg.DagsterRun]:
    """The finished runs except the last success of each partition; `runs` are in order, newest first."""
    succeeded = set()
    for run in runs:
        partition = run.tags.get(PARTITION)
        if run.is_success and partition not in succeeded:
            succeeded.add(partition)
        elif run.is_finished:
            yield run


def _delete_run(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """Delete a run with its events and logs."""
    instance.delete_run(run.run_id)
    instance.compute_log_manager.delete_logs(prefix=[run.run_id])
    # The SQLite storage empties the run's own file but leaves it at its size.
    shard = getattr(instance.event_log_storage, "path_for_shard", None)
    if shard is not None:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{shard(run.run_id)}{suffix}").unlink(missing_ok=True)


JOBS = (
    *(chain_job, capture_job, pressure_job, backfill_job, spend_job),
    *(housekeeping_job, health_job, retention_job),
)
