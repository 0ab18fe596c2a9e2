"""CSV files that a spreadsheet can open without running what a vendor wrote.

A spreadsheet takes text that begins with `=`, `+`, `-` or `@` for a formula. Such text gets an apostrophe in
front. Numbers are not text and stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import polars as pl
from polars import selectors

from nq_pipeline.export import Exported
from nq_pipeline.export.selection import Selection
from nq_pipeline.files import make_folder, rename_durably, temporary_for

_FORMULA = "^[=+\\-@\t\r\n＝＋－＠]"


def write(selection: Selection, to: Path) -> Exported:
    """Write `<table>.csv` for every table into the folder `to`."""
    make_folder(to)
    rows = {table: write_file(selection.read(table), to / f"{table}.csv") for table in selection.tables}
    return Exported(to, rows, {})


def write_file(frames: Iterable[pl.DataFrame], path: Path) -> int:
    """Write frames of the same columns as one CSV file, replacing it as a whole; returns the rows."""
    rows = 0
    with temporary_for(path) as temporary:
        with temporary.open("wb") as file:
            for number, frame in enumerate(frames):
                _defused(frame).write_csv(file, include_header=number == 0)
                rows += frame.height
        rename_durably(temporary, path)
    return rows


def _defused(frame: pl.DataFrame) -> pl.DataFrame:
    text = selectors.string()
    is_formula = text.str.contains(_FORMULA)
    return frame.with_columns(pl.when(is_formula).then("'" + text).otherwise(text).name.keep())
