"""Appending: idempotent, durable, sorted, partitioned by trade date, refusing what does not fit."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import duckdb
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nq_pipeline.clock import NS_PER_S
from nq_pipeline.errors import LakeError
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import DECISIONS, Column, conform
from nq_pipeline_tests.testing.lake_samples import DAY, NOON, TICKS, decision, ticks
from nq_pipeline_tests.testing.lake_writer import ROWS_PER_CALL, call


def test_an_append_that_overlaps_adds_only_what_is_new(lake: Lake) -> None:
    old, new = (DAY, 1, NOON, 0, 1.0), (DAY, 2, NOON, 0, 2.0)
    lake.append(TICKS, ticks([old]), run_id="one")
    added = lake.append(TICKS, ticks([new, old, new]), run_id="two")
    assert (added.rows, added.known) == (1, 2)
    assert lake.scan(TICKS).collect().sort("instrument_id").equals(ticks([old, new]))


def test_rows_one_nanosecond_apart_stay_different(lake: Lake) -> None:
    rows = [(DAY, 1, NOON + i, 0, float(i)) for i in (1, 999, 1000, 1001)]
    for row in rows:
        assert lake.append(TICKS, ticks([row]), run_id="run").rows == 1
    assert lake.append(TICKS, ticks(rows), run_id="again").rows == 0
    assert lake.scan(TICKS).sort("ts_event").collect().equals(ticks(rows))


def test_a_key_without_an_instant_is_unique_in_its_trade_date(lake: Lake) -> None:
    def frame(decided_at: int) -> pl.DataFrame:
        return conform(DECISIONS, pl.DataFrame([decision(decided_at=decided_at, snapshot=NOON)]))

    assert lake.append(DECISIONS, frame(NOON), run_id="run").rows == 1
    assert lake.append(DECISIONS, frame(NOON + 3_600 * NS_PER_S), run_id="run").rows == 0


def test_an_append_of_several_trade_dates_is_one_version(lake: Lake) -> None:
    days = [DAY + timedelta(days=i) for i in range(3)]
    added = lake.append(TICKS, ticks([(day, 1, NOON, i, 0.0) for i, day in enumerate(days)]), run_id="run")
    assert added.version == 1
    assert [Path(path).parent.name for path in added.files] == [f"trade_date={day}" for day in days]
    assert lake.scan(TICKS, [days[1]]).collect()["trade_date"].to_list() == [days[1]]


def test_a_footer_names_table_version_and_run(lake: Lake) -> None:
    rows = [(DAY, i % 3, NOON + i, i, None) for i in range(100)]
    (path,) = map(Path, lake.append(TICKS, ticks(rows[::-1]), run_id="run-7").files)
    file = pq.ParquetFile(path)
    frame = pl.read_parquet(path)
    assert frame.equals(frame.sort(TICKS.order))
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    footer = file.schema_arrow.metadata
    assert (footer[b"nq.table"], footer[b"nq.schema_version"]) == (b"ticks", b"1")
    assert footer[b"nq.runs"] == b'["run-7"]'
    assert not file.schema_arrow.field("ts_event").nullable
    assert file.schema_arrow.field("price").nullable


@given(st.lists(st.none() | st.sampled_from(["é", "b", "", "c"]), min_size=1), st.sampled_from([0, 300]))
def test_text_that_comes_as_categories_gives_the_same_file(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str | None], unused: int
) -> None:
    table = replace(TICKS, columns=(*TICKS.columns, Column("note", pl.String(), "few texts")))
    frame = ticks([(DAY, 1, NOON, i, None) for i in range(len(texts))])
    plain = pl.Series("note", texts, pl.String)
    files: list[Path] = []
    for note in (plain, plain.cast(pl.Enum(["c", *map(str, range(unused)), "b", "", "é"]))):
        lake = Lake(tmp_path_factory.mktemp("lake"))
        files += map(Path, lake.append(table, frame.with_columns(note), run_id="run").files)
        assert lake.scan(table).collect()["note"].to_list() == texts
    assert files[0].read_bytes() == files[1].read_bytes()


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 3), st.integers(0, 3))))
def test_a_file_is_sorted_and_has_each_key_once(
    tmp_path_factory: pytest.TempPathFactory, keys: list[tuple[int, int, int]]
) -> None:
    rows = [(DAY, i, NOON + at, number, float(row)) for row, (i, at, number) in enumerate(keys)]
    for order in (rows, sorted(rows)):
        lake = Lake(tmp_path_factory.mktemp("lake"))
        added = lake.append(TICKS, ticks(order), run_id="run")
        assert (added.rows, added.known) == (len(set(keys)), len(keys) - len(set(keys)))
        first = {row[1:4]: row for row in reversed(order)}
        assert lake.scan(TICKS).collect().equals(ticks([first[key] for key in sorted(first)]))


def test_plain_readers_find_the_trade_date_in_the_path(lake: Lake) -> None:
    lake.append(TICKS, ticks([(DAY, 1, NOON, 0, 0.5)]), run_id="run")
    folder = lake.folder(TICKS)
    assert pl.scan_parquet(folder / "*" / "*.parquet", hive_partitioning=True).collect().item(
        0, "trade_date"
    ) == date(2025, 7, 1)
    assert "trade_date" in pq.read_table(folder, ignore_prefixes=["manifest", "."]).schema.names
    with duckdb.connect() as connection:
        row = connection.execute(f"SELECT trade_date FROM '{folder}/*/*.parquet'").fetchone()
    assert row == (DAY,)


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (ticks([(DAY, 1, NOON, 0, 0.5)]).with_columns(colour=pl.lit("red")), "colour"),
        (ticks([(DAY, 1, NOON, 0, 0.5)]).drop("sequence"), "sequence"),
        (ticks([(DAY, 1, NOON, 0, 0.5)]).with_columns(sequence=pl.lit(None)), "nulls"),
        (ticks([(DAY, 1, NOON, 0, 0.5)]).with_columns(price=pl.lit("dear")), "types"),
    ],
    ids=["unknown column", "missing column", "null key", "wrong type"],
)
def test_rows_that_do_not_fit_the_table_are_refused(lake: Lake, frame: pl.DataFrame, said: str) -> None:
    with pytest.raises(LakeError, match=said):
        lake.append(TICKS, frame, run_id="run")
    assert lake.manifest(TICKS).version == 0


def test_a_nullable_column_may_be_missing(lake: Lake) -> None:
    lake.append(TICKS, ticks([(DAY, 1, NOON, 0, 0.5)]).drop("price"), run_id="run")
    assert lake.scan(TICKS).collect()["price"].to_list() == [None]


def test_concurrent_appends_of_the_same_rows_write_each_once(lake: Lake, writer) -> None:  # type: ignore[no-untyped-def]
    calls = 12
    processes = [writer("append", start, calls) for start in (0, 4)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    rows = lake.scan(TICKS).collect()
    assert rows.height == calls * ROWS_PER_CALL
    assert rows.sort(TICKS.order).equals(pl.concat(call(i) for i in range(calls)).sort(TICKS.order))


def test_a_damaged_manifest_is_one_clear_error(lake: Lake) -> None:
    lake.append(TICKS, ticks([(DAY, 1, NOON, 0, 0.5)]), run_id="run")
    (lake.folder(TICKS) / "manifest.json").write_text('{"table": "ticks"')
    with pytest.raises(LakeError, match=r"manifest .* is damaged"):
        lake.scan(TICKS)
