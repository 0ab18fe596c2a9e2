"""How old an asset may be before Dagster shows it as stale.

Vendors' own chains have no policy: which vendors answer is a choice (NQ_SOURCES), and the check
`fresh` judges those that do. Nor has history, which is bought when somebody wants it.

Dagster's policies know no holidays: on those assets show as stale, and the schedules say why
nothing was asked.
"""

from datetime import timedelta

import dagster as dg

SNAPSHOT = dg.FreshnessPolicy.cron(
    deadline_cron="0 9-12 * * 1-5", lower_bound_delta=timedelta(minutes=30), timezone="America/Chicago"
)
"""At each full hour that every regular session has, a chain of the last half hour, and what is computed
of it in the same run."""

SEALED = dg.FreshnessPolicy.cron(
    deadline_cron="30 17 * * 1-5", lower_bound_delta=timedelta(hours=6), timezone="America/Chicago"
)
"""A trade date is sealed soon after its window has closed, at noon before some holidays."""

HOURLY = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=3))
"""Looked at every hour, whether there is a market or not."""
