"""Jobs: what is launched as one run. The tag `nq/kind` lets one run of a kind go at a time."""

from datetime import UTC, datetime

import dagster as dg

from nq_pipeline.lake import catalog
from nq_pipeline.lake.compaction import compact
from nq_pipeline.lake.lake import Lake
from nq_pipeline.lake.schemas import TABLES
from nq_pipeline.orchestration.assets.chains import CHOSEN, SOURCES
from nq_pipeline.orchestration.resources import Vendors

KIND = "nq/kind"
MAX_RUNTIME = "dagster/max_runtime"
"""Seconds after which a run is ended, as a string. A run whose process died in a power cut counts
as started for ever, and would hold its place in the queue."""

chain_job = dg.define_asset_job(
    "chain_snapshot",
    selection=dg.AssetSelection.assets(CHOSEN, *SOURCES.values()),
    description="Ask all vendors for option chains, choose, write, check.",
    tags={KIND: "chains", MAX_RUNTIME: "600"},
)


@dg.op(description="Merge the files of every trade date, remove what was superseded, publish the catalog.")
def compact_tables(context: dg.OpExecutionContext, vendors: dg.ResourceParam[Vendors]) -> None:
    # Bookkeeping goes by the machine's clock, never by a pinned one.
    root = vendors.settings().environment_dir
    lake, now = Lake(root / "lake"), datetime.now(UTC)
    for table in TABLES.values():
        for day in sorted({file.trade_date for file in lake.manifest(table).files}):
            if merged := compact(lake, table, day, now=now):
                context.log.info(f"{table.name} {day}: {merged} files merged")
    context.log.info(f"{lake.collect_garbage()} superseded files removed")
    catalog.publish(root)


@dg.job(
    name="compaction",
    description="One sorted file per table and closed trade date; safe beside writers and readers.",
    tags={KIND: "compaction", MAX_RUNTIME: "3600"},
)
def compaction_job() -> None:
    compact_tables()
