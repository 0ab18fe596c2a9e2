"""Jobs: what is launched as one run. The tag `nq/kind` lets one run of a kind go at a time."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg

from nq_pipeline.lake.maintenance import maintain
from nq_pipeline.lake.tables import TABLES
from nq_pipeline.orchestration.assets.analytics import TABLES as COMPUTED
from nq_pipeline.orchestration.assets.backfill import HISTORY
from nq_pipeline.orchestration.assets.chains import CHOSEN, SOURCES
from nq_pipeline.orchestration.assets.report import REPORT
from nq_pipeline.orchestration.checks.analytics import PRESSURE
from nq_pipeline.orchestration.checks.capture import TRADES_ASSET
from nq_pipeline.orchestration.checks.spend import LEDGER_ASSET
from nq_pipeline.orchestration.resources import Vendors
from nq_pipeline.workspace import Workspace

KIND, CAPTURE = "nq/kind", "capture"
LEDGER = "nq/looks_at_ledger"
"""A tag of the jobs that look at the spend ledger: one goes at a time (`dagster.yaml`). Of two that
overlap, the checks would show as not evaluated: the later materialization is not the one they judged."""
MAX_RUNTIME = "dagster/max_runtime"
"""Seconds after which a run is ended, as a string. A run whose process died in a power cut counts
as started for ever, and would hold its place in the queue."""

chain_job = dg.define_asset_job(
    "chain_snapshot",
    selection=dg.AssetSelection.assets(CHOSEN, *SOURCES.values(), *COMPUTED, LEDGER_ASSET, REPORT),
    description="Ask all vendors for option chains, choose, write, check; then price, measure, report, "
    "and look at what it has cost.",
    tags={KIND: "chains", LEDGER: "chains", MAX_RUNTIME: "600"},
)
pressure_job = dg.define_asset_job(
    "pressure",
    selection=dg.AssetSelection.assets(PRESSURE),
    description="Compute who was the aggressor, from the trades captured so far.",
    tags={KIND: "pressure", MAX_RUNTIME: "300"},
)
spend_job = dg.define_asset_job(
    "spend",
    selection=dg.AssetSelection.assets(LEDGER_ASSET),
    description="Look at the spend ledger: what the month has cost and will come to, checked.",
    tags={KIND: "spend", LEDGER: "spend", MAX_RUNTIME: "300"},
)
backfill_job = dg.define_asset_job(
    "backfill",
    selection=dg.AssetSelection.assets(*HISTORY.values()),
    description="Buy a trade date of Databento's history. "
    "Choose the schemas and set max_usd in the launchpad.",
    tags={KIND: "backfill", MAX_RUNTIME: str(6 * 3600), "dagster/priority": "-10"},
)
capture_job = dg.define_asset_job(
    "capture",
    selection=dg.AssetSelection.assets(TRADES_ASSET).without_checks(),
    description="Capture options and futures live from Databento's gateway until the window closes. The "
    "sensor live_capture launches it; launched by hand, the partition has to be the current trade date.",
    # The longest session is that of a holiday before a weekend, from Thursday evening to Monday.
    tags={KIND: CAPTURE, MAX_RUNTIME: str(5 * 24 * 3600), "dagster/priority": "10"},
)


@dg.op(
    description="Finish runs that were killed from their archived answers, merge the files of every trade "
    "date, publish the catalog, remove what was superseded."
)
def compact_tables(context: dg.OpExecutionContext, vendors: dg.ResourceParam[Vendors]) -> None:
    from nq_pipeline.analytics.snapshot import price_and_measure
    from nq_pipeline.chains.replay import finish_killed_runs

    # Bookkeeping goes by the machine's clock, never by a pinned one.
    settings, now = vendors.settings(), datetime.now(UTC)
    for killed in finish_killed_runs(settings, before=now, opener=vendors.opener, progress=context.log.info):
        if killed.chain.height:
            price_and_measure(settings, killed.chain, run_id=killed.request.run_id)
    maintain(Workspace.of(settings).lake, TABLES.values(), now=now, report=context.log.info)


def prune(instance: dg.DagsterInstance, before: datetime) -> dict[str, int]:
    """Forget the runs created before an instant, but for the last good one of each trade date.

    Returns how many of each kind were forgotten. A snapshot is close to a megabyte of history, and 78
    make a day.
    """
    pruned = {}
    for kind in ("chains", "pressure", "spend", CAPTURE):
        old = instance.get_runs(dg.RunsFilter(tags={KIND: kind}, created_before=before))
        gone = list(superseded(old))
        for run in gone:
            forget(instance, run)
        pruned[kind] = len(gone)
    return pruned


def superseded(runs: Iterable[dg.DagsterRun]) -> Iterator[dg.DagsterRun]:
    """The finished runs that a later one of the same partition succeeded; `runs` newest first."""
    kept = set()
    for run in runs:
        partition = run.tags.get("dagster/partition")
        if run.is_success and partition not in kept:
            kept.add(partition)
        elif run.is_finished:
            yield run


def forget(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """Delete a run with its events and logs."""
    instance.delete_run(run.run_id)
    instance.compute_log_manager.delete_logs(prefix=[run.run_id])
    # The SQLite storage empties the run's own file but leaves it at its size.
    shard = getattr(instance.event_log_storage, "path_for_shard", None)
    if shard is not None:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{shard(run.run_id)}{suffix}").unlink(missing_ok=True)


@dg.job(
    name="housekeeping",
    description="Compaction: one sorted file per table and closed trade date, beside writers and readers.",
    tags={KIND: "housekeeping", MAX_RUNTIME: "3600"},
)
def housekeeping_job() -> None:
    compact_tables()
