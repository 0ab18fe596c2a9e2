"""The ledger in the lake: every line once, exact, and a day's sums as the statement has them."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import duckdb
import pytest

from nq_pipeline.configuration import build_settings
from nq_pipeline.errors import LedgerError, OverBudget
from nq_pipeline.lake import catalog
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import SPEND
from nq_pipeline.settings import Settings
from nq_pipeline.spend.export import export_lines, export_spend, restore_ledger
from nq_pipeline.spend.ledger import Ledger, open_ledger
from nq_pipeline.spend.money import GIB, NANO
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.ledger_machine import Machine, charge
from nq_pipeline_tests.testing.ledgers import FreshLedger
from nq_pipeline_tests.testing.postgres import PostgresServer


@pytest.fixture
def machine() -> Machine:
    return Machine(datetime(2026, 11, 10, 23, tzinfo=UTC))


def lake_of(settings: Settings) -> Lake:
    return Workspace.of(settings).lake


def test_a_line_is_exported_once(fresh: FreshLedger, machine: Machine) -> None:
    settings = fresh()
    ledger = open_ledger(settings, clock=machine, boot=machine.boot)
    lake = lake_of(settings)
    total = 0
    for _ in range(3):
        ledger.commit(ledger.reserve(charge("1.000000001")), billed_bytes=GIB + 1)
        total += export_lines(ledger, lake, run_id="run")
        assert export_lines(ledger, lake, run_id="run") == 0
    lines = ledger.lines()
    rows = lake.scan(SPEND).collect().sort("line")
    assert rows.height == total == len(lines)
    assert rows["spent_usd"].to_list() == [line.spent_usd for line in lines]
    assert rows["kind"].to_list() == [str(line.kind) for line in lines]
    assert rows["trade_date"].unique().to_list() == [datetime(2026, 11, 11).date()], "the evening's session"
    assert rows["booked_at"].to_list() == [line.booked_at for line in lines]


def test_a_lost_ledger_is_refused_and_restored_from_the_lake(tmp_path: Path, machine: Machine) -> None:
    settings = build_settings(data_dir=tmp_path)
    ledger = open_ledger(settings, clock=machine, boot=machine.boot)
    ledger.commit(ledger.reserve(charge("1.000000001")), billed_bytes=GIB)
    held = ledger.reserve(charge("2.5")).id
    export_lines(ledger, lake_of(settings), run_id="run")
    before, month = ledger.lines(), ledger.month()
    with pytest.raises(LedgerError, match="has lines already"):
        restore_ledger(settings)
    for file in settings.environment_dir.glob("ledger.sqlite*"):
        file.unlink()
    with pytest.raises(LedgerError, match=r"is missing.*nq budget restore"):
        open_ledger(settings, clock=machine, boot=machine.boot)

    assert restore_ledger(settings)[0] == len(before)
    again = open_ledger(settings, clock=machine, boot=machine.boot)
    assert again.lines() == [replace(line, boot=None, uptime_us=None) for line in before]
    assert again.month().remaining_usd == month.remaining_usd
    again.reconcile(held, Decimal("2.5"), "the usage page")
    assert export_lines(again, lake_of(settings), run_id="run") == 1


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Makes the address of a new database."""
    if request.param == "sqlite":
        return lambda: f"sqlite:///{tmp_path}/{uuid.uuid4().hex}.sqlite"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.new_database


def test_a_ledger_from_a_backup_gets_its_later_lines_back(
    address: Callable[[], str], tmp_path: Path, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    settings = build_settings(data_dir=tmp_path / "data", ledger_url=address())
    ledger, lake = open_ledger(settings, clock=machine, boot=machine.boot), lake_of(settings)
    held = ledger.reserve(charge("1"))
    export_lines(ledger, lake, run_id="run")
    backup, used = (settings.with_values(ledger_url=address()) for _ in range(2))
    assert restore_ledger(backup) == restore_ledger(used)
    Ledger(used, clock=machine, boot=machine.boot).trust_clock("a line of its own")

    machine.advance(minutes=1)
    ledger.commit(held, billed_bytes=GIB)
    ledger.reserve(charge("2"))
    export_lines(ledger, lake, run_id="run")
    for older in (backup, used):
        with pytest.raises(LedgerError, match=r"older than its copy.*nq budget restore"):
            open_ledger(older, clock=machine, boot=machine.boot)
    assert export_spend(backup, lake, run_id="run") == 0 and "older than its copy" in caplog.text
    with pytest.raises(LedgerError, match="since its backup"):
        restore_ledger(used)

    assert restore_ledger(backup)[0] == 2
    again = open_ledger(backup, clock=machine, boot=machine.boot)
    assert again.open_reservations() == ledger.open_reservations()
    assert again.month().remaining_usd == ledger.month().remaining_usd
    assert export_lines(again, lake, run_id="run") == 0
    again.reserve(charge("3"))
    assert export_lines(again, lake, run_id="run") == 1


def test_duckdb_shows_a_day_as_the_statement_does(tmp_path: Path, machine: Machine) -> None:
    settings = build_settings(data_dir=tmp_path)
    ledger = open_ledger(settings, clock=machine, boot=machine.boot)
    held = ledger.reserve(charge("2"))
    ledger.commit(ledger.reserve(charge("3", purpose="backfill")), billed_bytes=GIB)
    with pytest.raises(OverBudget):
        ledger.reserve(charge("99"))
    machine.advance(days=1)
    ledger.commit(ledger.reserve(charge(NANO)), billed_bytes=1)
    export_lines(ledger, lake_of(settings), run_id="run")

    columns = "day::varchar, purpose, spent_usd, reserved_usd, requests, refused, month_usd"
    daily = f"select {columns} from spend_daily order by all"
    with catalog.connect(Workspace.of(settings).lake, guarded=True) as connection:
        assert catalog.query(connection, daily).fetchall() == [
            ("2026-11-01", "plan", 179, 0, 0, 0, 179),
            ("2026-11-10", "backfill", 1, 0, 1, 0, 180),
            ("2026-11-10", "chains", 0, 2, 1, 1, 180),
            ("2026-11-11", "chains", NANO, 0, 1, 0, 180 + NANO),
        ]
    ledger.commit(held, billed_bytes=GIB // 2)
    export_lines(ledger, lake_of(settings), run_id="run")
    path = catalog.publish(Workspace.of(settings).lake)
    with duckdb.connect(path, read_only=True) as connection:
        ((spent, reserved),) = connection.execute(
            "select sum(spent_usd), sum(reserved_usd) from spend_daily"
        ).fetchall()
    month = ledger.month()
    assert (spent, reserved) == (month.spent_usd, 0) == (Decimal("180.500000001"), 0)


def test_an_unusable_ledger_is_only_a_warning_to_a_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = build_settings(data_dir=tmp_path)
    Workspace.of(settings).ledger.mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        assert export_spend(settings, lake_of(settings), run_id="run") == 0
    assert "was not updated" in caplog.text
