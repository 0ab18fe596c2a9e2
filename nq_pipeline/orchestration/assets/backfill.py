"""Databento's history as partitioned assets: a trade date of a schema each, bought and counted.

The one place where a check blocks: a day that is not proven whole is not there for what follows.
"""

from collections.abc import Iterator
from decimal import Decimal

import dagster as dg
from pydantic import Field

from nq_pipeline.backfill.day import SCHEMAS, BackfillDay, backfill_day
from nq_pipeline.backfill.rows import TABLES
from nq_pipeline.errors import NqError
from nq_pipeline.lake.tables import MBO, TRADES
from nq_pipeline.orchestration import metadata
from nq_pipeline.orchestration.partitions import TRADE_DATES
from nq_pipeline.orchestration.resources import Vendors
from nq_pipeline.spend.export import publish_spend

Event = dg.MaterializeResult[None] | dg.AssetCheckResult

POOL = "databento_history"
"""Runs of these assets go one after the other, launched by the job or from an asset's page: the
instance's pools have one slot (`dagster.yaml`), and a capture always finds one of its own."""
HAD = ("complete", "empty", "missing")
"""States of a day that leave nothing to buy."""
HISTORY = {schema: dg.AssetKey(["databento", "history", schema.replace("-", "_")]) for schema in SCHEMAS}


class BackfillConfig(dg.Config):
    """What a run may be told."""

    max_usd: float = Field(
        0.0,
        ge=0,
        description="What each schema of this run, which is one trade date, may cost in USD, beside the "
        "ledger's budgets. At 0 only what the plan includes is asked for.",
    )


def history(schema: str) -> dg.AssetsDefinition:
    """The asset of one schema."""
    key = HISTORY[schema]
    table = {"trades": TRADES, "mbo": MBO, **TABLES}[schema]

    @dg.asset(
        key=key,
        partitions_def=TRADE_DATES,
        description=f"{schema} of Databento's history: a trade date is bought, and counted against the "
        "vendor before it is called complete. What it costs is reserved in the ledger first (max_usd in the "
        "launchpad), and a day that is complete is never bought again. `nq backfill` does the same in a "
        "terminal, and says the price before; docs/backfill.md explains both. Rows go to the table "
        f"`{table.name}`, together with what else fills it.\n\n{table.meaning}",
        metadata=metadata.of_table(table),
        group_name="history",
        owners=["team:market-data"],
        tags={"nq/underlying": "future", "nq/cost": "metered"},
        kinds={"databento", "parquet"},
        pool=POOL,
        check_specs=[
            dg.AssetCheckSpec(
                "complete",
                asset=key,
                blocking=True,
                description="The lake has as many records as the vendor counts, or the vendor has none.",
            )
        ],
    )
    def one_day(
        context: dg.AssetExecutionContext, config: BackfillConfig, vendors: dg.ResourceParam[Vendors]
    ) -> Iterator[Event]:
        day = _had(context, Decimal(str(config.max_usd)), vendors, schema)
        whole = day.state in HAD
        yield dg.AssetCheckResult(
            passed=whole,
            asset_key=key,
            check_name="complete",
            description=f"{day.state}: {day.said}",
            metadata={"state": day.state, "cost_usd": float(day.cost_usd)},
        )
        if not whole:
            raise dg.Failure(f"{schema} of {day.trade_date} is {day.state}: {day.said}", allow_retries=False)
        yield dg.MaterializeResult(asset_key=key, metadata=metadata.of_day(day))

    return one_day


def _had(context: dg.AssetExecutionContext, max_usd: Decimal, vendors: Vendors, schema: str) -> BackfillDay:
    from nq_pipeline.sandbox.process import endpoints

    run_id, trade_date = context.run.run_id, context.partition_time_window.start.date()
    try:
        with endpoints(vendors.settings()) as settings:
            day = backfill_day(
                settings, schema, trade_date, max_usd=max_usd, run_id=run_id, tell=context.log.info
            )
            if not day.already:
                publish_spend(settings, run_id=run_id)
    except NqError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    return day


HISTORIES = [history(schema) for schema in SCHEMAS]
