"""The words of every alert: what happened, what it means, what to do.

They depend on the kind of a failed run and on the name of a failed check.
"""

from __future__ import annotations

from collections.abc import Sequence

from nq_pipeline.alerts.message import Alert

TEST_ALERT = Alert(
    key="test",
    what="a test of the alerts",
    so_what="Nothing is wrong. Alerts reach you here.",
    what_to_do="nothing.",
    severity="warning",
)

RUN_CONSEQUENCE = {
    "chains": "There is no chain for this moment; the next tick asks again.",
    "capture": "Nothing is captured until the sensor live_capture has started it again. What was missed "
    "meanwhile is a gap.",
    "backfill": "The day is missing. What was bought of it is kept and not bought again.",
    "spend": "The month is not checked. The budgets still hold.",
    "housekeeping": "Files are not merged and the catalog is not published. Written data is safe.",
    "retention": "Old files stay, and the disk fills up.",
    "health": "A vendor is not ready for the open. The chain would come from the next vendor.",
}
"""By the run's tag `nq/kind`."""

CHECK_CONSEQUENCE = {
    "budget": "The request was neither sent nor paid, and the run went on without it. It is refused until "
    "the budget is raised, or its day or month is over.",
    "entitlement": "What the plan refuses is not in the lake, and there is no replacement.",
    "reconciled": "The reserved money counts against every day and month until it is booked, as if it were "
    "spent.",
    "plan_fee": "The month looks cheaper than it is.",
}
"""By the name of the check, where that says more than the check's promise."""

CHECK_REMEDY = {
    "entitlement": "run `nq doctor` to see what the plan allows; docs/entitlement.md says what an upgrade "
    "adds.",
    "budget": "run `nq budget` to see the month; the check names the setting that raises the limit.",
    "reconciled": "look up what the vendor billed, then run `nq budget reconcile`; see docs/cost.md.",
    "plan_fee": "set NQ_PLAN_MONTHLY_USD to the invoice's amount; `nq budget` shows the month.",
    "complete": "read the check; docs/backfill.md explains each state.",
    "gaps": "docs/capturing.md says what can fill a gap.",
    "available": "run `nq doctor` to see what is wrong with each vendor.",
}
"""By the name of the check."""


def failed_run(
    job: str, reason: str, *, kind: str, trade_date: str | None, by_hand: bool, where: Sequence[str]
) -> Alert:
    """The alert for a failed run; `kind` is its tag `nq/kind`, empty without one.

    A run launched `by_hand` from an asset's page has a job without a name of ours.
    """
    name = "a run launched by hand" if by_hand else job
    return Alert(
        key=f"run/{job}",
        what=f"{name} failed{f' for {trade_date}' if trade_date else ''}: {reason}",
        so_what=RUN_CONSEQUENCE.get(kind, "What the run writes is missing."),
        what_to_do="read the run's error, fix it and launch the run again.",
        where=where,
    )


def failed_check(name: str, reason: str, *, promise: str, where: Sequence[str]) -> Alert:
    """The alert for a failed check, e.g. `databento/trades/gaps`; its `promise` holds when it passes."""
    check = name.rpartition("/")[2]
    broken = f"This does not hold: {promise.partition('. ')[0].rstrip('.')}." if promise else ""
    return Alert(
        key=f"check/{name}",
        what=f"{name}: {reason}",
        so_what=CHECK_CONSEQUENCE.get(check, broken),
        what_to_do=CHECK_REMEDY.get(check, "see the check and its details in the UI."),
        where=where,
    )
