"""The ledger: what it lets through, what it refuses and how it says so, what it keeps."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from nq_pipeline.configuration import build_settings
from nq_pipeline.errors import LedgerError, OverBudget
from nq_pipeline.outcome import Outcome
from nq_pipeline.settings import Settings
from nq_pipeline.settings.groups import PURPOSES
from nq_pipeline.spend import database
from nq_pipeline.spend.ledger import Ledger, Purpose, open_ledger, read_ledger
from nq_pipeline.spend.money import GIB, NANO, cost_of, format_usd
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.ledger_machine import NOON, Machine, charge, size_of
from nq_pipeline_tests.testing.ledgers import PASSWORD, FreshLedger


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def ledger(fresh: FreshLedger, machine: Machine) -> Ledger:
    return opened(fresh(), machine)


def opened(settings: Settings, machine: Machine) -> Ledger:
    return open_ledger(settings, clock=machine, boot=machine.boot)


def kinds(ledger: Ledger) -> list[str]:
    return [str(line.kind) for line in ledger.lines() if line.kind not in ("budget", "subscription")]


# ── spending ────────────────────────────────────────────────────────────────────────────────────


def test_a_commit_books_received_bytes_and_releases_the_rest(ledger: Ledger) -> None:
    reservation = ledger.reserve(charge("4"))
    assert ledger.month().reserved_usd == 4
    assert ledger.commit(reservation, billed_bytes=3 * GIB, request_id="request-7") == 3
    month = ledger.month()
    assert (month.metered_usd, month.reserved_usd, month.remaining_usd) == (
        Decimal(3),
        Decimal(0),
        Decimal(18),
    )
    committed = ledger.lines()[-1]
    assert (committed.bytes, committed.request_id, committed.reserved_usd) == (
        3 * GIB,
        "request-7",
        Decimal(-4),
    )


def test_a_part_of_a_billionth_is_rounded_up(ledger: Ledger) -> None:
    reservation = ledger.reserve(charge("0.0000000001"))
    assert reservation.reserved_usd == NANO
    assert ledger.commit(reservation, billed_bytes=1) == NANO


@pytest.mark.parametrize(
    ("unit_price", "size", "billed", "paid"),
    [(None, 1000, 250, "0.5"), (None, None, 250, "2"), (Decimal(8), 1000, GIB // 8, "1")],
)
def test_without_a_unit_price_the_quote_is_scaled_by_bytes(
    ledger: Ledger, unit_price: Decimal | None, size: int | None, billed: int, paid: str
) -> None:
    reservation = ledger.reserve(charge("2", unit_price_usd=unit_price, billable_bytes=size))
    assert ledger.commit(reservation, billed_bytes=billed) == Decimal(paid)


def test_a_second_commit_changes_nothing(fresh: FreshLedger, machine: Machine) -> None:
    settings = fresh()
    first = opened(settings, machine)
    reservation = first.reserve(charge("2"))
    assert first.commit(reservation, billed_bytes=GIB) == 1
    assert opened(settings, machine).commit(reservation, billed_bytes=2 * GIB) == 1
    assert kinds(first) == ["reserved", "committed"]


def test_a_release_frees_money_and_a_commit_is_final(ledger: Ledger) -> None:
    reservation = ledger.reserve(charge("10"))
    assert ledger.check(charge("10")) is not None
    ledger.release(reservation, "the vendor refused it: 422")
    ledger.release(reservation, "again")
    assert kinds(ledger) == ["reserved", "released"]
    reservation = ledger.reserve(charge("10"))
    ledger.commit(reservation, billed_bytes=1)
    with pytest.raises(LedgerError, match="committed"):
        ledger.release(reservation, "too late")


def test_a_failed_request_stays_reserved_and_its_retry_adds(ledger: Ledger) -> None:
    with pytest.raises(ConnectionError), ledger.spending(charge("4")):
        raise ConnectionError("cut")
    with ledger.spending(charge("4")) as spending:
        assert ledger.month().reserved_usd == 8
        spending.commit(billed_bytes=4 * GIB)
    assert [left.reserved_usd for left in ledger.open_reservations()] == [4]
    with pytest.raises(OverBudget), ledger.spending(charge("4")):
        pytest.fail("what is refused is not begun")


def test_a_cost_above_the_reservation_is_booked_in_full(
    ledger: Ledger,
) -> None:
    ledger.commit(ledger.reserve(charge("10")), billed_bytes=30 * GIB)
    month = ledger.month()
    assert (month.metered_usd, month.remaining_usd, month.remaining_today_usd) == (
        Decimal(30),
        Decimal(0),
        Decimal(0),
    )
    with pytest.raises(OverBudget):
        ledger.reserve(charge(NANO))


# ── refusing ────────────────────────────────────────────────────────────────────────────────────


def test_the_last_billionth_is_granted_and_one_more_is_refused(ledger: Ledger) -> None:
    ledger.commit(ledger.reserve(charge("9")), billed_bytes=9 * GIB)
    with pytest.raises(OverBudget):
        ledger.reserve(charge(1 + NANO))
    ledger.reserve(charge("1"))
    with pytest.raises(OverBudget):
        ledger.reserve(charge(NANO))


def test_a_refusal_names_cost_remainder_and_setting(ledger: Ledger, machine: Machine) -> None:
    ledger.commit(ledger.reserve(charge("8.25")), billed_bytes=size_of(Decimal("8.25")))
    machine.advance(minutes=30)
    with pytest.raises(OverBudget) as refused:
        ledger.reserve(charge("3.5", purpose="backfill"))
    assert str(refused.value) == (
        "backfill of GLBX.MDP3 trades (NQ.OPT, 10 November) would cost $3.50 (priced 30 min ago), and only "
        "$1.75 is left of today's budget of $10.00 ($8.25 spent); raise NQ_BUDGET_DAILY_USD or ask for less"
    )
    assert refused.value.outcome is Outcome.OVER_BUDGET
    (refusal,) = ledger.month().refusals
    assert (refusal.reason, refusal.priced_usd) == (str(refused.value), Decimal("3.5"))
    assert refusal.reserved_usd == refusal.spent_usd == 0


def test_every_budget_that_is_too_small_is_named(fresh: FreshLedger, machine: Machine) -> None:
    settings = fresh(budget_by_vendor=("databento=2",), budget_by_purpose=("backfill=1", "chains=0.5"))
    ledger = opened(settings, machine)
    sentence = ledger.check(charge("30", purpose="backfill"))
    assert (
        sentence is not None
        and "$21.00 is left of this month's budget of $200.00 ($179.00 the plan)" in sentence
    )
    for setting in ("MONTHLY_USD", "DAILY_USD", "BY_VENDOR", "BY_PURPOSE"):
        assert f"NQ_BUDGET_{setting}" in sentence
    assert ledger.check(charge("1", purpose="backfill")) is None
    ledger.reserve(charge("1", purpose="backfill"))
    assert "budget for backfill" in str(ledger.check(charge("0.1", purpose="backfill")))
    assert "budget for databento" in str(ledger.check(charge("1.1", purpose="verify")))
    assert ledger.check(charge("1", purpose="gap_repair")) is None
    assert ledger.check(charge("0.5", purpose="chains")) is None
    assert ledger.month().by_purpose["backfill"].cap_usd == 1


def test_no_price_is_refused_and_a_price_of_zero_never(fresh: FreshLedger, machine: Machine) -> None:
    ledger = opened(fresh(budget_monthly_usd=Decimal(0), budget_daily_usd=Decimal(0)), machine)
    with pytest.raises(OverBudget, match="no price"):
        ledger.reserve(charge(None))
    with pytest.raises(OverBudget):
        ledger.reserve(charge(NANO))
    free = ledger.reserve(charge("0"))
    assert ledger.commit(free, billed_bytes=GIB) == 0
    assert kinds(ledger) == ["refused", "refused", "reserved", "committed"]


@pytest.mark.parametrize("usd", ["NaN", "Infinity", "-0.01", "1e9"])
def test_a_price_that_is_none_is_an_error_and_not_a_grant(ledger: Ledger, usd: str) -> None:
    with pytest.raises(LedgerError, match="not a price"):
        ledger.reserve(charge(usd))
    with pytest.raises(LedgerError, match="unit price"):
        ledger.reserve(charge("1", unit_price_usd=Decimal(usd)))
    assert kinds(ledger) == []


def test_asking_whether_it_fits_reserves_and_records_nothing(ledger: Ledger) -> None:
    assert ledger.check(charge("1")) is None
    assert ledger.check(charge("11")) is not None
    assert kinds(ledger) == []


def test_the_purposes_that_can_have_a_budget_are_those_there_are() -> None:
    assert get_args(Purpose) == PURPOSES


# ── reviewing ───────────────────────────────────────────────────────────────────────────────────


def test_reconciling_closes_or_corrects_a_reservation(ledger: Ledger) -> None:
    reservation = ledger.reserve(charge("5"))
    ledger.reconcile(reservation.id, Decimal("2"), "usage page")
    assert ledger.month().metered_usd == 2 and ledger.open_reservations() == []
    ledger.reconcile(reservation.id, Decimal("1.5"), "invoice")
    ledger.reconcile(reservation.id, Decimal("1.5"), "invoice, read again")
    assert ledger.month().metered_usd == Decimal("1.5")
    assert kinds(ledger) == ["reserved", "reconciled", "corrected"]
    assert [line.reason for line in ledger.month().changes if line.kind != "budget"] == [
        "usage page",
        "invoice",
    ]


@pytest.mark.parametrize("closing", ["released", "reconciled"])
def test_data_that_comes_after_all_is_paid_for(ledger: Ledger, closing: str) -> None:
    reservation = ledger.reserve(charge("5"))
    if closing == "released":
        ledger.release(reservation, "seemed refused")
    else:
        ledger.reconcile(reservation.id, Decimal(1), "seemed dead")
    assert ledger.commit(reservation, billed_bytes=3 * GIB) == 3
    assert ledger.commit(reservation, billed_bytes=3 * GIB) == 3
    assert ledger.month().metered_usd == 3
    assert kinds(ledger) == ["reserved", closing, "corrected"]


def test_an_incomplete_reconciliation_is_refused(ledger: Ledger) -> None:
    reservation = ledger.reserve(charge("5"))
    with pytest.raises(LedgerError, match="reason"):
        ledger.reconcile(reservation.id, Decimal(1), " ")
    with pytest.raises(LedgerError, match="billed"):
        ledger.reconcile(reservation.id, Decimal(-1), "reason")
    with pytest.raises(LedgerError, match="no reservation nowhere"):
        ledger.reconcile("nowhere", Decimal(1), "reason")
    assert len(ledger.open_reservations()) == 1


def test_a_reservation_waits_for_review_when_it_is_a_day_old(ledger: Ledger, machine: Machine) -> None:
    ledger.reserve(charge("1"))
    machine.advance(hours=23)
    assert ledger.due_for_review() == [] and not ledger.month().open[0].review
    machine.advance(hours=1)
    assert len(ledger.due_for_review()) == 1 and ledger.month().open[0].review
    assert any("nq budget reconcile" in warning for warning in ledger.month().warnings)


# ── the plan and the budgets ────────────────────────────────────────────────────────────────────


def test_the_plans_fee_is_a_line_of_its_own_once_a_month(fresh: FreshLedger, machine: Machine) -> None:
    settings = fresh()
    for days in (0, 1, 25):
        machine.advance(days=days)
        ledger = opened(settings, machine)
        ledger.reserve(charge("0.5"))
    fees = [line for line in ledger.lines() if line.kind == "subscription"]
    assert [(fee.day.month, fee.spent_usd, fee.description) for fee in fees] == [
        (11, Decimal(179), "Databento Standard, November 2026"),
        (12, Decimal(179), "Databento Standard, December 2026"),
    ]
    assert ledger.month().plan_usd == 179
    assert ledger.month(NOON).plan_usd == 179


def test_a_new_month_books_its_fee_before_its_first_request(ledger: Ledger, machine: Machine) -> None:
    machine.advance(days=25)
    ledger.reserve(charge("0.5"))
    assert ledger.month().plan_usd == 179


def test_a_new_price_of_the_plan_books_the_difference(fresh: FreshLedger, machine: Machine) -> None:
    settings = fresh()
    opened(settings, machine)
    dearer = settings.with_values(plan_monthly_usd=Decimal(199))
    assert opened(dearer, machine).month().plan_usd == 199
    with pytest.raises(OverBudget, match=r"\$199\.00 the plan"):
        opened(dearer, machine).reserve(charge("1.01"))


def test_only_a_changed_budget_adds_a_line_with_its_reason(fresh: FreshLedger, machine: Machine) -> None:
    settings = fresh()
    opened(settings, machine)
    before = len(opened(settings, machine).lines())
    more = settings.with_values(budget_daily_usd=Decimal("12.50"), budget_reason="quarterly roll")
    ledger = opened(more, machine)
    (change,) = ledger.lines()[before:]
    assert (change.setting, change.value) == ("NQ_BUDGET_DAILY_USD", "12.5")
    assert change.reason == "quarterly roll (was 10)"
    ledger.reserve(charge("12.5"))


# ── the database ────────────────────────────────────────────────────────────────────────────────


def execute(settings: Settings, sql: str) -> None:
    """Run SQL beside the ledger, as somebody with a database client would."""
    path = Workspace.of(settings).ledger
    url = settings.spend.ledger_url.get_secret_value() if settings.spend.ledger_url else f"sqlite:///{path}"
    with sa.create_engine(url, poolclass=sa.pool.NullPool).begin() as connection:
        connection.execute(sa.text(sql))


CHANGES = [
    "UPDATE nq_spend_lines SET spent_usd = 0",
    "DELETE FROM nq_spend_lines",
    "INSERT INTO nq_spend_lines SELECT * FROM nq_spend_lines WHERE kind = 'reserved' "
    "ON CONFLICT (line_id) DO UPDATE SET spent_usd = 0",
    "UPDATE nq_spend_open SET reservation_id = 'another'",
    "DELETE FROM nq_spend_open",
]
OF_SQLITE = [
    "REPLACE INTO nq_spend_lines SELECT * FROM nq_spend_lines WHERE kind = 'committed'",
    "INSERT OR IGNORE INTO nq_spend_lines SELECT * FROM nq_spend_lines WHERE kind = 'committed'",
    "UPDATE OR REPLACE nq_spend_lines SET line_id = line_id + 1",
    *(
        "REPLACE INTO nq_spend_lines (environment, kind, recorded_at, booked_at, day, zone, reservation_id, "
        "reserved_usd, spent_usd) SELECT environment, kind, recorded_at, booked_at, day, zone, "
        f"reservation_id, 0, 0 FROM nq_spend_lines WHERE kind = '{kind}'"
        for kind in ("reserved", "committed")
    ),
]
OF_POSTGRES = ["TRUNCATE nq_spend_lines", "TRUNCATE nq_spend_open"]


def test_the_database_itself_refuses_to_change_a_line(fresh: FreshLedger, machine: Machine) -> None:
    settings = fresh()
    ledger = opened(settings, machine)
    ledger.commit(ledger.reserve(charge("1")), billed_bytes=GIB)
    ledger.reserve(charge("2"))
    lines, open_ = ledger.lines(), ledger.open_reservations()
    for sql in (*CHANGES, *(OF_POSTGRES if settings.spend.ledger_url else OF_SQLITE)):
        with pytest.raises(sa.exc.DBAPIError, match="append-only"):
            execute(settings, sql)
        assert ledger.lines() == lines and ledger.open_reservations() == open_, sql


def test_a_ledger_of_the_previous_release_is_migrated(
    fresh: FreshLedger, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = fresh()
    with monkeypatch.context() as before:
        before.setattr(database, "HEAD", "0001")
        before.setattr(database, "check_lake", lambda *_: None)  # that release knew of one machine only
        ledger = opened(settings, machine)
        kept = ledger.reserve(charge("1"))
    assert opened(settings, machine).commit(kept, billed_bytes=GIB) == 1
    for sql in (*CHANGES[:3], *(() if settings.spend.ledger_url else OF_SQLITE)):
        with pytest.raises(sa.exc.DBAPIError, match="append-only"):
            execute(settings, sql)
    assert opened(settings, machine).month().metered_usd == 1


def test_the_sandbox_and_live_share_a_database_but_no_money(
    fresh: FreshLedger, machine: Machine, tmp_path: Path
) -> None:
    settings = fresh()
    if settings.spend.ledger_url is None:
        settings = settings.with_values(ledger_url=f"sqlite:///{tmp_path}/one.db")
    sandbox = opened(settings, machine)
    sandbox.reserve(charge("10"))
    live = opened(settings.with_values(environment="live"), machine)
    assert live.month().reserved_usd == 0
    live.reserve(charge("10"))
    assert len(sandbox.open_reservations()) == 1


def test_a_ledger_of_a_newer_release_is_left_alone(fresh: FreshLedger, machine: Machine) -> None:
    settings = fresh()
    opened(settings, machine)
    execute(settings, "UPDATE nq_spend_version SET version_num = '9999'")
    with pytest.raises(LedgerError, match=r"newer release \(revision 9999"):
        opened(settings, machine)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://nq@127.0.0.1/ledger", "mysql"),
        ("no address", "not the address of a database"),
        (f"postgresql://nq:{PASSWORD}@127.0.0.1:1/ledger", "127.0.0.1/ledger cannot be used"),
    ],
)
def test_an_unusable_database_is_one_sentence_without_password(tmp_path: Path, url: str, said: str) -> None:
    with pytest.raises(LedgerError, match=said) as failed:
        open_ledger(build_settings(data_dir=tmp_path, ledger_url=url))
    assert PASSWORD not in str(failed.value) and failed.value.__cause__ is None
    assert "\n" not in str(failed.value)


def test_a_ledger_that_cannot_be_written_grants_nothing(tmp_path: Path) -> None:
    (tmp_path / "sandbox" / "ledger.sqlite").mkdir(parents=True)
    with pytest.raises(LedgerError, match="cannot be used"):
        open_ledger(build_settings(data_dir=tmp_path))


@pytest.mark.parametrize("at", [0, 4096], ids=["head", "page"])
@pytest.mark.parametrize("opened", [open_ledger, read_ledger])
def test_a_damaged_ledger_is_named_with_the_way_out(
    tmp_path: Path, at: int, opened: Callable[[Settings], Ledger]
) -> None:
    settings = build_settings(data_dir=tmp_path)
    open_ledger(settings).lines()
    path = Workspace.of(settings).ledger
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = path.read_bytes()
    path.write_bytes(content[:at] + b"\xa5" * (len(content) - at))
    with pytest.raises(LedgerError, match=r"ledger\.sqlite is damaged \(.*nq budget restore"):
        opened(settings).lines()


def test_every_field_of_a_charge_comes_back_from_the_ledger(ledger: Ledger) -> None:
    asked = charge("1.5", mode="historical", schema="mbo", priced_at=NOON - timedelta(hours=3))
    reservation = ledger.reserve(asked)
    (left,) = ledger.open_reservations()
    assert dataclasses.asdict(left) == dataclasses.asdict(reservation)


# ── amounts ─────────────────────────────────────────────────────────────────────────────────────


@given(st.integers(0, 2**45), st.decimals(0, 1000, places=6))
def test_a_cost_is_rounded_up_by_less_than_a_billionth(size: int, price: Any) -> None:
    exact = Decimal(size) * price
    assert 0 <= cost_of(size, price) * GIB - exact < NANO * GIB


@pytest.mark.parametrize(
    ("usd", "text"),
    [("0", "$0.00"), ("3.5", "$3.50"), ("1234.567", "$1,234.567"), ("-0.000000012", "-$0.000000012")],
)
def test_amounts_are_shown_with_cents_and_the_digits_they_need(usd: str, text: str) -> None:
    assert format_usd(Decimal(usd)) == text
