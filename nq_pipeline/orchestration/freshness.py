"""How old an asset may be before Dagster shows it as stale.

Vendors' own chains have no policy: which vendors answer is a choice (NQ_SOURCES), and the check `fresh`
judges those that do. Neither has history, which is bought on demand.

Dagster's policies know no holidays. On a holiday assets show as stale, and the schedules say why nothing ran.
"""

from datetime import timedelta

import dagster as dg

SNAPSHOT = dg.FreshnessPolicy.cron(
    deadline_cron="0 9-12 * * 1-5", lower_bound_delta=timedelta(minutes=30), timezone="America/Chicago"
)
"""At each full hour that every regular session has: a chain, and what is computed from it, of the last half
hour."""

SEALED = dg.FreshnessPolicy.cron(
    deadline_cron="30 17 * * 1-5", lower_bound_delta=timedelta(hours=6), timezone="America/Chicago"
)
"""A trade date is sealed soon after its window closes, which is noon before some holidays."""

HOURLY = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=3))
"""Checked every hour, whether the market is open or not."""
