"""`nq report --list` and `--snapshot`: which snapshots there are, and which one is reported."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner, Result

from nq_pipeline import cli
from nq_pipeline.cli import exit_codes
from nq_pipeline.lake.tables import DECISIONS
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.report_lake import NOW, store_snapshot

TIMES = ("2025-06-09T20:30:00Z", "2025-06-10T14:55:00Z", NOW)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data_dir = tmp_path_factory.mktemp("data")
    for now in TIMES:
        store_snapshot(data_dir, now=now)
    return data_dir


def report(data_dir: Path, *words: str) -> Result:
    return CliRunner().invoke(cli.main, ["report", *words], env={"NQ_DATA_DIR": str(data_dir), "NQ_NOW": NOW})


def test_list_shows_every_snapshot_newest_first(lake: Path) -> None:
    result = report(lake, "--list")
    assert result.exit_code == exit_codes.OK, result.output
    lines = result.stdout.splitlines()[1:]
    assert [line.split()[0] for line in lines] == list(reversed(TIMES))
    assert "Tue 10 Jun 10:00 CT  trade date 2025-06-10" in lines[0]
    assert lines[0].endswith("contracts in 4 series from tradovate")


def test_list_names_the_vendor_that_the_last_run_chose(tmp_path: Path) -> None:
    settings, snapshot = store_snapshot(tmp_path)
    series = pl.col("series") != snapshot.decisions["series"].max()
    later = snapshot.decisions.filter("won", series).with_columns(
        run_id=pl.lit("later"),
        decided_at=pl.col("decided_at") + pl.duration(minutes=1),
        source=pl.lit("polygon"),
        contracts=pl.lit(1, pl.Int64),
    )
    Workspace.of(settings).lake.append(DECISIONS, later, run_id="later")
    lines = report(tmp_path, "--list").stdout.splitlines()[1:]
    assert len(lines) == 1 and lines[0].endswith("contracts in 4 series from polygon, tradovate")


def test_list_can_be_of_one_trade_date(lake: Path) -> None:
    lines = report(lake, "--list", "--snapshot", "2025-06-09").stdout.splitlines()[1:]
    assert [line.split()[0] for line in lines] == [TIMES[0]]


def test_an_empty_list_says_so(lake: Path) -> None:
    result = report(lake, "--list", "--snapshot", "2025-06-08")
    assert result.exit_code == exit_codes.OK
    assert "no snapshots of trade date 2025-06-08" in result.stderr


@pytest.mark.parametrize(
    ("snapshot", "page"),
    [
        ("2025-06-09", "2025-06-09T20-30-00Z.html"),
        ("2025-06-10", "2025-06-10T15-00-00Z.html"),
        ("2025-06-10T14:58:00Z", "2025-06-10T14-55-00Z.html"),
    ],
)
def test_a_date_or_an_instant_chooses_the_snapshot(
    lake: Path, snapshot: str, page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nq_pipeline.charts.render.vega_embed", lambda folder: "")
    monkeypatch.setattr("nq_pipeline.report.page.html", lambda facts, vega_embed: "a page")
    result = report(lake, "--snapshot", snapshot, "--no-open")
    assert result.exit_code == exit_codes.OK, result.output
    assert f"/{page};" in result.stdout


@pytest.mark.parametrize("snapshot", ["2025-06-06", "2025-06-06T15:00:00Z"])
def test_a_moment_without_a_chain_says_how_to_find_one(lake: Path, snapshot: str) -> None:
    result = report(lake, "--snapshot", snapshot, "--no-open")
    assert result.exit_code != exit_codes.OK
    assert "2025-06-06" in result.stderr and "nq report --list" in result.stderr


@pytest.mark.parametrize(
    "words", [["--snapshot", "2025-06-10 15:00"], ["--snapshot", "Tuesday"], ["--list", "--snapshot", NOW]]
)
def test_another_form_is_a_usage_error(lake: Path, words: list[str]) -> None:
    result = report(lake, *words)
    assert result.exit_code == exit_codes.USAGE
    assert "2025-06-10" in result.stderr
