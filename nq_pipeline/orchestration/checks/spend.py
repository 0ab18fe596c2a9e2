"""Checks of the spend ledger, none blocking: the ledger itself refuses before a vendor is asked."""

from __future__ import annotations

import dagster as dg

LEDGER_ASSET = dg.AssetKey(["spend", "ledger"])

CHECKS = {
    "budget": "No metered request was refused today. What was refused never left; the rest of its run went "
    "on, with the outcome over_budget.",
    "projection": "The month stays below NQ_BUDGET_WARN of what the plan leaves of NQ_BUDGET_MONTHLY_USD. "
    "A warning.",
    "plan_fee": "The plan's monthly fee is booked. A warning where NQ_PLAN_MONTHLY_USD is another by now.",
    "reconciled": "No reservation is open for longer than NQ_BUDGET_REVIEW_H.",
    "entitlement": "No plan refuses what was asked for. A warning where something takes its place: a lesser "
    "schema of the live gateway, another vendor's chain, older days of history; an error where nothing is "
    "left.",
}


def specs() -> list[dg.AssetCheckSpec]:
    return [dg.AssetCheckSpec(name, asset=LEDGER_ASSET, description=text) for name, text in CHECKS.items()]
