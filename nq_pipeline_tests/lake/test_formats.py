"""One contract for every format of a table: manifests, Delta in a folder, Delta in an object store."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from nq_pipeline.configuration import load
from nq_pipeline.errors import LakeError, StaleToken
from nq_pipeline.lake.compaction import FAN_IN
from nq_pipeline.lake.objects import RemoteObjects
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.table_files import TableFiles
from nq_pipeline.lake.tables import MBO, TABLES, TRADES, Table
from nq_pipeline_tests.testing.lake_samples import AFTER, DAY, DURING, NOON, TICKS, ticks
from nq_pipeline_tests.testing.s3 import Bucket

NEXT_DAY = DAY + timedelta(days=1)
LATER = datetime(2100, 1, 1, tzinfo=UTC)
"""Every grace period is over."""

Open = Callable[[], Lake]


@pytest.fixture(params=["manifest", "delta", "s3"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens the lake, each time as a host of its own would if it is in an object store."""
    tables = [TICKS, *TABLES.values()]
    if request.param != "s3":
        return lambda: Lake(tmp_path / "sandbox" / "lake", tables, delta=request.param == "delta")
    bucket: Bucket = request.getfixturevalue("bucket")
    hosts = iter(range(1_000))

    def host() -> Lake:
        root = tmp_path / f"host-{next(hosts)}" / "sandbox" / "lake"
        store = load(lake_url=bucket.url).store
        return Lake(root, tables, objects=RemoteObjects(f"{bucket.url}/sandbox/lake", store))

    return host


@pytest.fixture
def lake(opened: Open) -> Lake:
    return opened()


def tick(number: int, day: date = DAY) -> pl.DataFrame:
    return ticks([(day, number, NOON + number * 1_000 + 1, number, 0.25 * number)])


def rows(lake: Lake, table: Table = TICKS) -> pl.DataFrame:
    return lake.scan(table).sort(table.total_order).collect()


def test_rows_come_back_as_they_were_and_once(lake: Lake, opened: Open) -> None:
    both = pl.concat([tick(1), tick(2, NEXT_DAY)])
    first = lake.append(TICKS, both, run_id="one")
    again = opened().append(TICKS, both, run_id="two")
    assert (first.rows, len(first.files)) == (2, 2)
    assert (again.rows, again.known, again.files) == (0, 2, ())
    assert again.version == first.version
    assert rows(opened()).equals(both)
    assert opened().scan(TICKS, [NEXT_DAY]).collect().equals(tick(2, NEXT_DAY))
    assert opened().files(TICKS) == list(first.files)


def test_a_table_never_written_is_empty(lake: Lake) -> None:
    assert lake.append(TICKS, TICKS.empty(), run_id="run").version == 0
    assert lake.manifest(TICKS).version == 0 and lake.files(TICKS) == []
    assert rows(lake).equals(TICKS.empty())
    assert lake.collect_garbage(LATER) == 0
    assert lake.compact(TICKS, DAY, now=AFTER) == 0


def test_instants_keep_their_nanoseconds_and_integers_their_width(lake: Lake) -> None:
    frame = pl.DataFrame(
        {
            "ts_event": [NOON + 1, NOON + 999],
            "trade_date": [DAY] * 2,
            "publisher_id": [2**16 - 1] * 2,
            "instrument_id": [2**32 - 1] * 2,
            "sequence": [2**32 - 1] * 2,
            "ordinal": [0, 1],
            "action": ["T"] * 2,
            "side": ["A"] * 2,
            "price": [0.1, None],
            "size": [2**32 - 1] * 2,
            "flags": [255] * 2,
            "ts_in_delta": [-(2**31)] * 2,
            "source_schema": ["trades"] * 2,
            "environment": ["sandbox"] * 2,
            "log_session": [1] * 2,
            "run_id": ["run"] * 2,
        }
    )
    lake.append(TRADES, frame, run_id="run")
    found = rows(lake, TRADES)
    assert found.schema == TRADES.schema
    assert found["ts_event"].to_physical().to_list() == [NOON + 1, NOON + 999]
    assert found.select(frame.columns).equals(frame.cast({n: TRADES.schema[n] for n in frame.columns}))


def test_an_id_too_large_for_a_signed_number_never_wraps(lake: Lake) -> None:
    (name,) = [column.name for column in MBO.columns if column.dtype == pl.UInt64()]
    given = {column.name: None for column in MBO.columns if column.nullable}
    values = {"ts_event": NOON, "trade_date": DAY, "action": "A", "side": "B", "source_schema": "mbo"}
    texts = {c.name: "x" for c in MBO.columns if c.dtype == pl.String()}
    numbers = {c.name: 1 for c in MBO.columns}
    row = {c.name: {**numbers, **texts, **given, **values}[c.name] for c in MBO.columns}
    largest = pl.DataFrame([row]).with_columns(pl.lit(2**63 - 1, pl.UInt64).alias(name))
    lake.append(MBO, largest, run_id="run")
    assert rows(lake, MBO)[name].to_list() == [2**63 - 1]
    beyond = largest.with_columns(pl.lit(2**63, pl.UInt64).alias(name), sequence=pl.lit(2))
    try:
        lake.append(MBO, beyond, run_id="run")
    except LakeError:
        assert rows(lake, MBO).height == 1
    else:
        assert rows(lake, MBO)[name].to_list() == [2**63 - 1, 2**63]


def test_marks_move_with_the_rows_or_alone(lake: Lake, opened: Open) -> None:
    lake.append(TICKS, tick(1), run_id="run", marks={"log/a": 7})
    assert opened().manifest(TICKS, ["log/a", "log/b"]).marks.get("log/a") == 7
    alone = opened().append(TICKS, TICKS.empty(), run_id="run", marks={"log/a": 9, "log/b": 2**50})
    assert alone.rows == 0
    again = opened().append(TICKS, TICKS.empty(), run_id="run", marks={"log/a": 9})
    assert again.version == alone.version, "nothing moved"
    marks = opened().manifest(TICKS, ["log/a", "log/b"]).marks
    assert (marks["log/a"], marks["log/b"]) == (9, 2**50)
    opened().compact(TICKS, DAY, now=AFTER)
    assert opened().manifest(TICKS, ["log/a"]).marks["log/a"] == 9


def test_rows_under_a_stale_lease_are_refused(lake: Lake, opened: Open) -> None:
    lake.append(TICKS, tick(1), run_id="run", token=4)
    opened().append(TICKS, tick(2), run_id="run", token=5)
    with pytest.raises(StaleToken):
        lake.append(TICKS, tick(3), run_id="run", token=4, marks={"log/a": 3})
    assert lake.append(TICKS, tick(4), run_id="bought").rows == 1, "a backfill has no lease"
    assert rows(lake)["instrument_id"].to_list() == [1, 2, 4]
    assert "log/a" not in lake.manifest(TICKS, ["log/a"]).marks


def test_racing_writers_lose_and_double_nothing(lake: Lake, opened: Open) -> None:
    """Every writer appends the same ticks, in its own order, and one tick of the next day per call."""
    writers, calls = 3, 6
    failures = list[BaseException]()

    def write(number: int) -> None:
        try:
            own = opened()
            for call in range(calls):
                shared = tick((call + number) % calls)
                mine = tick(1_000 + number * 100 + call, NEXT_DAY)
                own.append(TICKS, pl.concat([shared, mine]), run_id=f"writer-{number}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    found = rows(opened())
    assert found.height == found.unique(TICKS.key).height == calls + writers * calls
    assert lake.manifest(TICKS).rows == found.height


def test_a_day_that_is_over_becomes_one_sorted_file(lake: Lake, opened: Open) -> None:
    for number in reversed(range(5)):
        lake.append(TICKS, tick(number), run_id=f"run-{number}")
    before = lake.scan(TICKS)
    assert opened().compact(TICKS, DAY, now=DURING) == 0
    assert opened().compact(TICKS, DAY, now=AFTER) == 5
    assert opened().compact(TICKS, DAY, now=AFTER) == 0
    assert len(lake.files(TICKS)) == 1
    expected = pl.concat(map(tick, range(5)))
    assert lake.scan(TICKS).collect().equals(expected)
    assert before.sort("instrument_id").collect().equals(expected), "a reader keeps its files"
    stored = lake.table_files(TICKS)
    assert stored.read_runs(stored.manifest().files) == [f"run-{number}" for number in range(5)]
    assert lake.append(TICKS, tick(3), run_id="again").rows == 0


def test_of_two_hosts_that_merge_the_same_files_one_does(
    lake: Lake, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        lake.append(TICKS, tick(number), run_id="run")
    merged, other, replace_files = list[int](), opened(), TableFiles.replace

    def replace_late(self: TableFiles, *args: Any) -> bool:
        monkeypatch.setattr(TableFiles, "replace", replace_files)
        merged.append(other.compact(TICKS, DAY, now=AFTER, wait=False))
        return replace_files(self, *args)

    monkeypatch.setattr(TableFiles, "replace", replace_late)
    merged.append(lake.compact(TICKS, DAY, now=AFTER))
    assert sorted(merged) == [0, 3]
    assert len(lake.files(TICKS)) == 1 and rows(opened()).equals(pl.concat(map(tick, range(3))))
    assert lake.collect_garbage(LATER) == 3 and rows(lake).height == 3


def test_a_day_under_way_never_has_many_files(lake: Lake) -> None:
    for number in range(FAN_IN + 3):
        lake.append(TICKS, tick(number), run_id="run")
    assert len(lake.files(TICKS)) == 4
    assert rows(lake).equals(pl.concat(map(tick, range(FAN_IN + 3))))


def test_replaced_files_stay_an_hour(lake: Lake, opened: Open) -> None:
    for number in range(3):
        lake.append(TICKS, tick(number), run_id="run")
    reader = lake.scan(TICKS)
    lake.compact(TICKS, DAY, now=AFTER)
    now = datetime.now(UTC)
    assert opened().collect_garbage(now + timedelta(minutes=59)) == 0
    assert reader.collect().height == 3
    assert opened().collect_garbage(now + timedelta(minutes=61)) == 3
    assert opened().collect_garbage(now + timedelta(minutes=61)) == 0
    with pytest.raises((OSError, pl.exceptions.PolarsError)):
        reader.collect()
    assert rows(opened()).height == 3


def test_replaced_files_stay_while_their_successor_is_gone(lake: Lake, opened: Open) -> None:
    for number in range(3):
        lake.append(TICKS, tick(number), run_id="run")
    lake.compact(TICKS, DAY, now=AFTER)
    stored = lake.table_files(TICKS)
    stored.remove(stored.manifest().files)
    assert opened().collect_garbage(LATER) == 0
    assert len(stored.data_files()) == 3


def test_rows_of_a_file_without_a_commit_come_back(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    lake.append(TICKS, tick(1), run_id="run")
    kind = type(lake.table_files(TICKS))
    with monkeypatch.context() as patch:
        patch.setattr(kind, "commit", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            lake.append(TICKS, tick(2), run_id="died")
    assert rows(lake).height == 1
    assert lake.collect_garbage() == 0, "its writer may still live"
    assert lake.collect_garbage(LATER) == 1
    assert rows(lake).equals(pl.concat([tick(1), tick(2)]))
    stored = lake.table_files(TICKS)
    assert stored.read_runs(stored.manifest().files) == ["died", "run"]


def test_readers_count_right_during_merges(lake: Lake, opened: Open) -> None:
    for number in range(12):
        lake.append(TICKS, tick(number, DAY + timedelta(days=number % 4)), run_id="run")
    counts, stop = list[int](), threading.Event()

    def read() -> None:
        own = opened()
        while not stop.is_set():
            counts.append(own.scan(TICKS).select(pl.len()).collect().item())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for day in range(4):
            lake.compact(TICKS, DAY + timedelta(days=day), now=LATER)
            lake.collect_garbage()
    finally:
        stop.set()
        reader.join()
    assert len(lake.files(TICKS)) == 4
    assert counts and set(counts) == {12}


def test_a_new_column_is_null_in_older_rows(lake: Lake) -> None:
    older = replace(TICKS, columns=TICKS.columns[:-1])
    lake.append(older, tick(1).drop("price"), run_id="old")
    lake.append(replace(TICKS, version=2), tick(2), run_id="new")
    newer = replace(TICKS, version=2)
    expected = pl.concat([tick(1).with_columns(price=pl.lit(None, pl.Float64)), tick(2)])
    assert rows(lake, newer).equals(expected)
    lake.compact(newer, DAY, now=AFTER)
    assert rows(lake, newer).equals(expected)
