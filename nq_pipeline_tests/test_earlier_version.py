"""What version 0.1.0 wrote, later versions read: lake, archive, capture log and ledger.

`earlier/0.1.0.tar.xz` was written by 0.1.0 itself: a run on one series, two dates of `ohlcv-1d` bought, and
a short capture that lost its connection once. Its caches and the DuckDB catalog are left out.
"""

from __future__ import annotations

import json
import tarfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from nq_pipeline.capture.log.reader import tail
from nq_pipeline.cli import main

ARCHIVE = Path(__file__).parent / "earlier" / "0.1.0.tar.xz"
NOW = "2025-06-10T15:00:00Z"
ROWS = {
    "answers": 4,
    "backfills": 2,
    "decisions": 4,
    "entitlements": 4,
    "fetches": 16,
    "gamma_levels": 1,
    "gaps": 4,
    "iv_smile": 383,
    "ohlcv_1d": 7180,
    "option_chain": 964,
    "option_pricing": 964,
    "series_metrics": 1,
    "sessions": 2,
    "source_chain": 3162,
    "spend": 19,
    "strike_profile": 482,
    "trades": 90,
}
SUMS = """
    select source, count(*) as contracts, round(sum(bid), 2) as bids,
           sum(open_interest)::bigint as open_interest
    from source_chain group by source order by source
"""
CHAINS = [
    {"source": "barchart", "contracts": 964, "bids": 599172.55, "open_interest": 3560},
    {"source": "databento", "contracts": 964, "bids": 599174.6, "open_interest": 3560},
    {"source": "polygon", "contracts": 270, "bids": 188486.75, "open_interest": 1972},
    {"source": "tradovate", "contracts": 964, "bids": 44374.0, "open_interest": 706},
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


def nq(data: Path, *words: str) -> Any:
    environment = {"NQ_DATA_DIR": str(data), "NQ_NOW": NOW}
    done = CliRunner().invoke(main, [*words, "--json"], env=environment)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_every_table_is_read(data: Path) -> None:
    counts = " union all ".join(f"select '{table}' as table, count(*) as rows from {table}" for table in ROWS)
    assert {row["table"]: row["rows"] for row in nq(data, "sql", counts)} == ROWS


def test_the_values_are_as_they_were_written(data: Path) -> None:
    assert nq(data, "sql", SUMS) == CHAINS


def test_columns_added_since_are_filled(data: Path) -> None:
    environment = {"NQ_DATA_DIR": str(data), "NQ_NOW": NOW}
    assert CliRunner().invoke(main, ["lake", "recompute"], env=environment).exit_code == 0
    counts = "select count(vega)::int as vega, count(volga)::int as volga from option_pricing"
    assert nq(data, "sql", counts) == [{"vega": 837, "volga": 837}]
    history = "select gamma_regime, call_wall, put_wall, round(skew_slope, 3) as skew from market_history"
    known = {"gamma_regime": "negative", "call_wall": 22400.0, "put_wall": 23000.0, "skew": -0.768}
    assert nq(data, "sql", history) == [known]


def test_the_ledger_keeps_its_lines(data: Path) -> None:
    month = nq(data, "budget", "--month", "2026-11")
    assert Decimal(month["metered_usd"]) == Decimal("0.074995593")
    assert month["by_purpose"]["backfill"]["requests"] == 2


def test_the_archive_gives_the_same_chain_again(data: Path) -> None:
    again = nq(data, "run", "--from-raw", "latest")
    contracts = {source: answer["contracts"] for source, answer in again["sources"].items()}
    assert contracts == {row["source"]: row["contracts"] for row in CHAINS}


def test_dates_bought_are_not_bought_again(data: Path) -> None:
    words = ("--schema", "ohlcv-1d", "--from", "2025-06-06", "--to", "2025-06-09", "--yes")
    bought = nq(data, "backfill", *words)
    assert bought["cost_usd"] == "0"
    assert [day["already"] for day in bought["days"]] == [True, True]


def test_the_capture_log_holds_what_was_published(data: Path) -> None:
    logged = sum(len(block.frame.array(0)) for block in tail(data / "sandbox" / "capture" / "GLBX.MDP3"))
    (row,) = nq(data, "sql", "select count(*) as trades from trades")
    assert logged >= row["trades"] == ROWS["trades"]
    (gap,) = nq(data, "sql", "select arg_max(state, revision) as state from gaps group by gap_id")
    assert gap["state"] == "verified"
