"""Months, days, clocks and zones: the passing of time frees money, and nothing else does."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nq_pipeline.configuration import build_settings
from nq_pipeline.errors import LedgerError, OverBudget
from nq_pipeline.settings import Settings
from nq_pipeline.spend import period
from nq_pipeline.spend.ledger import Ledger, open_ledger
from nq_pipeline.spend.money import GIB
from nq_pipeline_tests.testing.ledger_machine import NOON, Machine, charge

ALL = Decimal(10)
"""A day's budget."""
REST = Decimal(11)
"""What a month has beside: 21 in all."""


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """The database has no part in what time it is; the schedules turn clocks on all of them."""
    return build_settings(data_dir=tmp_path)


def opened(settings: Settings, machine: Machine) -> Ledger:
    return open_ledger(settings, clock=machine, boot=machine.boot)


def spend(ledger: Ledger, usd: Decimal = ALL) -> None:
    ledger.commit(ledger.reserve(charge(usd)), billed_bytes=int(usd) * GIB)


def spend_the_month(settings: Settings, machine: Machine) -> Ledger:
    ledger = opened(settings.with_values(budget_daily_usd=Decimal(100)), machine)
    spend(ledger, ALL + REST)
    return ledger


def test_the_next_day_has_its_own_budget_and_the_next_month_too(settings: Settings, machine: Machine) -> None:
    ledger = opened(settings, machine)
    spend(ledger)
    machine.advance(hours=11.99)
    with pytest.raises(OverBudget, match="today"):
        ledger.reserve(charge("1"))
    machine.advance(hours=0.02)
    spend(ledger)
    machine.advance(days=1)
    with pytest.raises(OverBudget, match=r"\$1\.00 is left of this month"):
        ledger.reserve(charge("2"))
    machine.advance(days=20)
    spend(ledger)


def test_an_open_reservation_counts_in_every_month(settings: Settings, machine: Machine) -> None:
    ledger = opened(settings, machine)
    held = ledger.reserve(charge(ALL))
    machine.advance(days=61)
    with pytest.raises(OverBudget, match=r"\$10\.00 reserved"):
        ledger.reserve(charge("1"))
    ledger.commit(held, billed_bytes=10 * GIB)
    spend(ledger)
    assert ledger.month(NOON).metered_usd == 10, "it is paid in the month in which it was reserved"
    assert ledger.month().metered_usd == 10


@pytest.mark.parametrize("days", [1, 21, 400])
def test_a_clock_that_jumps_ahead_starts_no_period(settings: Settings, machine: Machine, days: int) -> None:
    ledger = spend_the_month(settings, machine)
    machine.error = timedelta(days=days)
    for again in (ledger, opened(settings, machine)):
        with pytest.raises(OverBudget, match="this month"):
            again.reserve(charge("1"))
    month = again.month()
    assert month.month.month == 11 and month.clock_ahead == timedelta(days=days) - period.LEEWAY
    assert any("trust-clock" in warning for warning in month.warnings)


def test_a_clock_that_jumps_ahead_in_steps_starts_no_period(settings: Settings, machine: Machine) -> None:
    ledger = opened(settings, machine)
    spend(ledger)
    for minutes in range(30, 14 * 60, 30):
        machine.error = timedelta(minutes=minutes)
        with pytest.raises(OverBudget, match="today"):
            ledger.reserve(charge("1"))


@pytest.mark.parametrize("days", [1, 10, 31, 400, 5000])
def test_a_clock_set_back_starts_no_period(settings: Settings, machine: Machine, days: int) -> None:
    ledger = spend_the_month(settings, machine)
    machine.error = timedelta(days=-days)
    with pytest.raises(OverBudget, match="this month"):
        ledger.reserve(charge("1"))


def test_spending_by_a_slow_clock_counts_after_correction(settings: Settings, machine: Machine) -> None:
    ledger = opened(settings, machine)
    spend(ledger, Decimal(5))
    machine.error = timedelta(days=-60)
    spend(ledger, Decimal(5))
    machine.error = timedelta(0)
    assert ledger.month().metered_usd == 10
    with pytest.raises(OverBudget, match="today"):
        ledger.reserve(charge("1"))


def test_spending_by_a_new_boots_fast_clock_counts_twice(settings: Settings, machine: Machine) -> None:
    opened(settings, machine)
    machine.restart()
    machine.error = timedelta(days=31)  # nothing on this machine can tell
    spend(opened(settings, machine))
    machine.error = timedelta(0)
    with pytest.raises(OverBudget, match="today"):
        opened(settings, machine).reserve(charge("1"))
    machine.advance(days=31)
    with pytest.raises(OverBudget, match="today"):
        opened(settings, machine).reserve(charge("1"))


def test_trusting_the_clock_frees_no_money(settings: Settings, machine: Machine) -> None:
    machine.error = timedelta(days=3650)
    spend(opened(settings, machine))
    machine.error = timedelta(0)
    ledger = opened(settings, machine)
    with pytest.raises(LedgerError, match="reason"):
        ledger.trust_clock("")
    ledger.trust_clock("the clock was ten years ahead")
    with pytest.raises(OverBudget, match="today"):
        ledger.reserve(charge("1"))
    assert ledger.month().metered_usd == 10
    machine.advance(days=1)
    spend(ledger)
    machine.advance(days=30)
    spend(ledger)
    assert ledger.month().metered_usd == 10
    assert ledger.month(NOON).metered_usd == 10, "the first ten stand in the month the clock said"


def test_a_clock_that_was_slow_at_boot_can_be_trusted(settings: Settings, machine: Machine) -> None:
    machine.error = timedelta(days=-40)
    ledger = opened(settings, machine)
    machine.error = timedelta(0)
    assert ledger.month().month.month == 10
    ledger.trust_clock("NTP came late")
    assert ledger.month().month.month == 11 and ledger.month().clock_ahead == timedelta(0)
    machine.error = timedelta(days=30)
    assert ledger.month().month.month == 11


def test_a_machine_that_was_off_for_a_month_is_believed(settings: Settings, machine: Machine) -> None:
    spend_the_month(settings, machine)
    machine.advance(days=30)
    machine.restart()
    spend(opened(settings, machine))


ZONES = st.sampled_from(sorted(available_timezones()))


@given(st.datetimes(datetime(2020, 1, 1), datetime(2035, 1, 1), timezones=st.just(UTC)), ZONES, ZONES)
def test_a_period_begins_at_the_earliest_of_two_zones(moment: datetime, one: str, other: str) -> None:
    for began, longest in ((period.day_began, 52), (period.month_began, 33 * 24)):
        start = began(moment, {one, other})
        assert start == min(began(moment, {one}), began(moment, {other}))
        assert timedelta(0) <= moment - start < timedelta(hours=longest)
        local = start.astimezone(ZoneInfo(one)), start.astimezone(ZoneInfo(other))
        assert any((at.hour, at.minute) <= (1, 0) for at in local), (
            "a midnight; some zones skip it once a year"
        )


@pytest.mark.parametrize("to", ["Pacific/Kiritimati", "Pacific/Pago_Pago", "America/Chicago", "Asia/Tokyo"])
@pytest.mark.parametrize("hour", [0, 9, 13, 23])
def test_a_change_of_zone_starts_no_day_early(
    settings: Settings, machine: Machine, to: str, hour: int
) -> None:
    machine.time = datetime(2026, 11, 30, hour, 30, tzinfo=UTC)
    machine.restart()
    spend_the_month(settings, machine)
    moved = settings.with_values(budget_timezone=to)
    while machine.time < datetime(2026, 12, 1, tzinfo=UTC):
        with pytest.raises(OverBudget):
            opened(moved, machine).reserve(charge("1"))
        machine.advance(hours=1)
    machine.time = datetime(2027, 1, 3, tzinfo=UTC)
    spend(opened(moved, machine))


def test_the_days_are_those_of_the_zone_that_is_set(settings: Settings, machine: Machine) -> None:
    ledger = opened(settings.with_values(budget_timezone="America/Chicago"), machine)
    machine.time = datetime(2026, 11, 11, 5, 59, tzinfo=UTC)
    spend(ledger)
    with pytest.raises(OverBudget, match="today"):
        ledger.reserve(charge("1"))
    machine.time = datetime(2026, 11, 11, 6, 0, tzinfo=UTC)
    spend(ledger)
    days = {day.day.day: day.metered_usd for day in ledger.month().days if day.metered_usd}
    assert days == {10: 10, 11: 10}
