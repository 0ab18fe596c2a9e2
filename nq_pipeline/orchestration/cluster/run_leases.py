"""The leases of runs, by which every host of a cluster sees whether a run's process lives.

Dagster does not see it: the task of a killed Celery worker counts as started for ever, and its run would hold
its place in the queue until its `MAX_RUNTIME`. A capture has the lease of the capture and needs no other.

A process that could not reach the database renews its lease when it can again. Whoever reports a run as
failed takes its lease first: so a run that renewed in time goes on, and one that did not stops itself.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Collection
from contextlib import suppress

import dagster as dg

from nq_pipeline.errors import LeaseHeld, LedgerError
from nq_pipeline.leases.leases import Lease, Leases
from nq_pipeline.orchestration.names import CAPTURE, KIND, LEASED
from nq_pipeline.settings import Settings

TTL_S = 60.0
LOST = "The process of this run has died: it no longer renews its lease. What it had written is safe."
_held: list[Lease] = []


def claim_lease(
    instance: dg.DagsterInstance, run: dg.DagsterRun, settings: Settings, *, ttl_s: float = TTL_S
) -> None:
    """Hold the lease of a run until this process ends, if the ledger's database is shared by hosts.

    If another process takes it, this one is terminated as Dagster would do it. A run that could not claim
    one, because the database did not answer, is only never found dead.
    """
    if run.tags.get(KIND) == CAPTURE or settings.spend.ledger_url is None:
        return
    try:
        leases = Leases.of(settings)
        lease = leases.acquire(
            _name(run.run_id), ttl_s=ttl_s, run_id=run.run_id, resumes=True, on_lost=_terminate
        )
    except (LedgerError, LeaseHeld):
        return
    lease.keep()
    _held.append(lease)
    instance.add_run_tags(run.run_id, {LEASED: settings.environment})


def fail_lost_runs(
    instance: dg.DagsterInstance, settings: Settings, suspects: Collection[str] = ()
) -> list[str]:
    """Report the started runs as failed whose leases have lapsed twice in a row.

    After the database was away, all leases have lapsed, and the processes that live renew them at once.

    Parameters
    ----------
    suspects
        What the call before has returned.

    Returns
    -------
    list[str]
        The IDs of the runs whose leases have lapsed since then.

    Raises
    ------
    LedgerError
        The leases cannot be read.
    """
    tags = {LEASED: settings.environment}
    started = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED], tags=tags))
    if not started:
        return []
    leases = Leases.of(settings)
    alive = leases.holders(_name(""))
    lapsed = [run.run_id for run in started if _name(run.run_id) not in alive]
    for run_id in (one for one in lapsed if one in suspects):
        # Held: it was renewed since. Above the run's own token, so that the run finds that it lost the lease.
        with suppress(LeaseHeld), leases.acquire(_name(run_id), above=1):
            run = instance.get_run_by_id(run_id)
            if run and run.status is dg.DagsterRunStatus.STARTED:  # else it has just ended by itself
                instance.report_run_failed(run, LOST)
    return [run_id for run_id in lapsed if run_id not in suspects]


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _name(run_id: str) -> str:
    return f"worker/{run_id}"
