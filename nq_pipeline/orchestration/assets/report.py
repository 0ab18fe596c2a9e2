"""The report: a snapshot as one HTML page, in a step of its own so that no chain waits for it."""

import time
from datetime import date

import dagster as dg
import polars as pl

from nq_pipeline.errors import LakeError
from nq_pipeline.lake.tables import IV_SMILE, OPTION_CHAIN
from nq_pipeline.market.contracts import roots_of
from nq_pipeline.market.products import PRODUCTS
from nq_pipeline.orchestration import freshness
from nq_pipeline.orchestration.names import CHOSEN_CHAIN, PRICING, REPORT
from nq_pipeline.orchestration.partitions import CHAIN_DATES
from nq_pipeline.orchestration.resources import Vendors
from nq_pipeline.orchestration.steps import MARKET_DATA, failing_in_one_sentence
from nq_pipeline.report import markdown
from nq_pipeline.workspace import Workspace


@dg.asset(
    key=REPORT,
    deps=[CHOSEN_CHAIN, PRICING],
    partitions_def=CHAIN_DATES,
    description="The newest snapshot of the trade date as one HTML page: smile, term structure, positions, "
    "gamma exposure, trades, which source won and why, gaps and spend. The page needs no network; "
    "`nq report` opens it.",
    group_name="analytics",
    owners=MARKET_DATA,
    freshness_policy=freshness.SNAPSHOT,
    tags={"nq/layer": "report"},
    kinds={"html"},
)
def report(
    context: dg.AssetExecutionContext, vendors: dg.ResourceParam[Vendors]
) -> dg.MaterializeResult[None]:
    """Write the page of the partition's newest snapshot."""
    from nq_pipeline.report.page import write_report

    started, day = time.monotonic(), date.fromisoformat(context.partition_key)
    with failing_in_one_sentence():
        settings = vendors.settings()
        lake = Workspace.of(settings).lake
        newest = lake.scan(OPTION_CHAIN, [day]).select(pl.col("snapshot_ts").max()).collect().item()
        if newest is None:
            raise LakeError(f"The lake has no chain of {day} to report on; materialize nq/option_chain.")
        page = write_report(settings, snapshot_ts=newest)
    first = list(roots_of([PRODUCTS[settings.products[0]]]))
    own = (pl.col("snapshot_ts") == newest) & pl.col("root").is_in(first)
    sparkline = markdown.front_smile(lake.scan(IV_SMILE, [day]).filter(own).collect())
    return dg.MaterializeResult(
        metadata={
            **({"sketch": dg.MetadataValue.md(sparkline)} if sparkline else {}),
            "environment": settings.environment,
            "snapshot_ts": dg.MetadataValue.timestamp(newest),
            "page": dg.MetadataValue.path(page.uri),
            "dagster/uri": page.path.as_uri() if page.path else page.uri,
            "bytes": len(page.page),
            "elapsed_s": round(time.monotonic() - started, 3),
        }
    )
