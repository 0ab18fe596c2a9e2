"""A lake of manifests becomes one of Delta tables: in its folder, or in an object store."""

from __future__ import annotations

import tarfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

from nq_pipeline.cli import main
from nq_pipeline.configuration import load
from nq_pipeline.errors import LakeError
from nq_pipeline.lake.delta.files import DeltaFiles
from nq_pipeline.lake.manifest import NAME
from nq_pipeline.lake.migration import OLD
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import TABLES
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.lake_samples import DAY, NOON, TICKS, ticks
from nq_pipeline_tests.testing.s3 import Bucket

EARLIER = Path(__file__).parents[1] / "earlier" / "0.1.0.tar.xz"
LATER = datetime(2100, 1, 1, tzinfo=UTC)


def tick(number: int) -> pl.DataFrame:
    day = DAY + timedelta(days=number % 2)
    return ticks([(day, number, NOON + number * 1_000 + 1, number, 0.25 * number)])


@pytest.fixture
def old(tmp_path: Path) -> Lake:
    """A lake with a manifest: five files, a merge, a lease's mark."""
    lake = Lake(tmp_path / "sandbox" / "lake", [TICKS, *TABLES.values()])
    for number in range(5):
        lake.append(TICKS, tick(number), run_id=f"run-{number}", token=3)
    lake.compact(TICKS, DAY, now=LATER)
    return lake


def rows(lake: Lake) -> pl.DataFrame:
    return lake.scan(TICKS).sort(TICKS.total_order).collect()


def test_a_table_is_taken_over_by_its_next_writer(old: Lake) -> None:
    expected, reader = rows(old), old.scan(TICKS)
    before = old.manifest(TICKS)
    new = Lake(old.root, old.tables, delta=True)
    assert rows(new).equals(expected), "before anything is written"
    assert not isinstance(new.table_files(TICKS), DeltaFiles)
    assert new.append(TICKS, tick(3), run_id="again").rows == 0
    for lake in (new, old):
        assert isinstance(lake.table_files(TICKS), DeltaFiles)
        assert rows(lake).equals(expected)
        after = lake.manifest(TICKS, ["lease/capture"])
        assert after.marks == {"lease/capture": 3}
        assert sorted((f.trade_date, f.rows, f.level) for f in after.files) == sorted(
            (f.trade_date, f.rows, f.level) for f in before.files
        )
        stored = lake.table_files(TICKS)
        assert stored.read_runs(after.files) == [f"run-{number}" for number in range(5)]
    assert reader.collect().height == 5, "a reader keeps the old files"
    assert new.collect_garbage() == 0
    old_files = {path for path in old.folder(TICKS).rglob("*.parquet") if "-v" not in path.name}
    assert len(old_files) == 6
    assert new.collect_garbage(LATER) == 6
    assert not any(path.exists() for path in old_files) and not (old.folder(TICKS) / OLD).exists()
    assert rows(new).equals(expected)
    assert new.take_over(TICKS) == 0


def test_a_takeover_that_dies_changes_nothing_and_starts_again(
    old: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = rows(old)
    new = Lake(old.root, old.tables, delta=True)
    for method in ("commit", "place"):
        with monkeypatch.context() as patch:
            patch.setattr(DeltaFiles, method, lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                new.take_over(TICKS)
        assert rows(new).equals(expected) and (old.folder(TICKS) / NAME).exists()
    assert new.take_over(TICKS) == 5
    assert rows(new).equals(expected)
    new.collect_garbage(LATER)
    assert len(list(new.folder(TICKS).glob("trade_date=*/*.parquet"))) == len(new.files(TICKS))


def test_a_damaged_table_is_not_taken_over(old: Lake) -> None:
    Path(old.files(TICKS)[0]).write_bytes(b"")
    new = Lake(old.root, old.tables, delta=True)
    with pytest.raises(LakeError, match="nq repair ticks"):
        new.append(TICKS, tick(9), run_id="run")
    assert (old.folder(TICKS) / NAME).exists()


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    with tarfile.open(EARLIER) as archive:
        archive.extractall(tmp_path / "data", filter="data")
    return tmp_path / "data"


def contents(lake: Lake) -> dict[str, pl.DataFrame]:
    return {t.name: lake.scan(t).sort(t.total_order).collect() for t in lake.tables}


def test_the_lake_of_an_earlier_version_becomes_delta_tables(earlier: Path) -> None:
    lake = Workspace(earlier / "sandbox").lake
    before = contents(lake)
    assert before["trades"].height == 90
    environment = {"NQ_DATA_DIR": str(earlier), "NQ_LAKE_FORMAT": "delta"}
    done = CliRunner().invoke(main, ["lake", "migrate"], env=environment)
    assert done.exit_code == 0, done.output
    assert "trades: 90 rows" in done.output
    after = contents(lake)
    for name, frame in before.items():
        assert after[name].equals(frame), name
        assert frame.is_empty() or isinstance(lake.table_files(TABLES[name]), DeltaFiles), name
    again = CliRunner().invoke(main, ["lake", "migrate"], env=environment)
    assert again.exit_code == 0 and "0 rows" in again.output


def test_the_lake_of_an_earlier_version_is_copied_into_an_object_store(earlier: Path, bucket: Bucket) -> None:
    local = Workspace(earlier / "sandbox").lake
    environment = {"NQ_DATA_DIR": str(earlier), "NQ_LAKE_URL": bucket.url}
    done = CliRunner().invoke(main, ["lake", "migrate"], env=environment)
    assert done.exit_code == 0, done.output
    remote = Workspace.of(load(data_dir=earlier, lake_url=bucket.url)).lake
    assert all(name.startswith("lakes/nq/sandbox/lake/") for name in bucket.names())
    copied = contents(remote)
    for name, frame in contents(local).items():
        assert copied[name].equals(frame), name
    assert copied["trades"].height == 90


def test_where_to_is_said_first(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["lake", "migrate"], env={"NQ_DATA_DIR": str(tmp_path)})
    assert done.exit_code == 2 and "NQ_LAKE_FORMAT" in done.stderr
