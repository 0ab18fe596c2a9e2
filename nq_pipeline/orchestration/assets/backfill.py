"""Databento's history as assets: one per schema, one partition per trade date, bought and counted.

Only here a check blocks: a day that is not proven complete must not reach what depends on it.
"""

from collections.abc import Iterator
from decimal import Decimal

import dagster as dg
from pydantic import Field

from nq_pipeline.backfill.day import backfill_day
from nq_pipeline.backfill.rows import TABLES
from nq_pipeline.backfill.scope import SCHEMAS
from nq_pipeline.lake.tables import MBO, TRADES
from nq_pipeline.orchestration import metadata
from nq_pipeline.orchestration.names import HISTORY
from nq_pipeline.orchestration.partitions import TRADE_DATES
from nq_pipeline.orchestration.resources import Vendors
from nq_pipeline.orchestration.steps import MARKET_DATA, Event, failing_in_one_sentence
from nq_pipeline.spend.export import publish_spend

POOL = "databento_history"
"""Runs of these assets go one after the other, whether the job or an asset's page launches them: the pools of
the instance have one slot (`dagster.yaml`)."""
FINAL = ("complete", "empty", "missing")
"""States of a day that leave nothing to buy."""


class BackfillConfig(dg.Config):
    """The configuration of a run."""

    max_usd: float = Field(
        0.0,
        ge=0,
        description="What each schema of this run (one trade date) may cost in USD, within the ledger's "
        "budgets. At 0 only data that the plan includes is requested.",
    )


def _history(schema: str) -> dg.AssetsDefinition:
    """The asset of one schema."""
    key = HISTORY[schema]
    table = {"trades": TRADES, "mbo": MBO, **TABLES}[schema]

    @dg.asset(
        key=key,
        partitions_def=TRADE_DATES,
        description=f"{schema} of Databento's history. A run buys a trade date and counts its records "
        "against the vendor's before it calls the day complete. The cost is reserved in the ledger first "
        "(max_usd in the launchpad), and a complete day is never bought again. `nq backfill` does the same "
        "in a terminal and shows the price first; docs/backfill.md explains both. Rows go to the table "
        f"`{table.name}`.\n\n{table.meaning}",
        metadata=metadata.of_table(table),
        group_name="history",
        owners=MARKET_DATA,
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
        from nq_pipeline.analytics.daily import measure_days
        from nq_pipeline.runtime import endpoints

        run_id, trade_date = context.run.run_id, context.partition_time_window.start.date()
        most = Decimal(str(config.max_usd))
        with failing_in_one_sentence(), endpoints(vendors.settings()) as settings:
            day = backfill_day(
                settings, schema, trade_date, max_usd=most, run_id=run_id, report=context.log.info
            )
            if not day.already:
                measure_days(settings, [trade_date], run_id=run_id)
                publish_spend(settings, run_id=run_id)
        final = day.state in FINAL
        yield dg.AssetCheckResult(
            passed=final,
            asset_key=key,
            check_name="complete",
            description=f"{day.state}: {day.summary}",
            metadata={"state": day.state, "cost_usd": float(day.cost_usd)},
        )
        if not final:
            raise dg.Failure(
                f"{schema} of {day.trade_date} is {day.state}: {day.summary}", allow_retries=False
            )
        yield dg.MaterializeResult(asset_key=key, metadata=metadata.of_day(day))

    return one_day


HISTORIES = [_history(schema) for schema in SCHEMAS]
