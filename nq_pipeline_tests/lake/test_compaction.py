"""Compaction: few files, the same rows at every moment, the same bytes every time."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import polars as pl
import pyarrow.parquet as pq
import pytest

from nq_pipeline.lake import catalog
from nq_pipeline.lake.compaction import select_merge
from nq_pipeline.lake.manifest import DataFile
from nq_pipeline.lake.parquet import ROW_GROUP_ROWS
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import SOURCE_CHAIN, USD
from nq_pipeline_tests.testing.lake_samples import AFTER, DAY, NOON, TICKS, chain, ticks


def contents(lake: Lake) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(lake.root.rglob("*")) if path.is_file()}


FORMATS = ("manifest", "delta")


def tick(i: int) -> pl.DataFrame:
    return ticks([(DAY, i % 7, NOON + i, i, float(i))])


def test_compacting_twice_changes_no_byte(lake: Lake) -> None:
    for i in range(4):
        lake.append(TICKS, tick(i), run_id="run")
    lake.compact(TICKS, DAY, now=AFTER)
    before = contents(lake)
    assert lake.compact(TICKS, DAY, now=AFTER) == 0
    assert contents(lake) == before


def test_a_file_a_second_never_makes_200_current_files() -> None:
    template = DataFile("", DAY, rows=1, bytes=1, level=0, since_min=0, since_max=0, schema_version=1)
    files: list[DataFile] = []
    most = 0
    for second in range(23 * 3_600):
        files.append(replace(template, path=str(second)))
        while group := select_merge(files, over=False):
            merged = replace(group[0], level=group[0].level + 1, rows=sum(file.rows for file in group))
            files = [*(file for file in files if file.level != merged.level - 1), merged]
        most = max(most, len(files))
    assert most < 200
    assert sum(file.rows for file in files) == 23 * 3_600


def test_a_large_merge_has_the_bytes_of_one_sorted_write(tmp_path: Path) -> None:
    """Three interleaved files of 400,000 rows, merged in slices, against the same rows in one append."""
    numbers = pl.int_range(400_000, eager=True)
    frame = pl.DataFrame(
        {
            "trade_date": pl.Series([DAY]).extend_constant(DAY, numbers.len() - 1),
            "instrument_id": numbers * 7_919 % 1_000,
            "ts_event": (numbers + NOON).cast(pl.Datetime("ns", "UTC")),
            "sequence": numbers,
            "price": numbers / 4,
        }
    )
    pieces, whole = Lake(tmp_path / "pieces"), Lake(tmp_path / "whole")
    for i in range(3):
        pieces.append(TICKS, frame.gather_every(3, i), run_id="run")
    pieces.compact(TICKS, DAY, now=AFTER)
    whole.append(TICKS, frame, run_id="run")
    (merged,), (written,) = (map(Path, one.files(TICKS)) for one in (pieces, whole))
    assert merged.read_bytes() == written.read_bytes()
    groups = pq.read_metadata(merged)
    assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [
        *[ROW_GROUP_ROWS] * 3,
        400_000 - 3 * ROW_GROUP_ROWS,
    ]


def test_garbage_collection_removes_what_dead_processes_left(lake: Lake) -> None:
    (path,) = map(Path, lake.append(TICKS, tick(0), run_id="run").files)
    orphan = path.with_name(path.name.replace("0", "1", 1))
    orphan.write_bytes(path.read_bytes())
    half = path.with_name(".staged.parquet.0123.tmp")
    half.write_bytes(b"PAR1")
    assert lake.collect_garbage() == 0
    assert orphan.exists() and half.exists()
    assert lake.collect_garbage(datetime.now(UTC) + timedelta(hours=2)) == 2
    assert not orphan.exists() and not half.exists()
    assert lake.scan(TICKS).collect().equals(tick(0))


def test_garbage_collection_survives_a_concurrent_rename(lake: Lake) -> None:
    (path,) = map(Path, lake.append(TICKS, tick(0), run_id="run").files)
    listed = path.with_name(".staged.parquet.0123.tmp")
    listed.symlink_to("put-in-place-since")  # a name that is found, and nothing is behind it
    assert lake.collect_garbage(datetime.now(UTC) + timedelta(hours=2)) == 0
    assert lake.scan(TICKS).collect().equals(tick(0))


def test_a_late_row_is_merged_into_the_closed_trade_date(lake: Lake) -> None:
    for i in (3, 1):
        lake.append(TICKS, tick(i), run_id="run")
    lake.compact(TICKS, DAY, now=AFTER)
    lake.append(TICKS, tick(2), run_id="run")
    lake.compact(TICKS, DAY, now=AFTER)
    assert len(lake.files(TICKS)) == 1
    assert lake.scan(TICKS).collect()["instrument_id"].to_list() == [1, 2, 3]


def test_files_of_an_older_schema_read_and_merge_with_nulls(lake: Lake) -> None:
    older = replace(TICKS, columns=TICKS.columns[:-1])
    newer = replace(TICKS, version=2)
    lake.append(older, tick(1).drop("price"), run_id="old")
    lake.append(newer, tick(2), run_id="new")
    expected = pl.concat([tick(1).with_columns(price=pl.lit(None, pl.Float64)), tick(2)])
    assert lake.scan(newer).sort("ts_event").collect().equals(expected)
    lake.compact(newer, DAY, now=AFTER)
    assert lake.scan(newer).collect().equals(expected)
    assert [file.schema_version for file in lake.manifest(newer).files] == [2]


def test_files_with_an_older_column_type_are_read_and_merged(lake: Lake) -> None:
    *others, price = TICKS.columns
    exact = replace(price, dtype=USD, was=price.dtype)
    newer = replace(TICKS, version=2, columns=(*others, exact))
    lake.append(TICKS, tick(1), run_id="old")
    assert lake.append(newer, pl.concat([tick(1), tick(2)]), run_id="new").rows == 1
    expected = pl.concat([tick(1), tick(2)]).cast({price.name: USD})
    assert lake.scan(newer).sort("ts_event").collect().equals(expected)
    lake.compact(newer, DAY, now=AFTER)
    assert lake.scan(newer).collect().equals(expected)


@pytest.mark.parametrize("days", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_counts_are_right_at_every_moment_of_many_compactions(
    days: int, lake: Lake, writer: Callable[..., subprocess.Popen[str]]
) -> None:
    for i in range(3):
        parts = [
            chain(SOURCE_CHAIN, snapshot=NOON + days * i + d, day=DAY + timedelta(days=d))
            for d in range(days)
        ]
        assert lake.append(SOURCE_CHAIN, pl.concat(parts), run_id="run").known == 0
    expected = 3 * 3 * days
    held = duckdb.connect(catalog.publish(lake), read_only=True)
    compactor = writer("compact", days)
    reads = 0
    while compactor.poll() is None:
        with catalog.connect(lake) as connection:
            assert connection.execute("SELECT count(*) FROM source_chain").fetchone() == (expected,)
        assert lake.scan(SOURCE_CHAIN).select(pl.len()).collect().item() == expected
        assert held.execute("SELECT count(*) FROM source_chain").fetchone() == (expected,)
        assert all(lake.manifest(SOURCE_CHAIN).rows == expected for _ in range(20))
        reads += 1
    assert compactor.returncode == 0
    assert reads > 0
    assert len(lake.files(SOURCE_CHAIN)) == days
    held.close()


@pytest.mark.slow
def test_counts_stay_right_during_long_appends_and_merges(
    lake: Lake, writer: Callable[..., subprocess.Popen[str]]
) -> None:
    """What two processes appended is whole at every read: never a part of a call, never a row twice."""
    processes = [writer("append", start, 600) for start in (0, 0)]
    seen = 0
    while any(process.poll() is None for process in processes):
        sizes = lake.scan(TICKS).group_by("sequence").len().collect()
        assert set(sizes["len"]) <= {40}
        assert sizes.height >= seen
        seen = sizes.height
    assert [process.returncode for process in processes] == [0, 0]
    assert lake.scan(TICKS).select(pl.len()).collect().item() == 600 * 40
