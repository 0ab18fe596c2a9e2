"""Tables computed once per trade date: how open interest changed, and bars of the futures."""

from collections.abc import Iterator
from datetime import date

import dagster as dg

from nq_pipeline.analytics import daily_quality as quality
from nq_pipeline.lake import catalog
from nq_pipeline.lake.tables import FUTURE_BARS, OPEN_INTEREST_CHANGE
from nq_pipeline.orchestration import checks, metadata
from nq_pipeline.orchestration.names import BARS, CHOSEN_CHAIN, OPEN_INTEREST
from nq_pipeline.orchestration.partitions import CHAIN_DATES
from nq_pipeline.orchestration.resources import Vendors
from nq_pipeline.orchestration.steps import Event, computed_spec, failing_in_one_sentence
from nq_pipeline.workspace import Workspace

SPECS = [
    computed_spec(
        OPEN_INTEREST,
        OPEN_INTEREST_CHANGE,
        CHOSEN_CHAIN,
        description="Written with the first chain after 10:00 CT, for the trade date before.",
    ),
    computed_spec(
        BARS,
        FUTURE_BARS,
        CHOSEN_CHAIN,
        description="From captured or bought trades and bought minute bars. The continuous future, realized "
        "volatility and the volatility cone are views on them.",
    ),
]


@dg.multi_asset(
    specs=SPECS, check_specs=checks.specs(OPEN_INTEREST, BARS), partitions_def=CHAIN_DATES, can_subset=True
)
def daily_analytics(context: dg.AssetExecutionContext, vendors: dg.ResourceParam[Vendors]) -> Iterator[Event]:
    """Measure the recent trade dates whose figures are final; often there is nothing new."""
    from nq_pipeline.analytics.daily import measure_days

    with failing_in_one_sentence():
        settings = vendors.settings()
        measured = measure_days(settings, run_id=context.run.run_id)
        lake = Workspace.of(settings).lake
        if any(rows.height for rows in measured.values()):
            catalog.publish(lake)
        for key, table, judges in (
            (OPEN_INTEREST, OPEN_INTEREST_CHANGE, (quality.figures_continue,)),
            (BARS, FUTURE_BARS, (quality.bars_consistent, quality.bars_unbroken)),
        ):
            rows = measured[table.name]
            if key not in context.selected_asset_keys or rows.is_empty():
                continue
            day: date = rows["trade_date"].sort()[-1]
            shown = {"rows": rows.height, "environment": settings.environment}
            yield dg.MaterializeResult(
                asset_key=key, metadata={**metadata.of_partition(table, day, settings), **shown}
            )
            findings = {judge.__name__: judge(lake, day) for judge in judges}
            yield from checks.results(key, findings, context.selected_asset_check_keys)
