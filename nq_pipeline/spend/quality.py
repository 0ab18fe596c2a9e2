"""Judgements of a month of the ledger and of what the plans include, for checks.

No judgement blocks anything: the ledger has already refused what the budgets do not cover.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import date
from decimal import Decimal

import polars as pl

from nq_pipeline.finding import Finding
from nq_pipeline.outcome import Outcome
from nq_pipeline.spend import period
from nq_pipeline.spend.entitlements import LOWEST_LIVE_SCHEMA, WHOLE_CHAIN, Entitlement
from nq_pipeline.spend.money import ZERO, format_usd
from nq_pipeline.spend.statement import Statement


def judge_month(
    month: Statement, entitlements: Sequence[Entitlement], today: date, sources: Collection[str]
) -> dict[str, Finding]:
    """Every judgement, by the name of its check.

    Parameters
    ----------
    month
        The current one.
    entitlements
        The newest answer of every vendor on every schema.
    today
        The trade date by which refusals are active or have lapsed.
    sources
        The vendors that can supply chains; see `configured_vendors`.
    """
    return {
        "budget": judge_refusals(month),
        "projection": judge_projection(month),
        "plan_fee": judge_plan_fee(month),
        "reconciled": judge_reservations(month),
        "entitlement": judge_entitlements(entitlements, today, sources),
    }


def configured_vendors(sources: Collection[str], answers: pl.DataFrame) -> tuple[str, ...]:
    """The vendors without those whose newest answer is `not_configured`; `answers` are of one day."""
    newest = answers.sort("answered_at").group_by("source").last()
    unconfigured = set(newest.filter(outcome=str(Outcome.NOT_CONFIGURED))["source"])
    return tuple(name for name in sources if name not in unconfigured)


def judge_refusals(month: Statement) -> Finding:
    """Fails when the budgets refused a request today."""
    today = period.day_of(month.as_of, month.zone)
    refused = [line for line in month.refusals if line.day == today]
    numbers = {"refused_today": len(refused), "remaining_today_usd": float(month.remaining_today_usd)}
    if not refused:
        left = f"nothing was refused today; ${month.remaining_today_usd:,.2f} may still be spent"
        return Finding(passed=True, sentence=left, numbers=numbers)
    table = pl.DataFrame(
        [
            {"at": f"{line.recorded_at:%H:%M} UTC", "run": line.run_id, "refused": line.reason}
            for line in refused
        ]
    )
    others = len(refused) - 1
    more = f" (and {others} more today)" if others else ""
    return Finding(
        passed=False, sentence=f"over_budget: {refused[-1].reason}{more}", numbers=numbers, table=table
    )


def judge_projection(month: Statement) -> Finding:
    """Warns when the month is projected to use NQ_BUDGET_WARN or more of what the plan leaves."""
    budgets = month.budgets
    metered, room = month.projected_usd - month.plan_usd, budgets.monthly_usd - month.plan_usd
    over = metered > ZERO and metered >= Decimal(str(budgets.warn)) * room
    return Finding(
        passed=not over,
        sentence=f"${month.projected_usd:,.2f} of {format_usd(budgets.monthly_usd)} projected for the month"
        + (f", {budgets.warn:.0%} or more of what the plan leaves (NQ_BUDGET_MONTHLY_USD)" if over else ""),
        severity="warn",
        numbers={"projected_usd": float(month.projected_usd), "monthly_usd": float(budgets.monthly_usd)},
    )


def judge_plan_fee(month: Statement) -> Finding:
    """Fails when the plan's fee is not booked: every total of the month is then too low."""
    wanted, numbers = month.budgets.plan_usd, {"plan_usd": float(month.plan_usd)}
    if wanted and not month.plan_usd:
        sentence = f"no fee is booked for {month.month:%B %Y}, and the plan is {format_usd(wanted)} a month"
        return Finding(passed=False, sentence=sentence, numbers=numbers)
    return Finding(passed=True, sentence=f"{format_usd(month.plan_usd)} is booked", numbers=numbers)


def judge_reservations(month: Statement) -> Finding:
    """Fails when a reservation is open for longer than NQ_BUDGET_REVIEW_H."""
    overdue = [one for one in month.open if one.review]
    numbers = {"open": len(month.open), "overdue": len(overdue)}
    if not overdue:
        return Finding(passed=True, sentence="no reservation is open for too long", numbers=numbers)
    held = sum((one.reserved_usd for one in overdue), ZERO)
    table = pl.DataFrame(
        [{"id": one.id, "held": format_usd(one.reserved_usd), "what": one.description} for one in overdue]
    )
    return Finding(
        passed=False,
        sentence=f"{format_usd(held)} is held by {len(overdue)} reservation(s) open for too long: look up "
        "what the vendor billed, then `nq budget reconcile`",
        numbers=numbers,
        table=table,
    )


def judge_entitlements(entitlements: Sequence[Entitlement], today: date, sources: Collection[str]) -> Finding:
    """Warns when a plan refuses a request; an error where nothing can replace it."""
    refused = [one for one in entitlements if one.refuses(today)]
    if not refused:
        return Finding(passed=True, sentence="no plan refuses a request", severity="warn")
    others = set(sources) - {one.vendor for one in refused if one.schema == WHOLE_CHAIN}
    irreplaceable = [one for one in refused if not _has_substitute(one, others)]
    first = (irreplaceable or refused)[0]
    step = first.step or first.text
    if first.schema == WHOLE_CHAIN and not others:
        step = f"no vendor is left of {', '.join(sources)}"
    table = pl.DataFrame(
        [
            {"vendor": e.vendor, "schema": e.schema, "mode": e.mode, "step": e.step, "said": e.text}
            for e in refused
        ]
    )
    return Finding(
        passed=False,
        sentence=f"{first.vendor} refuses {first.schema} ({first.mode}): {step}",
        severity="error" if irreplaceable else "warn",
        numbers={"refused_schemas": len(refused), "left_nothing": len(irreplaceable)},
        table=table,
    )


def _has_substitute(refused: Entitlement, others: Collection[str]) -> bool:
    """Whether something can replace what was refused.

    A lesser schema replaces a live one, another vendor's chain a chain, and older trade dates of history
    remain unless all of it was refused.
    """
    if refused.mode == "live":
        return refused.schema != LOWEST_LIVE_SCHEMA
    if refused.schema == WHOLE_CHAIN:
        return bool(others)
    return refused.data_from is not None
