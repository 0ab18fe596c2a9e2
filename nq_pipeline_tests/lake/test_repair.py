"""What is missing is never taken for empty: a lost manifest, lost or damaged files, and the way out."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import polars as pl
import pytest
from click.testing import CliRunner

from nq_pipeline.cli import main
from nq_pipeline.cli.exit_codes import SQL_FAILED
from nq_pipeline.clock import NS_PER_S
from nq_pipeline.configuration import load
from nq_pipeline.errors import LakeError
from nq_pipeline.lake import catalog
from nq_pipeline.lake.delta import files
from nq_pipeline.lake.maintenance import maintain
from nq_pipeline.lake.repair import find_damage, repair
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import DECISIONS, OPTION_CHAIN, SOURCE_CHAIN
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.lake_samples import AFTER, DAY, DURING, NOON, TICKS, chain, ticks
from nq_pipeline_tests.testing.s3 import Bucket

LATER = datetime(2100, 1, 1, tzinfo=UTC)
"""Every grace period is over."""


def snapshots(number: int, first: int = 0) -> list[pl.DataFrame]:
    return [
        chain(SOURCE_CHAIN, snapshot=NOON + i * 60 * NS_PER_S, contracts=5)
        for i in range(first, first + number)
    ]


@pytest.fixture
def filled(lake: Lake) -> Lake:
    """Four snapshots in four files."""
    for frame in snapshots(4):
        lake.append(SOURCE_CHAIN, frame, run_id="run")
    return lake


def rows(lake: Lake) -> pl.DataFrame:
    return lake.scan(SOURCE_CHAIN).sort(SOURCE_CHAIN.key).collect()


def contents(lake: Lake) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in lake.root.rglob("*.parquet")}


MANIFEST = "source_chain/manifest.json"


@pytest.mark.parametrize(
    "spoil",
    [
        Path.unlink,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(os.urandom(300)),
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: path.write_bytes(path.read_bytes().replace(b'"rows":5', b'"rows":"5"')),
        lambda path: path.write_bytes(path.read_bytes().replace(b"trade_date=", b"../trade_date=")),
        lambda path: path.write_bytes(b"[]"),
    ],
    ids=["missing", "empty", "garbage", "cut", "wrong type", "outside", "another thing"],
)
def test_a_lost_manifest_is_refused_and_can_be_made_anew(
    filled: Lake, spoil: Callable[[Path], object]
) -> None:
    before, files = rows(filled), contents(filled)
    spoil(filled.root / MANIFEST)
    with pytest.raises(LakeError, match=r"manifest .*nq repair source_chain"):
        rows(filled)
    with pytest.raises(LakeError, match=r"manifest .*nq repair source_chain"):
        filled.append(SOURCE_CHAIN, snapshots(1, first=9)[0], run_id="next")
    assert filled.collect_garbage(LATER) == 0
    assert contents(filled) == files, "a file was changed or removed"

    repaired = repair(filled, SOURCE_CHAIN)
    assert (repaired.rows, repaired.files, repaired.damaged) == (20, 4, ())
    assert rows(filled).equals(before)
    assert filled.append(SOURCE_CHAIN, snapshots(1)[0], run_id="again").rows == 0
    assert filled.append(SOURCE_CHAIN, snapshots(1, first=9)[0], run_id="next").rows == 5
    assert contents(filled).items() >= files.items(), "a file was replaced"
    assert repair(filled, SOURCE_CHAIN).why == ()


def test_a_crash_in_the_first_append_is_no_lost_manifest(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("nq_pipeline.lake.manifest.Manifest.next", die)
        with pytest.raises(KeyboardInterrupt):
            lake.append(SOURCE_CHAIN, snapshots(1)[0], run_id="killed")
    assert rows(lake).height == 0 and len(contents(lake)) == 1
    assert lake.append(SOURCE_CHAIN, snapshots(1)[0], run_id="again").rows == 5
    assert lake.collect_garbage(LATER) == 1
    assert rows(lake).height == 5 and len(contents(lake)) == 1


def test_a_folder_within_a_partition_is_not_of_the_table(filled: Lake) -> None:
    data = next(filled.root.glob("source_chain/trade_date=*/*.parquet"))
    copy, known = data.parent / "backup" / data.name, rows(filled)
    copy.parent.mkdir()
    copy.write_bytes(data.read_bytes())
    os.utime(copy, (0, 0))
    assert filled.collect_garbage(LATER) == 0 and copy.exists()
    (filled.root / MANIFEST).unlink()
    assert repair(filled, SOURCE_CHAIN).files == 4
    assert rows(filled).equals(known)


def test_rows_of_an_unlisted_file_come_back_before_it_goes(filled: Lake) -> None:
    """As after restoring an older manifest from a backup."""
    old = (filled.root / MANIFEST).read_bytes()
    for frame in snapshots(2, first=4):
        filled.append(SOURCE_CHAIN, frame, run_id="later")
    before, files = rows(filled), contents(filled)
    (filled.root / MANIFEST).write_bytes(old)
    assert filled.append(SOURCE_CHAIN, snapshots(1, first=5)[0], run_id="next").rows == 5
    assert contents(filled).items() >= files.items(), "a file was replaced"
    assert filled.collect_garbage() == 0, "within the grace period"
    assert filled.collect_garbage(LATER) == 2
    assert rows(filled).equals(before)
    assert len(filled.files(SOURCE_CHAIN)) == len(contents(filled))


def test_merged_files_stay_while_their_successor_is_damaged(filled: Lake) -> None:
    before = rows(filled)
    filled.compact(SOURCE_CHAIN, DAY, now=AFTER)
    (merged,) = map(Path, filled.files(SOURCE_CHAIN))
    merged.write_bytes(b"")
    assert filled.collect_garbage(LATER) == 0
    repaired = repair(filled, SOURCE_CHAIN)
    assert (repaired.rows, repaired.files, repaired.lost) == (20, 4, ())
    assert rows(filled).equals(before)


def test_a_repair_of_merged_files_shows_no_row_twice(filled: Lake) -> None:
    before = rows(filled)
    filled.compact(SOURCE_CHAIN, DAY, now=AFTER)
    filled.append(SOURCE_CHAIN, snapshots(1, first=7)[0], run_id="later")
    (filled.root / MANIFEST).unlink()
    repaired = repair(filled, SOURCE_CHAIN)
    assert (repaired.rows, repaired.files) == (25, 2)
    assert rows(filled).head(20).equals(before)
    assert filled.collect_garbage(datetime.now(UTC) + timedelta(minutes=59)) == 0
    assert filled.collect_garbage(LATER) == 4
    assert rows(filled).height == 25


FAULTS: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-200]),
    "garbage": lambda path: path.write_bytes(os.urandom(path.stat().st_size)),
    "another table": lambda path: path.write_bytes(b"PAR1" * (path.stat().st_size // 4 + 1)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_file_is_named_and_everything_else_is_read(filled: Lake, fault: str) -> None:
    other = datetime(2025, 7, 2).date()
    filled.append(SOURCE_CHAIN, chain(SOURCE_CHAIN, snapshot=NOON, day=other), run_id="run")
    filled.append(OPTION_CHAIN, chain(OPTION_CHAIN, snapshot=NOON), run_id="run")
    victim = Path(filled.files(SOURCE_CHAIN, [DAY])[0])
    catalog.publish(filled)
    FAULTS[fault](victim)
    catalog.publish(filled)
    said = rf"{victim.name} .*nq repair source_chain"
    with pytest.raises(LakeError, match=said):
        filled.scan(SOURCE_CHAIN)
    with pytest.raises(LakeError, match=said):
        filled.append(SOURCE_CHAIN, snapshots(1)[0], run_id="again")
    published = duckdb.connect(catalog.publish(filled), read_only=True)
    for connection in (
        published,
        catalog.connect(filled),
        catalog.connect(filled, guarded=True),
    ):
        with connection:
            assert connection.sql("select count(*) from option_chain").fetchall() == [(3,)]
            of_day = "select count(*) from source_chain where trade_date = "
            assert connection.sql(f"{of_day} '2025-07-02'").fetchall() == [(3,)]
            with pytest.raises(duckdb.Error, match=said):
                connection.sql(f"{of_day} '2025-07-01'").fetchall()

    repaired = repair(filled, SOURCE_CHAIN)
    assert (repaired.rows, repaired.lost) == (18, ((DAY, 5),))
    assert [Path(path).exists() for path in repaired.damaged] == [fault != "missing"]
    assert rows(filled).height == 18
    assert filled.append(SOURCE_CHAIN, snapshots(1)[0], run_id="again").rows == 5


def test_a_table_without_its_manifest_leaves_the_others_readable(filled: Lake) -> None:
    filled.append(OPTION_CHAIN, chain(OPTION_CHAIN, snapshot=NOON), run_id="run")
    (filled.root / MANIFEST).unlink()
    with catalog.connect(filled) as connection:
        assert connection.sql("select count(*) from option_chain").fetchall() == [(3,)]
        with pytest.raises(duckdb.Error, match="nq repair source_chain"):
            connection.sql("from source_chain").fetchall()


def test_what_is_sound_or_was_never_there_needs_no_repair(filled: Lake) -> None:
    files = contents(filled)
    filled.compact(SOURCE_CHAIN, DAY, now=DURING)
    assert repair(filled, SOURCE_CHAIN).why == () and repair(filled, DECISIONS).why == ()
    assert contents(filled) == files


@pytest.mark.parametrize("place", ["_delta_log/00000000000000000002.json", "trade_date=2025-07-01/"])
def test_a_damaged_object_is_moved_aside_and_the_rest_stays(
    place: str, tmp_path: Path, bucket: Bucket
) -> None:
    lake = Workspace.of(load(data_dir=tmp_path, lake_url=bucket.url)).lake
    for frame in snapshots(3):
        lake.append(SOURCE_CHAIN, frame, run_id="run")
    objects = lake.table_files(SOURCE_CHAIN).objects
    victim = next(one.name for one in objects.list("") if one.name.startswith(place))
    objects.put(victim, b"garbage")
    files._tables.clear()  # as in another process
    assert "nq repair source_chain" in str(find_damage(lake))
    done = repair(lake, SOURCE_CHAIN)
    is_log = victim.startswith("_delta_log")
    assert (done.rows, done.lost) == ((15, ()) if is_log else (10, ((DAY, 5),)))
    assert rows(lake).height == done.rows and repair(lake, SOURCE_CHAIN).why == ()
    assert [objects.get(one.name) for one in objects.list("") if one.name == f"{victim}.damaged"] == [
        b"garbage"
    ]
    for frame in snapshots(3):
        lake.append(SOURCE_CHAIN, frame, run_id="again")
    assert rows(lake).height == 15


def test_maintenance_goes_on_past_a_damaged_table(filled: Lake) -> None:
    for i in range(3):
        filled.append(TICKS, ticks([(DAY, i, NOON + i, i, 0.25)]), run_id="run")
    (filled.root / MANIFEST).write_bytes(b"garbage")
    with pytest.raises(LakeError, match="source_chain"):
        maintain(filled, [SOURCE_CHAIN, TICKS], now=LATER)
    assert len(filled.manifest(TICKS).files) == 1


def test_a_query_names_a_file_with_garbage_of_the_right_size(tmp_path: Path) -> None:
    lake = Workspace(tmp_path / "data" / "sandbox").lake
    for frame in snapshots(2):
        lake.append(SOURCE_CHAIN, frame, run_id="run")
    victim = Path(lake.files(SOURCE_CHAIN)[1])
    content = victim.read_bytes()
    victim.write_bytes(content[:4] + b"\xa5" * (len(content) - 8) + content[-4:])
    asked = ["sql", "select sum(strike) from source_chain"]
    result = CliRunner().invoke(main, asked, env={"NQ_DATA_DIR": str(tmp_path / "data")})
    assert result.exit_code == SQL_FAILED
    assert f"{victim} cannot be read" in result.stderr and "nq repair source_chain" in result.stderr
