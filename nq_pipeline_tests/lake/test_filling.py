"""Columns that older rows lack are filled; nothing else changes."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import date

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from nq_pipeline.errors import LakeError
from nq_pipeline.lake.filling import fill
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import Column
from nq_pipeline_tests.testing.lake_samples import DAY, NOON, TICKS, ticks

FORMATS = ["manifest", "delta"]
EARLIER = date(2025, 6, 30)
NEWER = replace(TICKS, version=2, columns=(*TICKS.columns, Column("size", pl.Int64(), "contracts")))
ROWS = ticks([(DAY, n, NOON + n, 0, float(n) if n % 2 else None) for n in range(10)])
OTHERS = ticks([(EARLIER, 1, NOON, 0, 5.0)])


def sizes(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.select(*NEWER.key, "trade_date", size=pl.col("instrument_id") * 100)


def test_only_missing_values_are_filled(lake: Lake) -> None:
    lake.append(TICKS, pl.concat([ROWS.head(4), OTHERS]), run_id="old")
    lake.append(NEWER, ROWS.slice(4, 3).with_columns(size=pl.lit(7, pl.Int64)), run_id="new")
    lake.append(TICKS, ROWS.tail(3), run_id="old")
    given = sizes(ROWS.head(9)).with_columns(price=pl.lit(99.0))  # nothing for the last row
    assert fill(lake, NEWER, given, run_id="filled") == 10
    stored = lake.scan(NEWER, [DAY]).sort("instrument_id").collect()
    expected_price = [float(n) if n % 2 else 99.0 for n in range(9)] + [9.0]
    assert stored["size"].to_list() == [0, 100, 200, 300, 7, 7, 7, 700, 800, None]
    assert stored["price"].to_list() == expected_price
    (file,) = lake.manifest(NEWER).of({DAY})
    assert (file.rows, file.schema_version) == (10, 2)
    assert lake.table_files(NEWER).read_runs([file]) == ["filled", "new", "old"]
    assert_frame_equal(lake.scan(TICKS, [EARLIER]).collect(), OTHERS)


def test_a_second_fill_changes_nothing(lake: Lake) -> None:
    lake.append(TICKS, ROWS, run_id="old")
    fill(lake, NEWER, sizes(ROWS), run_id="filled")
    stored = lake.scan(NEWER).collect()
    fill(lake, NEWER, sizes(ROWS).with_columns(size=pl.lit(1, pl.Int64)), run_id="again")
    assert_frame_equal(lake.scan(NEWER).collect(), stored)


def test_no_row_is_added(lake: Lake) -> None:
    assert fill(lake, NEWER, sizes(ROWS), run_id="filled") == 0
    lake.append(TICKS, ROWS.head(1), run_id="old")
    assert fill(lake, NEWER, sizes(ROWS), run_id="filled") == 1
    assert lake.scan(NEWER).collect().height == 1


def test_a_damaged_file_stays_as_it_is(lake: Lake) -> None:
    lake.append(TICKS, ROWS, run_id="old")
    version = lake.manifest(TICKS).version
    (path,) = lake.files(TICKS)
    os.truncate(path, 100)
    with pytest.raises(LakeError, match="bytes"):
        fill(lake, NEWER, sizes(ROWS), run_id="filled")
    assert lake.manifest(TICKS).version == version
