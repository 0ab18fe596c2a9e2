"""Everything Dagster is to know, put together in one place."""

from __future__ import annotations

from collections.abc import Callable

import dagster as dg

from nq_pipeline.orchestration.alerting import alerts, run_failures
from nq_pipeline.orchestration.assets.analytics import chain_analytics, trade_pressure
from nq_pipeline.orchestration.assets.backfill import HISTORIES
from nq_pipeline.orchestration.assets.chains import option_chains
from nq_pipeline.orchestration.assets.report import report
from nq_pipeline.orchestration.assets.spend import spend_ledger
from nq_pipeline.orchestration.assets.trades import HEALTH, trades
from nq_pipeline.orchestration.checks.capture import capture_state
from nq_pipeline.orchestration.jobs import (
    backfill_job,
    capture_job,
    chain_job,
    housekeeping_job,
    pressure_job,
    spend_job,
)
from nq_pipeline.orchestration.resources import Vendors
from nq_pipeline.orchestration.routines import JOBS, SCHEDULES
from nq_pipeline.orchestration.schedules import (
    chains_while_open,
    housekeeping_after_close,
    pressure_while_captured,
    spend_hourly,
)
from nq_pipeline.orchestration.sensors import capture_checks, first_snapshot, live_capture
from nq_pipeline.settings import Settings
from nq_pipeline.sources.base import Source
from nq_pipeline.sources.registry import open_source


def build_defs(
    settings: Settings | None = None, *, opener: Callable[[str, Settings], Source] = open_source
) -> dg.Definitions:
    """The definitions; nothing is asked, read or written by building them.

    Parameters
    ----------
    settings
        Fixed settings; None reads them anew for every run and tick.
    opener
        How a source is had by its name, for tests.
    """
    return dg.Definitions(
        assets=[
            option_chains,
            chain_analytics,
            report,
            trades,
            trade_pressure,
            HEALTH,
            *HISTORIES,
            spend_ledger,
        ],
        asset_checks=[capture_state],
        jobs=[chain_job, capture_job, pressure_job, backfill_job, spend_job, housekeeping_job, *JOBS],
        schedules=[
            chains_while_open,
            pressure_while_captured,
            spend_hourly,
            housekeeping_after_close,
            *SCHEDULES,
        ],
        sensors=[first_snapshot, live_capture, capture_checks, run_failures, alerts],
        resources={"vendors": Vendors(settings, opener)},
        # A step in a process of its own costs seconds; one run is one step here.
        executor=dg.in_process_executor,
    )
