"""What is to be said about money and entitlement: judgements of a month of the ledger, no Dagster here.

None of them holds anything back. What the budgets do not grant is refused by the ledger before the
vendor is asked; these say that it happened.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import date
from decimal import Decimal

import polars as pl

from nq_pipeline.finding import Finding
from nq_pipeline.outcome import Outcome
from nq_pipeline.spend import period
from nq_pipeline.spend.entitlements import FALLBACK_ORDER, WHOLE_CHAIN, Entitlement
from nq_pipeline.spend.money import ZERO, format_usd
from nq_pipeline.spend.statement import Statement


def judge_month(
    month: Statement, said: Sequence[Entitlement], today: date, sources: Collection[str]
) -> dict[str, Finding]:
    """Every judgement, by the name of its check.

    Parameters
    ----------
    month
        The running one.
    said
        The newest word of every vendor on every schema.
    today
        The trade date on which a refusal is in force or has lapsed.
    sources
        The vendors that can be asked for chains; see `configured_vendors`.
    """
    return {
        "budget": judge_refusals(month),
        "projection": judge_projection(month),
        "plan_fee": judge_plan_fee(month),
        "reconciled": judge_reservations(month),
        "entitlement": judge_entitlements(said, today, sources),
    }


def configured_vendors(sources: Collection[str], answers: pl.DataFrame) -> tuple[str, ...]:
    """The vendors but for those that last said they are not configured; `answers` are of one day."""
    newest = answers.sort("answered_at").group_by("source").last()
    without = set(newest.filter(outcome=str(Outcome.NOT_CONFIGURED))["source"])
    return tuple(name for name in sources if name not in without)


def judge_refusals(month: Statement) -> Finding:
    """Whether anything was refused today."""
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
    """Whether the month will stay below the share of its budget from which on it warns (NQ_BUDGET_WARN).

    The share is that of what the plan leaves, as everywhere in the ledger.
    """
    budgets = month.budgets
    to_come, room = month.projected_usd - month.plan_usd, budgets.monthly_usd - month.plan_usd
    over = to_come > ZERO and to_come >= Decimal(str(budgets.warn)) * room
    return Finding(
        passed=not over,
        sentence=f"the month comes to ${month.projected_usd:,.2f} of {format_usd(budgets.monthly_usd)}"
        + (f", {budgets.warn:.0%} or more of what the plan leaves (NQ_BUDGET_MONTHLY_USD)" if over else ""),
        severity="warn",
        numbers={"projected_usd": float(month.projected_usd), "monthly_usd": float(budgets.monthly_usd)},
    )


def judge_plan_fee(month: Statement) -> Finding:
    """Whether the plan's fee is booked, without which every sum of the month is too low."""
    wanted, numbers = month.budgets.plan_usd, {"plan_usd": float(month.plan_usd)}
    if wanted and not month.plan_usd:
        sentence = f"no fee is booked for {month.month:%B %Y}, and the plan is {format_usd(wanted)} a month"
        return Finding(passed=False, sentence=sentence, numbers=numbers)
    if wanted != month.plan_usd:
        sentence = (
            f"{format_usd(month.plan_usd)} is booked, and NQ_PLAN_MONTHLY_USD is {format_usd(wanted)} now"
        )
        return Finding(passed=False, sentence=sentence, severity="warn", numbers=numbers)
    return Finding(passed=True, sentence=f"{format_usd(month.plan_usd)} is booked", numbers=numbers)


def judge_reservations(month: Statement) -> Finding:
    """Whether every reservation was closed in good time (NQ_BUDGET_REVIEW_H)."""
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


def judge_entitlements(said: Sequence[Entitlement], today: date, sources: Collection[str]) -> Finding:
    """Whether a plan refuses what is wanted; an error where there is nothing else to fall back on."""
    refused = [one for one in said if one.refuses(today)]
    if not refused:
        return Finding(passed=True, sentence="no plan refuses anything that was asked for", severity="warn")
    others = set(sources) - {one.vendor for one in refused if one.schema == WHOLE_CHAIN}
    left_nothing = [one for one in refused if _is_last(one, others)]
    first = (left_nothing or refused)[0]
    step = first.step or first.text
    if first.schema == WHOLE_CHAIN and not others:
        step = f"no vendor is left to ask of {', '.join(sources)}"
    table = pl.DataFrame(
        [
            {"vendor": e.vendor, "schema": e.schema, "mode": e.mode, "step": e.step, "said": e.text}
            for e in refused
        ]
    )
    return Finding(
        passed=False,
        sentence=f"{first.vendor} refuses {first.schema} ({first.mode}): {step}",
        severity="error" if left_nothing else "warn",
        numbers={"refused_schemas": len(refused), "left_nothing": len(left_nothing)},
        table=table,
    )


def _is_last(refused: Entitlement, others: Collection[str]) -> bool:
    """Whether nothing takes the place of what was refused.

    Below a live schema there is a lesser one, beside a vendor's chain are the `others`, and before a day
    of history are older ones, unless it was refused as a whole.
    """
    if refused.mode == "live":
        return refused.schema == FALLBACK_ORDER[-1]
    if refused.schema == WHOLE_CHAIN:
        return not others
    return refused.data_from is None
