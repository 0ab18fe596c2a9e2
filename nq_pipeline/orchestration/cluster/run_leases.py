"""The leases of runs, by which every host of a cluster sees whether a run's process lives.

Dagster does not see it: the task of a killed Celery worker counts as started for ever, and its run would hold
its place in the queue until its `MAX_RUNTIME`. A capture has the lease of the capture and needs no other.
"""

from __future__ import annotations

import dagster as dg

from nq_pipeline.errors import LeaseHeld, LedgerError
from nq_pipeline.leases.leases import Lease, Leases
from nq_pipeline.orchestration.names import CAPTURE, KIND, LEASED
from nq_pipeline.settings import Settings

TTL_S = 60.0
LOST = "The process of this run has died: it no longer renews its lease. What it had written is safe."
_held: list[Lease] = []


def claim_lease(instance: dg.DagsterInstance, run: dg.DagsterRun, settings: Settings) -> None:
    """Hold the lease of a run until this process ends, if the ledger's database is shared by hosts.

    A run that could not claim one, because the database did not answer, is only never found dead.
    """
    if run.tags.get(KIND) == CAPTURE or settings.spend.ledger_url is None:
        return
    try:
        leases = Leases.of(settings)
        lease = leases.acquire(_name(run.run_id), ttl_s=TTL_S, run_id=run.run_id)
    except (LedgerError, LeaseHeld):
        return
    lease.keep()
    _held.append(lease)
    instance.add_run_tags(run.run_id, {LEASED: settings.environment})


def fail_lost_runs(instance: dg.DagsterInstance, settings: Settings) -> list[str]:
    """Report the started runs whose leases have lapsed as failed; returns their IDs.

    Raises `LedgerError` when the leases cannot be read.
    """
    tags = {LEASED: settings.environment}
    started = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED], tags=tags))
    if not started:
        return []
    alive, lost = Leases.of(settings).holders(_name("")), []
    for run in started:
        now = None if _name(run.run_id) in alive else instance.get_run_by_id(run.run_id)
        if now and now.status is dg.DagsterRunStatus.STARTED:  # else it has just ended by itself
            instance.report_run_failed(now, LOST)
            lost.append(now.run_id)
    return lost


def _name(run_id: str) -> str:
    return f"worker/{run_id}"
