"""`nq backfill`: says what it costs, asks before it spends, and goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from nq_pipeline import cli
from nq_pipeline.cli import exit_codes
from nq_pipeline_tests.testing.backfill_vendor import NOW, Vendor, vendor
from nq_pipeline_tests.testing.ledger_machine import catalog_has_the_ledger

DAYS = ("--schema", "statistics", "--from", "2025-06-06", "--to", "2025-06-09")


@pytest.fixture
def databento(data: Path) -> Iterator[Vendor]:
    with vendor(data) as served:
        yield served


def nq(databento: Vendor, *words: str, answer: str | None = None, **settings: str) -> Result:
    environment = {
        "NQ_ENVIRONMENT": "live", "NQ_DATA_DIR": str(databento.data_dir), "NQ_NOW": NOW,
        "NQ_DATABENTO_URL": databento.server.url, "DATABENTO_API_KEY": "db-command",
        "NQ_BACKFILL_SYMBOLS": "Q2B.OPT",
        "NQ_HTTP_TIMEOUT_S": "120", **settings,  # a busy machine is no fault of the vendor
    }  # fmt: skip
    return CliRunner().invoke(cli.main, ["backfill", *words], env=environment, input=answer)


def test_a_dry_run_prints_the_price_of_each_day_and_buys_nothing(databento: Vendor) -> None:
    shown = nq(databento, *DAYS, "--dry-run")
    assert shown.exit_code == exit_codes.OK, shown.output
    assert "2025-06-06  statistics  $0.00" in shown.output and "2025-06-09  statistics" in shown.output
    assert "at the vendor's prices of 20" in shown.output and "Nothing was bought" in shown.output
    printed = json.loads(nq(databento, *DAYS, "--dry-run", "--json").stdout)
    assert [day["trade_date"] for day in printed["days"]] == ["2025-06-06", "2025-06-09"]
    assert float(printed["total_usd"]) > 0 and printed["refusal"] is None
    assert not databento.metered


def test_the_answer_no_buys_nothing(databento: Vendor) -> None:
    shown = nq(databento, *DAYS, "--max-usd", "1", answer="n\n")
    assert (
        shown.exit_code == exit_codes.OK
        and "Buy it?" in shown.output
        and "Nothing was bought" in shown.output
    )
    assert not databento.metered


def test_the_same_command_again_buys_nothing(databento: Vendor) -> None:
    shown = nq(databento, *DAYS, "--max-usd", "1", "--yes")
    assert shown.exit_code == exit_codes.OK, shown.output
    assert shown.output.count("complete:") == 2 and len(databento.metered) == 2
    assert catalog_has_the_ledger(databento.settings())
    printed = json.loads(nq(databento, *DAYS, "--max-usd", "1", "--yes", "--json").stdout)
    assert [day["already"] for day in printed["days"]] == [True, True] and float(printed["cost_usd"]) == 0
    assert len(databento.metered) == 2


def test_without_an_amount_nothing_that_costs_is_bought(databento: Vendor) -> None:
    shown = nq(databento, *DAYS, "--yes")
    assert shown.exit_code == exit_codes.UNHEALTHY
    assert shown.output.count("over_budget") == 2 and "--max-usd" in shown.output
    assert not databento.metered


def test_a_dry_run_names_what_the_budget_refuses(databento: Vendor) -> None:
    shown = nq(databento, *DAYS, "--dry-run", NQ_BUDGET_DAILY_USD="0")
    assert "Not all of it can be bought" in shown.output and "NQ_BUDGET_DAILY_USD" in shown.output


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((*DAYS, "--json"), "--yes or --dry-run"),
        ((*DAYS, "--max-usd", "much"), "write an amount"),
        ((*DAYS, "--max-usd", "NaN"), "write an amount"),
        (("--schema", "status", *DAYS[2:], "--dry-run"), "cannot be backfilled"),
        (("--schema", "trades", "--from", "2025-06-07", "--to", "2025-06-08", "--dry-run"), "no trade date"),
        (
            ("--schema", "trades", "--from", "2018-12-28", "--to", "2019-01-03", "--dry-run"),
            "give a day from",
        ),
    ],
)
def test_a_usage_error_has_exit_code_2(words: tuple[str, ...], says: str, databento: Vendor) -> None:
    shown = nq(databento, *words)
    assert shown.exit_code == exit_codes.USAGE and says in shown.output
    assert not databento.metered
