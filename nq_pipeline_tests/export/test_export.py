"""Exports to files that spreadsheets and scripts open."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from pathlib import Path

import openpyxl
import polars as pl
import pytest
from click.testing import CliRunner

import nq_pipeline
from nq_pipeline.cli import main
from nq_pipeline.errors import ExportError, ExportUsage
from nq_pipeline.export import export
from nq_pipeline.export.selection import DEFAULT
from nq_pipeline.settings import Settings
from nq_pipeline_tests.testing.export_lake import FORMULA, MONDAY, TUESDAY

SNAPSHOT = datetime(2025, 6, 10, 15, tzinfo=UTC)


def test_a_csv_of_a_moment_has_the_rows_of_its_snapshots(settings: Settings, tmp_path: Path) -> None:
    written = export(settings, "csv", tmp_path / "csv", as_of=SNAPSHOT)
    chain = pl.read_csv(tmp_path / "csv" / "option_chain_priced.csv")
    wanted = nq_pipeline.chain(SNAPSHOT, settings=settings)
    assert set(chain["contract_key"]) == set(wanted["contract_key"]) and chain.height == wanted.height
    assert written.rows == {table: pl.read_csv(tmp_path / "csv" / f"{table}.csv").height for table in DEFAULT}
    assert written.rows["gamma_levels"] == 1
    assert chain["implied_volatility"].count() > 0
    assert chain["snapshot_ts"].unique().to_list() == ["2025-06-10T15:00:00.000000+0000"]


def test_a_csv_of_trade_dates_has_the_rows_between_them(settings: Settings, tmp_path: Path) -> None:
    written = export(settings, "csv", tmp_path, first=MONDAY, last=MONDAY, tables=["trades"])
    assert written.rows == {"trades": 2}
    trades = pl.read_csv(tmp_path / "trades.csv")
    assert trades["price"].to_list() == [21_400.25, 21_400.5]
    assert export(settings, "csv", tmp_path, first=MONDAY, tables=["trades"]).rows == {"trades": 6}


def test_an_export_without_rows_has_a_header(settings: Settings, tmp_path: Path) -> None:
    assert export(settings, "csv", tmp_path, last=MONDAY, tables=["gaps"]).rows == {"gaps": 0}
    assert pl.read_csv(tmp_path / "gaps.csv").columns[:2] == ["gap_id", "revision"]


def test_a_vendors_formula_is_no_formula_in_a_csv(settings: Settings, tmp_path: Path) -> None:
    export(settings, "csv", tmp_path, first=date(2025, 6, 11), tables=["option_chain"])
    assert pl.read_csv(tmp_path / "option_chain.csv")["vendor_symbol"].to_list() == ["'" + FORMULA]


def test_a_vendors_formula_is_text_in_a_workbook(settings: Settings, tmp_path: Path) -> None:
    export(settings, "excel", tmp_path / "b.xlsx", first=date(2025, 6, 11), tables=["option_chain"])
    header, row = openpyxl.load_workbook(tmp_path / "b.xlsx")["option_chain"].iter_rows()
    (cell,) = (cell for name, cell in zip(header, row, strict=True) if name.value == "vendor_symbol")
    assert (cell.value, cell.data_type) == (FORMULA, "s")


def test_a_workbook_has_numbers_dates_and_what_columns_mean(settings: Settings, tmp_path: Path) -> None:
    written = export(settings, "excel", tmp_path / "chain.xlsx")
    book = openpyxl.load_workbook(tmp_path / "chain.xlsx")
    assert book.sheetnames == ["columns", *DEFAULT]
    header, *rows = book["option_chain_priced"].iter_rows(values_only=True)
    chain = pl.DataFrame(rows, schema=list(map(str, header)), orient="row", infer_schema_length=None)
    assert chain.height == written.rows["option_chain_priced"] == nq_pipeline.chain(settings=settings).height
    assert chain["trade_date"].unique().to_list() == [datetime(2025, 6, 10)]
    assert chain["snapshot_ts"].unique().to_list() == [SNAPSHOT.replace(tzinfo=None)]
    assert chain["bid"].dtype == pl.Float64 and "snapshot_ts_ns" not in chain.columns
    meanings = {row[1]: row[2] for row in book["columns"].iter_rows(values_only=True)}
    assert meanings["strike"] == "index points or dollars"
    assert "Synthetic" in str(book["columns"]["C2"].value)


def test_a_table_that_is_too_long_for_a_sheet_is_refused(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nq_pipeline.export.excel.SHEET_ROWS", 5)
    with pytest.raises(ExportError, match="more rows than an Excel sheet, 4"):
        export(settings, "excel", tmp_path / "b.xlsx", first=MONDAY, tables=["trades"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "options", "words", "is_usage"),
    [
        ("optopsy", {"as_of": SNAPSHOT}, "takes trade dates", True),
        ("openbb", {"first": MONDAY}, "use --as-of", True),
        ("openbb", {"tables": ["trades"]}, "leave out --table", True),
        ("csv", {"tables": ["nothing"]}, "not a table", True),
        ("csv", {"tables": ["trades"]}, "has no snapshots", True),
        ("csv", {"tables": ["contracts"], "first": MONDAY}, "has no trade dates", True),
        ("csv", {"first": date(2024, 1, 2), "last": date(2024, 1, 2)}, "no rows", False),
        ("csv", {"first": TUESDAY, "last": MONDAY}, "is before --from", True),
        ("csv", {"as_of": datetime(2025, 1, 2, tzinfo=UTC)}, "as of 2025-01-02.*nq report --list", False),
        ("csv", {"as_of": datetime(2025, 1, 2)}, "time zone", True),
        ("csv", {"as_of": SNAPSHOT, "first": TUESDAY}, "instead of --as-of", True),
    ],
)
def test_what_a_format_cannot_hold_is_refused(
    settings: Settings, tmp_path: Path, name: str, options: dict[str, object], words: str, is_usage: bool
) -> None:
    with pytest.raises(ExportError, match=words) as refused:
        export(settings, name, tmp_path / "to", **options)  # type: ignore[arg-type]
    assert isinstance(refused.value, ExportUsage) == is_usage


def test_a_file_is_not_taken_for_a_folder(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "chain.xlsx"
    file.touch()
    with pytest.raises(ExportError, match=r"chain\.xlsx is a file, but csv is a folder"):
        export(settings, "csv", file)
    with pytest.raises(ExportError, match="is a folder, but excel is an Excel workbook"):
        export(settings, "excel", tmp_path)


def test_the_command_says_what_it_wrote_and_left_out(settings: Settings, tmp_path: Path) -> None:
    environment = {"NQ_DATA_DIR": str(settings.data_dir), "NQ_NOW": "2025-06-10T15:00:00Z"}
    line = ["export", "nautilus", "--to", str(tmp_path / "catalog"), "--until", "2025-06-10"]
    done = CliRunner().invoke(main, line, env=environment)
    assert done.exit_code == 0, done.output
    assert "SANDBOX" in done.output and "trade_ticks: 4" in done.output
    assert "left out: 1 trades of other instruments" in done.output
    assert done.stderr == "", "progress is for terminals"
    for wrong in (["--as-of", "noon"], ["--table", "nothing"]):
        refused = CliRunner().invoke(main, ["export", "csv", "--to", str(tmp_path), *wrong], env=environment)
        assert refused.exit_code == 2, refused.output


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (["nautilus"], r"files of trade_ticks: 2, trade date 2025-06-10 \(2 of 3\)"),
        (
            ["csv", "--table", "trades", "--from", "2025-06-09"],
            r"trades: 6, trade date 2025-06-11 \(3 of 3\)",
        ),
    ],
)
def test_a_terminal_shows_the_progress(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: list[str], shown: str
) -> None:
    lines: list[str] = []
    monkeypatch.setattr("rich.status.Status.update", lambda _, line: lines.append(line))
    environment = {"NQ_DATA_DIR": str(settings.data_dir), "FORCE_COLOR": "1"}
    done = CliRunner().invoke(
        main, ["export", *line, "--until", "2025-06-11", "--to", str(tmp_path / "to")], env=environment
    )
    assert done.exit_code == 0, done.output
    assert any(re.fullmatch(shown, line) for line in lines), lines
