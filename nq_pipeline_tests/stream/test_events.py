"""Gaps and snapshots get a number when they are committed, and keep it."""

from __future__ import annotations

from pathlib import Path

import orjson
import polars as pl
import pytest

from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import DECISIONS, GAPS, conform
from nq_pipeline.stream.events import NAME, PAGE, EventLog
from nq_pipeline_tests.testing.lake_samples import DURING, NOON, decision
from nq_pipeline_tests.testing.stream_samples import gap_row


@pytest.fixture(params=[False, True], ids=["manifest", "delta"])
def lake(tmp_path: Path, request: pytest.FixtureRequest) -> Lake:
    return Lake(tmp_path / "sandbox" / "lake", delta=request.param)


def append_gaps(lake: Lake, *numbers: int) -> None:
    lake.append(GAPS, conform(GAPS, pl.DataFrame([gap_row(n) for n in numbers])), run_id="run")


def events(log: EventLog, after: int = 0) -> list[tuple[str, int, list[str]]]:
    return [
        (kind, number, [orjson.loads(row)["gap_id"] for row in rows])
        for kind, number, rows in log.read(after, log.newest)
    ]


def test_new_gaps_are_numbered_once(lake: Lake) -> None:
    log = EventLog(lake.root.with_name(NAME))
    log.collect(lake)
    assert log.newest == 0
    append_gaps(lake, 1, 2)
    log.collect(lake)
    log.collect(lake)
    append_gaps(lake, 0)  # committed later, though it is earlier
    log.collect(lake)
    assert events(log) == [("gaps", 3, ["gap-1", "gap-2", "gap-0"])]
    assert events(log, after=2) == [("gaps", 3, ["gap-0"])]


def test_numbers_survive_a_restart_and_merged_files(lake: Lake) -> None:
    path = lake.root.with_name(NAME)
    log = EventLog(path)
    append_gaps(lake, 1)
    append_gaps(lake, 2)
    log.collect(lake)
    before = events(log)
    lake.compact(GAPS, DURING.date(), now=DURING)
    append_gaps(lake, 3)
    again = EventLog(path)
    again.collect(lake)
    assert again.id == log.id
    assert events(again)[0][2][:2] == before[0][2]
    assert again.newest == 3


def test_two_servers_share_the_numbers(lake: Lake) -> None:
    first, second = (EventLog(lake.root.with_name(NAME)) for _ in range(2))
    append_gaps(lake, 1)
    first.collect(lake)
    append_gaps(lake, 2)
    second.collect(lake)
    first.collect(lake)
    assert events(first) == events(second) == [("gaps", 2, ["gap-1", "gap-2"])]


def test_a_snapshot_says_which_source_won(lake: Lake) -> None:
    rows = [
        decision(decided_at=NOON, snapshot=NOON, source="barchart", won=False),
        decision(decided_at=NOON, snapshot=NOON + 1, source="databento", rank=2),
        decision(decided_at=NOON, snapshot=NOON + 1, source="databento", rank=2, series="QN1-2025-07-03"),
    ]
    frame = pl.DataFrame(rows).with_columns(
        pl.col("decided_at", "snapshot_ts").cast(pl.Datetime("ns", "UTC"))
    )
    lake.append(DECISIONS, frame, run_id="run")
    log = EventLog(lake.root.with_name(NAME))
    log.collect(lake)
    ((kind, _, (row,)),) = log.read(0, log.newest)
    assert kind == "snapshot"
    assert orjson.loads(row) == {
        "run_id": "run", "snapshot_ts": "2025-07-01T12:00:00.000000001Z", "trade_date": "2025-07-01",
        "product": "NQ", "source": "databento", "decided_at": "2025-07-01T12:00:00.000000000Z",
        "series": 2, "contracts": 6, "newest_ts": None,
    }  # fmt: skip


def test_many_events_are_read_in_pages(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "sandbox" / "lake")
    append_gaps(lake, *range(PAGE + 1))
    log = EventLog(lake.root.with_name(NAME))
    log.collect(lake)
    assert [(number, len(rows)) for _, number, rows in log.read(0, log.newest)] == [
        (PAGE, PAGE),
        (PAGE + 1, 1),
    ]
