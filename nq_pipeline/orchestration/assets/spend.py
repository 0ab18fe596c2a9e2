"""The spend ledger as an asset: what the month has cost, what is reserved and what it is projected to cost.

The asset adds no data. It exports the ledger and checks it, after every snapshot and hourly.
"""

from collections.abc import Iterator

import dagster as dg

from nq_pipeline.errors import LedgerError
from nq_pipeline.finding import Finding
from nq_pipeline.lake import catalog
from nq_pipeline.lake.tables import ANSWERS, SPEND
from nq_pipeline.market import sessions
from nq_pipeline.orchestration import checks, freshness, metadata
from nq_pipeline.orchestration.names import SPEND_LEDGER
from nq_pipeline.orchestration.resources import Vendors
from nq_pipeline.orchestration.steps import MARKET_DATA, Event, failing_in_one_sentence
from nq_pipeline.spend import quality
from nq_pipeline.spend.entitlements import newest_entitlements
from nq_pipeline.spend.export import export_lines
from nq_pipeline.spend.ledger import open_ledger
from nq_pipeline.workspace import Workspace


@dg.multi_asset(
    name="spend_ledger",
    specs=[
        dg.AssetSpec(
            SPEND_LEDGER,
            skippable=True,
            description="What this month has cost, what is reserved, what is left and what it is projected "
            "to cost: the plan's flat fee and every metered request. `nq budget` prints the same; "
            f"docs/cost.md explains it. See *Plots* on this page.\n\n{SPEND.meaning} Checked hourly "
            "and after every snapshot of the chains.",
            metadata={**metadata.of_table(SPEND), "documentation": dg.MetadataValue.path("docs/cost.md")},
            group_name="spend",
            owners=MARKET_DATA,
            freshness_policy=freshness.HOURLY,
            tags={"nq/layer": "ledger"},
            kinds={"sqlite", "parquet"},
        )
    ],
    check_specs=checks.specs(SPEND_LEDGER),
    can_subset=True,
    # In a run of the chains it has to see what they spent.
    op_tags={"dagster/priority": "-1"},
)
def spend_ledger(context: dg.AssetExecutionContext, vendors: dg.ResourceParam[Vendors]) -> Iterator[Event]:
    """Check the current month; a ledger that cannot be used is a failed check, not a failed run."""
    selected = context.selected_asset_check_keys
    with failing_in_one_sentence():
        settings, now = vendors.settings(), vendors.market_now()
        lake = Workspace.of(settings).lake
        try:
            ledger = open_ledger(settings)
            if export_lines(ledger, lake, run_id=context.run.run_id):
                catalog.publish(lake)
            month = ledger.month()
        except LedgerError as error:
            yield from checks.results(SPEND_LEDGER, {"budget": Finding(False, str(error))}, selected)
            return
        today = sessions.trade_date(now)
        vendors_left = quality.configured_vendors(
            settings.chains.sources, lake.scan(ANSWERS, [today]).collect()
        )
        findings = quality.judge_month(month, newest_entitlements(lake), today, vendors_left)
    if SPEND_LEDGER in context.selected_asset_keys:
        yield dg.MaterializeResult(asset_key=SPEND_LEDGER, metadata=metadata.of_month(month))
    yield from checks.results(SPEND_LEDGER, findings, selected)
