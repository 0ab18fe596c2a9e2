"""An Excel workbook: a sheet with the meaning of every column, and one sheet per table.

Text is written as text, so a formula in a vendor's answer is shown and not run. Excel has no time zones and
no nanoseconds: instants are in UTC, in milliseconds. Its numbers have 15 digits, so longer integers are text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import xlsxwriter
from polars import selectors

from nq_pipeline.errors import ExportError
from nq_pipeline.export import Exported
from nq_pipeline.export.selection import Selection, columns_of
from nq_pipeline.files import make_folder, rename_durably, temporary_for

SHEET_ROWS = 1_048_576
"""Rows of an Excel sheet, with its header."""
_EXACT = 10**15
_OPTIONS = {
    "constant_memory": True,  # rows go to a temporary file
    "strings_to_formulas": False,
    "strings_to_urls": False,
    "nan_inf_to_errors": True,
}


def write(selection: Selection, to: Path) -> Exported:
    """Write every table to a sheet of the workbook `to`, replacing it as a whole.

    Raises
    ------
    ExportError
        A table has more rows than a sheet.
    """
    make_folder(to.parent)
    with temporary_for(to) as temporary:
        with xlsxwriter.Workbook(temporary, _OPTIONS) as book:
            _write_meanings(book, selection)
            rows = {table: _write_table(book, selection, table) for table in selection.tables}
        rename_durably(temporary, to)
    return Exported(to, rows, {})


def _write_table(book: Any, selection: Selection, table: str) -> int:
    sheet, rows, styles = book.add_worksheet(table[:31]), 0, list[Any]()
    for number, batch in enumerate(selection.read(table)):
        frame = _cells(batch)
        if number == 0:
            styles = [_style(book, dtype) for dtype in frame.dtypes]
            sheet.set_column(0, frame.width - 1, 16)
            sheet.write_row(0, 0, frame.columns, book.add_format({"bold": True}))
            sheet.freeze_panes(1, 0)
        if rows + frame.height >= SHEET_ROWS:
            raise ExportError(
                f"{table} has more rows than an Excel sheet, {SHEET_ROWS - 1:,}; "
                "choose fewer trade dates, or export csv"
            )
        for row in frame.iter_rows():
            rows += 1
            for column, value in enumerate(row):
                if value is not None:
                    sheet.write(rows, column, value, styles[column])
    return rows


def _cells(frame: pl.DataFrame) -> pl.DataFrame:
    """The rows with the types that Excel has, without the columns of nanoseconds."""
    shown = frame.drop(selectors.ends_with("_ns"))
    integers = shown.select(selectors.by_dtype(pl.Int64, pl.UInt64))
    long = [column.name for column in integers if (column.abs() > _EXACT).any()]
    return shown.with_columns(
        selectors.datetime(time_zone="*").dt.replace_time_zone(None), pl.col(long).cast(pl.String)
    )


def _style(book: Any, dtype: pl.DataType) -> Any:
    if dtype == pl.Date:
        return book.add_format({"num_format": "yyyy-mm-dd"})
    return book.add_format({"num_format": "yyyy-mm-dd hh:mm:ss.000"}) if dtype == pl.Datetime else None


def _write_meanings(book: Any, selection: Selection) -> None:
    sheet, rows = book.add_worksheet("columns"), [("table", "column", "meaning")]
    if selection.environment == "sandbox":
        rows.append(("", "", "Synthetic data of the sandbox; no price is real."))
    rows += [
        (table, column.name, column.meaning) for table in selection.tables for column in columns_of(table)
    ]
    sheet.set_column(0, 1, 24)
    for at, row in enumerate(rows):
        sheet.write_row(at, 0, row)
