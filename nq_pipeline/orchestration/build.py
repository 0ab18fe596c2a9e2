"""Everything Dagster loads, put together in one place."""

from __future__ import annotations

from collections.abc import Callable

import dagster as dg

from nq_pipeline.orchestration.alert_sensors import alerts, run_failures
from nq_pipeline.orchestration.assets.analytics import chain_analytics, trade_pressure
from nq_pipeline.orchestration.assets.backfill import HISTORIES
from nq_pipeline.orchestration.assets.chains import option_chains
from nq_pipeline.orchestration.assets.daily import daily_analytics
from nq_pipeline.orchestration.assets.report import report
from nq_pipeline.orchestration.assets.spend import spend_ledger
from nq_pipeline.orchestration.assets.trades import CAPTURE_HEALTH_SPEC, trades
from nq_pipeline.orchestration.checks import capture_state
from nq_pipeline.orchestration.jobs import JOBS
from nq_pipeline.orchestration.resources import Vendors, vendors_resource
from nq_pipeline.orchestration.schedules import SCHEDULES
from nq_pipeline.orchestration.sensors import capture_checks, first_snapshot, live_capture
from nq_pipeline.settings import Settings
from nq_pipeline.sources.base import Source
from nq_pipeline.sources.registry import load_source


def build_defs(
    settings: Settings | None = None,
    *,
    opener: Callable[[str, Settings], Source] = load_source,
    executor: dg.ExecutorDefinition = dg.in_process_executor,
) -> dg.Definitions:
    """The definitions. Building them asks, reads and writes nothing; `Vendors` explains the parameters.

    `executor` executes the steps of a run. By default they follow one another in the run's process, because a
    process costs seconds and the steps are few. Where runs execute is up to the launcher in `dagster.yaml`.
    """
    return dg.Definitions(
        assets=[
            *(option_chains, chain_analytics, daily_analytics, report, spend_ledger),
            *(trades, trade_pressure, *HISTORIES),
            CAPTURE_HEALTH_SPEC,
        ],
        asset_checks=[capture_state],
        jobs=JOBS,
        schedules=SCHEDULES,
        sensors=[first_snapshot, live_capture, capture_checks, run_failures, alerts],
        resources={"vendors": vendors_resource(Vendors(settings, opener))},
        executor=executor,
    )
