"""Judgements of a month of the ledger and of what the plans refuse."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest

from nq_pipeline.clock import ShiftedClock
from nq_pipeline.configuration import load
from nq_pipeline.lake.tables import ANSWERS
from nq_pipeline.spend import quality
from nq_pipeline.spend.entitlements import Entitlement, Mode
from nq_pipeline.spend.ledger import open_ledger
from nq_pipeline_tests.testing.ledgers import charge_of_a_day


def test_a_month_near_its_budget_and_old_reservations_warn(tmp_path: Path) -> None:
    settings = load(data_dir=tmp_path / "data", budget_daily_usd=Decimal(21), budget_review_h=1)
    held = open_ledger(settings)
    held.reserve(charge_of_a_day(cost_usd=Decimal("16.79")))
    assert quality.judge_projection(held.month()).passed
    held.reserve(charge_of_a_day(cost_usd=Decimal("0.01")))
    near = quality.judge_projection(held.month())
    assert not near.passed and near.severity == "warn"
    assert quality.judge_reservations(held.month()).passed
    in_two_hours = ShiftedClock(datetime.now(UTC) + timedelta(hours=2))
    later = open_ledger(settings, clock=in_two_hours, boot=lambda: None).month()
    overdue = quality.judge_reservations(later)
    assert not overdue.passed and overdue.numbers["overdue"] == 2 and "$16.80" in overdue.sentence
    assert quality.judge_plan_fee(held.month()).passed
    unpaid = quality.judge_plan_fee(held.month(datetime.now(UTC) - timedelta(days=400)))
    assert not unpaid.passed and unpaid.severity == "error" and "no fee is booked" in unpaid.sentence


ASKED, NEXT = date(2025, 6, 10), date(2025, 6, 11)


def refusal(vendor: str, schema: str, mode: Mode, data_from: date | None = None) -> Entitlement:
    """A refusal of that trade date."""
    return Entitlement(vendor, "d", schema, mode, "live", ASKED, False, "Not authorized", data_from=data_from)


BOTH_CHAINS = [refusal("polygon", "chain", "historical"), refusal("databento", "chain", "historical")]


@pytest.mark.parametrize(
    ("refusals", "today", "verdict"),
    [
        ([], ASKED, None),
        ([refusal("databento", "mbo", "live")], ASKED, "warn"),
        ([refusal("databento", "mbo", "live"), refusal("databento", "trades", "live")], ASKED, "error"),
        ([refusal("databento", "trades", "live")], NEXT, None),
        ([refusal("polygon", "chain", "historical")], ASKED, "warn"),
        (
            [refusal("polygon", "chain", "historical"), refusal("databento", "chain", "historical")],
            ASKED,
            "error",
        ),
        (
            [refusal("polygon", "chain", "historical"), refusal("databento", "chain", "historical")],
            NEXT,
            None,
        ),
        ([refusal("databento", "mbo", "historical", data_from=ASKED)], ASKED, "warn"),
        ([refusal("databento", "mbo", "historical")], ASKED, "error"),
    ],
)
def test_a_refusal_holds_for_its_trade_date(
    refusals: list[Entitlement], today: date, verdict: str | None
) -> None:
    found = quality.judge_entitlements(refusals, today, ("polygon", "databento"))
    assert (None if found.passed else found.severity) == verdict


def test_a_refused_chain_counts_only_vendors_in_use() -> None:
    refusals = [refusal("polygon", "chain", "historical")]
    found = quality.judge_entitlements(refusals, ASKED, ("polygon",))
    assert found.severity == "error" and found.sentence.endswith("no vendor is left of polygon")
    assert quality.judge_entitlements(refusals, ASKED, ("barchart", "polygon")).severity == "warn"


def test_an_unconfigured_vendor_is_no_replacement() -> None:
    at = datetime(2025, 6, 10, 15, tzinfo=UTC)
    answers = [("barchart", 0, "not_configured"), ("databento", 0, "not_configured"), ("databento", 5, "ok")]
    rows = [
        {"source": name, "answered_at": at + timedelta(minutes=after), "outcome": outcome}
        for name, after, outcome in answers
    ]
    left = quality.configured_vendors(("barchart", "polygon", "databento"), pl.DataFrame(rows))
    assert left == ("polygon", "databento")
    assert quality.configured_vendors(("barchart",), ANSWERS.empty()) == ("barchart",)
