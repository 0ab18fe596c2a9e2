"""What is computed once per trade date: how open interest changed, and bars of the futures."""

from collections.abc import Iterator
from datetime import date

import dagster as dg

from nq_pipeline.analytics import daily_quality
from nq_pipeline.errors import NqError
from nq_pipeline.finding import Finding
from nq_pipeline.lake import catalog
from nq_pipeline.lake.tables import FUTURE_BARS, OPEN_INTEREST_CHANGE
from nq_pipeline.orchestration import checks, metadata
from nq_pipeline.orchestration.assets.analytics import GROUP, OWNERS
from nq_pipeline.orchestration.names import BARS, CHOSEN_CHAIN, OPEN_INTEREST
from nq_pipeline.orchestration.partitions import CHAIN_DATES
from nq_pipeline.orchestration.resources import Vendors
from nq_pipeline.workspace import Workspace

DAILY = {OPEN_INTEREST: OPEN_INTEREST_CHANGE, BARS: FUTURE_BARS}
DESCRIPTIONS = {
    OPEN_INTEREST: "Open interest against the trade date before, by contract, from settled figures of one "
    "vendor. Written with the first chain after 10:00 CT, for the trade date before.",
    BARS: "Daily bars of the futures, from captured or bought trades and bought minute bars, once the "
    "regular trading hours are complete. The continuous future, realized volatility and the volatility cone "
    "are views on them.",
}
SPECS = [
    dg.AssetSpec(
        key,
        deps=[CHOSEN_CHAIN],
        skippable=True,
        description=f"{DESCRIPTIONS[key]}\n\n{table.meaning}",
        metadata=metadata.of_table(table),
        group_name=GROUP,
        owners=OWNERS,
        tags={"nq/layer": "computed"},
        kinds={"polars", "parquet"},
    )
    for key, table in DAILY.items()
]


@dg.multi_asset(specs=SPECS, check_specs=checks.specs(*DAILY), partitions_def=CHAIN_DATES, can_subset=True)
def daily_analytics(
    context: dg.AssetExecutionContext, vendors: dg.ResourceParam[Vendors]
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    """Measure the recent trade dates whose figures are final; often there is nothing new."""
    from nq_pipeline.analytics.daily import measure_days

    try:
        settings = vendors.settings()
        measured = measure_days(settings, run_id=context.run.run_id)
        if any(rows.height for rows in measured.values()):
            catalog.publish(Workspace.of(settings).lake)
        lake = Workspace.of(settings).lake
        for key, table in DAILY.items():
            rows = measured[table.name]
            if key not in context.selected_asset_keys or rows.is_empty():
                continue
            day: date = rows["trade_date"].sort()[-1]
            shown = {"rows": rows.height, "environment": settings.environment}
            yield dg.MaterializeResult(
                asset_key=key, metadata={**metadata.of_partition(table, day, settings), **shown}
            )
            findings: dict[str, Finding | None] = (
                {"figures_continue": daily_quality.figures_continue(lake, day)}
                if key == OPEN_INTEREST
                else {
                    "bars_consistent": daily_quality.bars_consistent(lake, day),
                    "bars_unbroken": daily_quality.bars_unbroken(lake, day),
                }
            )
            yield from checks.results(key, findings, context.selected_asset_check_keys)
    except NqError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
