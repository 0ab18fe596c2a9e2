"""What only a Delta table has: its log, what other engines read, and what a power cut leaves."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import deltalake
import duckdb
import polars as pl
import pytest

from nq_pipeline.errors import LakeError
from nq_pipeline.files import sync
from nq_pipeline.lake import catalog
from nq_pipeline.lake.delta.files import CHECKPOINT_EVERY, LOG
from nq_pipeline.lake.objects import LocalObjects
from nq_pipeline.lake.repair import find_damage, repair
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import SOURCE_CHAIN, TABLES
from nq_pipeline_tests.testing.lake_samples import AFTER, DAY, NOON, TICKS, chain, ticks

LATER = datetime(2100, 1, 1, tzinfo=UTC)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "sandbox" / "lake", [TICKS, *TABLES.values()], delta=True)


def tick(number: int) -> pl.DataFrame:
    return ticks([(DAY, number, NOON + number * 1_000 + 1, number, 0.25 * number)])


def fill(lake: Lake, number: int) -> pl.DataFrame:
    for i in range(number):
        lake.append(TICKS, tick(i), run_id="run")
    return pl.concat(map(tick, range(number)))


def log_of(lake: Lake) -> Path:
    return lake.folder(TICKS) / LOG


def commits(lake: Lake) -> list[Path]:
    return sorted(path for path in log_of(lake).iterdir() if path.suffix == ".json")


def rows(lake: Lake) -> pl.DataFrame:
    return lake.scan(TICKS).sort(TICKS.total_order).collect()


# ── other engines ───────────────────────────────────────────────────────────────────────────────


def test_other_engines_read_every_cell(lake: Lake) -> None:
    expected = fill(lake, CHECKPOINT_EVERY + 5)
    lake.compact(TICKS, DAY, now=AFTER)
    lake.append(TICKS, tick(99), run_id="run")
    expected = pl.concat([expected, tick(99)])
    shown = expected.select(
        "trade_date",
        "instrument_id",
        ts_event=pl.col("ts_event").cast(pl.Datetime("us", "UTC")),
        ts_event_ns=pl.col("ts_event").to_physical(),
        sequence="sequence",
        price="price",
    )
    place = str(lake.folder(TICKS))
    by_polars = pl.scan_delta(place).sort("ts_event_ns").collect()
    assert by_polars.select(shown.columns).equals(shown)
    table = deltalake.DeltaTable(place)
    by_library = pl.DataFrame(
        deltalake.QueryBuilder().register("ticks", table).execute("select * from ticks")
    )
    assert by_library.sort("ts_event_ns").select(shown.columns).equals(shown)
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        files = table.file_uris()
        sql = f"SELECT * FROM read_parquet({files}, hive_partitioning = true) ORDER BY ts_event_ns"
        by_duckdb = connection.sql(sql).pl()
    assert by_duckdb.select(shown.columns).cast(shown.schema).equals(shown)


def test_the_table_says_what_it_is(lake: Lake) -> None:
    lake.append(SOURCE_CHAIN, chain(SOURCE_CHAIN, snapshot=NOON), run_id="run")
    table = deltalake.DeltaTable(str(lake.folder(SOURCE_CHAIN)))
    assert table.metadata().description == SOURCE_CHAIN.meaning
    assert table.metadata().partition_columns == ["trade_date"]
    types = {field.name: field for field in table.schema().fields}
    assert types["snapshot_ts"].type == deltalake.schema.PrimitiveType("timestamp")
    assert types["snapshot_ts_ns"].type == deltalake.schema.PrimitiveType("long")
    assert not types["snapshot_ts_ns"].nullable and types["bid"].nullable
    assert types["strike"].metadata["comment"]


def test_a_commit_of_another_writer_is_read(lake: Lake) -> None:
    fill(lake, 3)
    deltalake.DeltaTable(str(lake.folder(TICKS))).optimize.compact()
    assert len(lake.files(TICKS)) == 1
    assert rows(lake).height == 3
    assert lake.append(TICKS, tick(1), run_id="again").rows == 0
    assert lake.append(TICKS, tick(4), run_id="new").rows == 1


def test_a_table_with_features_it_cannot_write_is_refused(lake: Lake) -> None:
    fill(lake, 1)
    feature = deltalake.TableFeatures.DeletionVectors
    other = deltalake.DeltaTable(str(lake.folder(TICKS)))
    other.alter.add_feature(feature, allow_protocol_versions_increase=True)
    with pytest.raises(LakeError, match="features"):
        lake.append(TICKS, tick(2), run_id="run")


def test_the_log_stays_short(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(lake, 3 * CHECKPOINT_EVERY)
    old = datetime.now(UTC) - timedelta(hours=3)
    for path in log_of(lake).iterdir():
        os.utime(path, (old.timestamp(), old.timestamp()))
    lake.collect_garbage()
    assert len(commits(lake)) <= CHECKPOINT_EVERY
    assert rows(lake).height == 3 * CHECKPOINT_EVERY
    fresh = Lake(lake.root.resolve(), [TICKS])
    assert fresh.append(TICKS, tick(999), run_id="run").rows == 1


# ── power cuts and damage ───────────────────────────────────────────────────────────────────────


def test_files_are_durable_before_the_commit_names_them(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(lake, 1)
    synced = list[str]()

    def note(path: Path) -> None:
        sync(path)
        synced.append("data" if "parquet" in path.name else "log" if LOG in str(path) else "folder")

    monkeypatch.setattr("nq_pipeline.files.sync", note)
    lake.append(TICKS, tick(7), run_id="run")
    assert synced == ["data", "folder", "log", "log"], "the file, its folder, the commit, the log's folder"


@pytest.mark.parametrize(
    "spoil",
    [lambda path: os.truncate(path, 0), lambda path: os.truncate(path, path.stat().st_size // 2)],
    ids=["empty", "torn"],
)
def test_a_torn_last_commit_is_cut(lake: Lake, spoil: Callable[[Path], None]) -> None:
    fill(lake, 3)
    spoil(commits(lake)[-1])
    later = Lake(lake.root / ".." / "lake", [TICKS])  # as another process, which has no table open
    assert rows(later).equals(pl.concat([tick(0), tick(1)]))
    assert later.append(TICKS, tick(2), run_id="again").rows == 1
    assert rows(later).equals(pl.concat(map(tick, range(3))))
    assert list(log_of(lake).glob("*.torn"))


def test_a_torn_last_checkpoint_is_cut(lake: Lake) -> None:
    expected = fill(lake, CHECKPOINT_EVERY + 2)
    (checkpoint,) = log_of(lake).glob("*.checkpoint.parquet")
    os.truncate(checkpoint, checkpoint.stat().st_size // 2)
    fresh = Lake(lake.root / ".." / "lake", [TICKS])
    assert rows(fresh).equals(expected)
    assert fresh.append(TICKS, tick(999), run_id="run").rows == 1


@pytest.mark.parametrize("lost", ["first commit", "garbage", "log"])
def test_a_damaged_log_is_refused_and_rebuilt(lake: Lake, lost: str) -> None:
    expected = fill(lake, 4)
    if lost == "log":
        log_of(lake).rename(lake.root / "elsewhere")
    elif lost == "first commit":
        commits(lake)[0].unlink()
    else:
        commits(lake)[2].write_bytes(b"garbage\n")
    lake = Lake(lake.root / ".." / "lake", [TICKS])
    with pytest.raises(LakeError, match="nq repair ticks"):
        rows(lake)
    with pytest.raises(LakeError, match="nq repair ticks"):
        lake.append(TICKS, tick(9), run_id="run")
    assert find_damage(lake)
    done = repair(lake, TICKS)
    assert done.why and (done.rows, done.files, done.lost) == (4, 4, ())
    assert rows(lake).equals(expected)
    assert repair(lake, TICKS).why == () and find_damage(lake) is None
    assert lake.append(TICKS, tick(2), run_id="again").rows == 0


@pytest.mark.parametrize("fault", ["missing", "empty", "garbage"])
def test_a_damaged_file_is_named_and_the_others_are_read(lake: Lake, fault: str) -> None:
    fill(lake, 3)
    lake.append(TICKS, ticks([(DAY + timedelta(days=1), 9, NOON, 9, 1.0)]), run_id="run")
    victim = Path(lake.files(TICKS, [DAY])[1])
    if fault == "missing":
        victim.unlink()
    else:
        victim.write_bytes(b"" if fault == "empty" else os.urandom(victim.stat().st_size))
    with pytest.raises(LakeError, match="nq repair ticks"):
        rows(lake)
    assert lake.scan(TICKS, [DAY + timedelta(days=1)]).collect().height == 1
    done = repair(lake, TICKS)
    assert (done.rows, done.lost) == (3, ((DAY, 1),))
    assert rows(lake).height == 3
    assert lake.append(TICKS, tick(1), run_id="again").rows == 1


def test_a_repair_shows_no_row_of_merged_files_twice(lake: Lake) -> None:
    expected = fill(lake, 4)
    lake.compact(TICKS, DAY, now=AFTER)
    log_of(lake).rename(lake.root / "elsewhere")
    done = repair(lake, TICKS)
    assert (done.rows, done.files) == (4, 1)
    assert rows(lake).equals(expected)
    assert lake.collect_garbage(LATER) == 4
    assert rows(lake).equals(expected)


def test_a_table_moved_away_is_a_new_table(lake: Lake) -> None:
    fill(lake, 3)
    lake.folder(TICKS).rename(lake.root / "elsewhere")
    assert rows(lake).height == 0
    assert lake.append(TICKS, tick(1), run_id="run").rows == 1
    assert rows(lake).equals(tick(1))


def test_a_table_that_is_created_while_it_is_opened_is_read(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    def folders(objects: LocalObjects, folder: str = "") -> tuple[str, ...]:
        monkeypatch.undo()
        lake.append(TICKS, tick(1), run_id="another process")
        return objects.folders(folder)

    monkeypatch.setattr(LocalObjects, "folders", folders)
    assert rows(lake).equals(tick(1))


def test_an_older_log_from_a_backup_gets_its_rows_back(lake: Lake) -> None:
    fill(lake, 2)
    kept = {path.name: path.read_bytes() for path in commits(lake)}
    expected = fill(lake, 4)
    for path in commits(lake):
        if path.name not in kept:
            path.unlink()
    assert rows(lake).height == 2
    assert lake.collect_garbage(LATER) == 2
    assert rows(lake).equals(expected)


def test_views_of_a_delta_lake_equal_those_of_manifests(lake: Lake, tmp_path: Path) -> None:
    other = Lake(tmp_path / "other" / "sandbox" / "lake", lake.tables)
    for each in (lake, other):
        for minute in range(3):
            rows = chain(SOURCE_CHAIN, snapshot=NOON + minute * 60_000_000_007)
            each.append(SOURCE_CHAIN, rows, run_id="run")
    sql = "SELECT * FROM source_chain ORDER BY ALL"
    with catalog.connect(lake) as one, catalog.connect(other) as two:
        assert one.sql(sql).types == two.sql(sql).types
        assert one.sql(sql).fetchall() == two.sql(sql).fetchall()
