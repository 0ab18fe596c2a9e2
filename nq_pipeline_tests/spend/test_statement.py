"""The month as a value and as text: a stranger can add it up."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nq_pipeline.configuration import build_settings
from nq_pipeline.errors import OverBudget
from nq_pipeline.spend import report
from nq_pipeline.spend.ledger import Ledger, open_ledger
from nq_pipeline.spend.money import GIB
from nq_pipeline_tests.testing.ledger_machine import NOON, Machine, charge


@pytest.fixture
def machine() -> Machine:
    return Machine(datetime(2026, 11, 1, tzinfo=UTC))


def opened(folder: Path, machine: Machine, **more: Any) -> Ledger:
    return open_ledger(build_settings(data_dir=folder, **more), clock=machine, boot=machine.boot)


def spend(ledger: Ledger, usd: str, **more: Any) -> None:
    ledger.commit(ledger.reserve(charge(usd, **more)), billed_bytes=int(Decimal(usd) * GIB))


@pytest.fixture
def ledger(tmp_path: Path, machine: Machine) -> Ledger:
    """Three days of chains at a dollar, a backfill, a repair that broke off, a refusal."""
    ledger = opened(tmp_path, machine, budget_by_purpose=("backfill=8",))
    for _ in range(3):
        spend(ledger, "1")
        machine.advance(days=1)
    spend(
        ledger, "4.5", purpose="backfill", description="NQ.OPT, trade date 2026-10-30", run_id="run-backfill"
    )
    ledger.reserve(charge("2", purpose="gap_repair", run_id="run-killed"))
    with pytest.raises(OverBudget):
        ledger.reserve(charge("9", purpose="backfill"))
    return ledger


def test_the_parts_add_up_to_the_whole(ledger: Ledger) -> None:
    month = ledger.month()
    assert (month.plan_usd, month.metered_usd, month.reserved_usd) == (
        Decimal(179),
        Decimal("7.5"),
        Decimal(2),
    )
    assert month.remaining_usd == Decimal("11.5")
    assert (month.today_usd, month.remaining_today_usd) == (Decimal("4.5"), Decimal("3.5"))
    for parts in (month.by_purpose, month.by_vendor):
        assert sum(part.metered_usd for part in parts.values()) == month.metered_usd
        assert sum(part.reserved_usd for part in parts.values()) == month.reserved_usd
        assert sum(part.requests for part in parts.values()) == 5
    assert month.by_purpose["backfill"].cap_usd == 8
    assert sum(day.metered_usd for day in month.days) == month.metered_usd


def test_only_chains_are_projected_at_their_pace(ledger: Ledger) -> None:
    month = ledger.month()
    assert month.projected_usd == 179 + Decimal("7.5") + 2 + 27, "27 more days of chains at a dollar"
    assert month.plan_prorated_usd == Decimal("17.9"), "three of thirty days"
    assert any("at this rate the month comes to $215.50" in warning for warning in month.warnings)


def test_the_days_are_the_whole_month_ready_for_a_plot(ledger: Ledger) -> None:
    days = ledger.month().days
    assert [day.day for day in days] == [date(2026, 11, n) for n in range(1, 31)]
    assert [day.metered_usd for day in days[:5]] == [1, 1, 1, Decimal("4.5"), 0]
    assert [day.cumulative_usd for day in days[:4]] == [180, 181, 182, Decimal("186.5")]
    assert [day.projected for day in days] == [False] * 4 + [True] * 26
    assert all(before.cumulative_usd <= day.cumulative_usd for before, day in pairwise(days))
    assert abs(days[-1].cumulative_usd - (Decimal("186.5") + 27)) < Decimal("0.000001")


def test_a_warning_begins_at_four_fifths_of_a_budget(tmp_path: Path, machine: Machine) -> None:
    ledger = opened(tmp_path, machine)
    assert ledger.month().warnings == ()
    spend(ledger, "7.99", purpose="backfill")
    assert ledger.month().warnings == ()
    spend(ledger, "0.01", purpose="backfill")
    (warning,) = ledger.month().warnings
    assert warning.startswith("80% of today's budget is used: $2.00 is left")


def test_a_month_that_is_over_shows_its_own_lines_only(ledger: Ledger, machine: Machine) -> None:
    machine.advance(days=40)
    spend(ledger, "3")
    december, november = ledger.month(), ledger.month(NOON)
    assert (december.month, november.month) == (date(2026, 12, 1), date(2026, 11, 1))
    assert (december.metered_usd, november.metered_usd) == (Decimal(3), Decimal("7.5"))
    assert (december.reserved_usd, november.reserved_usd) == (Decimal(2), Decimal(2)), (
        "open: it counts until it is closed"
    )
    assert len(november.refusals) == 1 and december.refusals == ()
    assert not november.running and november.remaining_usd == 0 and november.projected_usd == Decimal("188.5")


def test_the_text_says_what_a_stranger_asks(ledger: Ledger, tmp_path: Path, machine: Machine) -> None:
    text = report.statement_text(ledger.month())
    lines = text.splitlines()
    assert lines[0] == "November 2026, as of 04 Nov 00:00 UTC"
    amounts = {line.split("$")[0].strip(): line for line in lines if "$" in line}
    assert "$179.00  flat fee; $17.90 of it for the month so far" in amounts["Databento Standard"]
    assert "$7.50  billed by the byte; $4.50 of it today" in amounts["Metered"]
    assert "$2.00  held for 1 request(s) whose bill is not known" in amounts["Reserved"]
    assert (
        "$188.50  of a budget of $200.00" in amounts["Total"]
        and "$11.50  for metered requests; $3.50 of it today" in amounts["Remaining"]
    )
    assert "$215.50" in amounts["Projected"]
    assert amounts["backfill"].split() == ["backfill", "$4.500000", "$0.000000", "1", "$8.000000"]
    (left,) = ledger.open_reservations()
    assert any(left.id in line and "run-killed" in line for line in lines)
    assert "trade date 2026-10-30 (run run-backfill)" in text
    assert "Refused, 1:" in text and "NQ_BUDGET_BY_PURPOSE or ask for less" in text
    assert all(line == line.rstrip() for line in lines)


def test_the_newest_price_of_each_schema_is_shown_with_its_age(tmp_path: Path, machine: Machine) -> None:
    ledger, now = opened(tmp_path, machine), machine.time
    expected = [("trades", "28", 3), ("trades", "27", 72), ("mbo", "1.7", 49), ("definition", None, 1)]
    for schema, usd, hours in expected:
        price = None if usd is None else Decimal(usd)
        at = now - timedelta(hours=hours)
        ledger.reserve(charge("0.1", schema=schema, unit_price_usd=price, priced_at=at))
    assert "\n  mbo      $1.70  2 days ago\n  trades  $28.00  3 h ago\n" in report.statement_text(
        ledger.month()
    )
    shown = report.statement_json(ledger.month())["prices"]
    assert [(price["schema"], price["usd"], price["age"]) for price in shown] == [
        ("mbo", Decimal("1.7"), 49 * 3600.0),
        ("trades", Decimal(28), 3 * 3600.0),
    ]


def test_the_json_is_whole_and_exact(ledger: Ledger) -> None:
    found = json.loads(orjson.dumps(report.statement_json(ledger.month()), default=str))
    assert (found["month"], found["timezone"], found["running"]) == ("2026-11", "UTC", True)
    amounts = {name: Decimal(found[name]) for name in found if name.endswith("_usd")}
    assert amounts["total_usd"] == 179 + amounts["metered_usd"] + amounts["reserved_usd"]
    assert len(found["days"]) == 30 and len(found["open"]) == 1 and len(found["refusals"]) == 1
    assert found["refusals"][0]["priced_usd"] == "9.000000000"
    assert found["budgets"]["NQ_BUDGET_BY_PURPOSE"] == "backfill=8"


def test_a_new_ledger_has_a_statement_too(tmp_path: Path, machine: Machine) -> None:
    ledger = opened(tmp_path, machine, plan_monthly_usd=Decimal(0), budget_monthly_usd=Decimal(0))
    month = ledger.month()
    assert month.plan_usd == month.remaining_usd == month.projected_usd == 0 and not month.warnings
    assert "Total" in report.statement_text(month)


PAID = st.tuples(st.integers(0, 29), st.decimals(0, "0.5", places=9), st.sampled_from(["chains", "backfill"]))


@settings(max_examples=8, deadline=None)
@given(st.lists(PAID, max_size=8).map(lambda paid: sorted(paid, key=lambda one: one[0])), st.integers(0, 29))
def test_the_last_day_is_the_projection_without_reservations(
    tmp_path_factory: pytest.TempPathFactory, paid: list[tuple[int, Decimal, str]], last: int
) -> None:
    machine = Machine(datetime(2026, 11, 1, tzinfo=UTC))
    ledger = opened(tmp_path_factory.mktemp("data"), machine, budget_daily_usd=Decimal(20))
    for day, usd, purpose in paid:
        machine.time = datetime(2026, 11, 1 + day, 3, tzinfo=UTC)
        ledger.commit(
            ledger.reserve(charge(usd, purpose=purpose, unit_price_usd=None)), billed_bytes=1 + int(usd * GIB)
        )
    machine.time = max(machine.time, datetime(2026, 11, 1 + last, 5, tzinfo=UTC))
    month = ledger.month()
    assert sum(day.metered_usd for day in month.days) == month.metered_usd
    if not month.days[-1].projected:
        assert month.days[-1].cumulative_usd == month.spent_usd
    else:
        assert abs(month.days[-1].cumulative_usd - month.projected_usd) < Decimal("1e-6")
