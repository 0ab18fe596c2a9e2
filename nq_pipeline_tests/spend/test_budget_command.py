"""`nq budget`, as it is typed."""

from __future__ import annotations

import json
import sqlite3
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from nq_pipeline import cli
from nq_pipeline.configuration import load
from nq_pipeline.lake import catalog
from nq_pipeline.spend.ledger import open_ledger
from nq_pipeline.spend.money import GIB
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.ledger_machine import charge


def nq(*words: str) -> Result:
    return CliRunner().invoke(cli.main, words)


@pytest.fixture
def held() -> str:
    """The id of a reservation left open, beside a dollar that was paid."""
    ledger = open_ledger(load())
    ledger.commit(ledger.reserve(charge("1")), billed_bytes=GIB)
    return ledger.reserve(charge("2.5")).id


def budget() -> dict[str, Any]:
    done = nq("budget", "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_it_shows_the_month_in_words_and_as_json(held: str) -> None:
    done = nq("budget")
    assert done.exit_code == 0
    assert done.stdout.startswith("SANDBOX") and "Databento Standard" in done.stdout and held in done.stdout
    shown = budget()
    assert Decimal(shown["metered_usd"]) == 1 and Decimal(shown["reserved_usd"]) == Decimal("2.5")
    assert shown["open"][0]["id"] == held


def test_it_works_before_anything_was_spent() -> None:
    assert nq("budget").exit_code == 0
    assert Decimal(budget()["total_usd"]) == 179


def test_it_reconciles_and_brings_the_lake_up_to_date(held: str) -> None:
    done = nq("budget", "reconcile", held, "--usd", "0.75", "--reason", "usage page")
    assert done.exit_code == 0 and f"Booked: {held} cost $0.75." in done.stdout
    assert f"{held} reconciled by $0.75: usage page" in nq("budget").stdout
    shown = budget()
    assert Decimal(shown["metered_usd"]) == Decimal("1.75") and shown["open"] == []
    assert [change["reason"] for change in shown["changes"]] == ["usage page"]
    with catalog.connect(Workspace.of(load()).lake) as connection:
        found = connection.execute("select spent_usd, reason from spend where kind = 'reconciled'").fetchall()
    assert found == [(Decimal("0.75"), "usage page")]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["reconcile", "nowhere", "--usd", "1", "--reason", "r"], 1, "there is no reservation nowhere"),
        (["reconcile", "nowhere", "--usd", "one", "--reason", "r"], 2, "write an amount like 5 or 1.25"),
        (["reconcile", "nowhere", "--usd", "NaN", "--reason", "r"], 2, "write an amount like 5 or 1.25"),
        (["trust-clock", "--reason", " "], 1, "reason"),
        (["--month", "2026-13"], 2, "write a month like 2026-10"),
    ],
)
def test_what_makes_no_sense_is_one_sentence_and_an_exit_code(words: list[str], code: int, said: str) -> None:
    done = nq("budget", *words)
    assert done.exit_code == code and said in done.stderr
    assert "Traceback" not in done.output


def test_a_changed_budget_shows_with_its_reason(held: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NQ_BUDGET_DAILY_USD", "4")
    monkeypatch.setenv("NQ_BUDGET_REASON", "a quiet month")
    out = nq("budget").stdout
    assert "NQ_BUDGET_DAILY_USD is 4: a quiet month (was 10)" in out
    assert "WARNING: 88% of today's budget is used" in out


def test_a_broken_ledger_is_one_sentence(held: str) -> None:
    path = Workspace.of(load()).ledger
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE nq_spend_lines")
    done = nq("budget")
    assert done.exit_code == 1 and "cannot be used: no such table" in done.stderr


def test_a_lost_ledger_is_restored_from_the_lake(held: str) -> None:
    assert nq("budget", "reconcile", held, "--usd", "0.75", "--reason", "usage page").exit_code == 0
    for file in Workspace.of(load()).ledger.parent.glob("ledger.sqlite*"):
        file.unlink()
    done = nq("budget", "restore")
    assert done.exit_code == 0 and "Later bookings are missing" in done.stdout, done.output
    assert Decimal(budget()["metered_usd"]) == Decimal("1.75")


def test_there_is_nothing_to_restore_without_a_copy() -> None:
    done = nq("budget", "restore")
    assert done.exit_code == 1 and "nothing to restore" in done.stderr


def test_another_month_has_none_of_it(held: str, tmp_path: Path) -> None:
    done = nq("budget", "--month", "2020-01", "--json")
    assert Decimal(json.loads(done.stdout)["total_usd"]) == 0
    text = nq("budget", "--month", "2020-01").stdout
    assert "January 2020 (UTC)" in text and "Remaining" not in text


def test_the_clock_is_trusted_on_a_persons_word() -> None:
    done = nq("budget", "trust-clock", "--reason", "NTP came late")
    assert done.exit_code == 0 and "Budgets count as of" in done.stdout
    assert [change["kind"] for change in budget()["changes"]] == ["clock"]
