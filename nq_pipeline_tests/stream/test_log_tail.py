"""The rows of the capture log as a stream: each once, wherever it is cut or resumed."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nq_pipeline.capture.log.segments import BEGINNING, Position
from nq_pipeline.lake.tables import MBP_1, TRADES
from nq_pipeline.stream.log_tail import LogTail, end_of_log
from nq_pipeline_tests.testing.dbn_streams import NOON, Clock
from nq_pipeline_tests.testing.feeds import DATASET, Array, Feed, market, publisher, replayed, rows

KEY = ["ts_event", "instrument_id", "sequence", "ordinal"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data" / "sandbox" / "capture"


def capture_with_replays(root: Path, records: Array, cuts: list[int], back: int) -> None:
    """Sessions that end at some records; each one replays from `back` records before its beginning."""
    edges = [0, *sorted(cuts), len(records)]
    with Feed(root, segment_bytes=4_000) as feed:
        for first, last in pairwise(edges):
            since = int(records["ts_event"][max(0, first - back)])
            feed.session(replayed(records[:last], since))


def stream(root: Path, kind: str = "trades", start: Position = BEGINNING) -> pl.DataFrame:
    found = [frame for each, _, frame in LogTail(root / DATASET, start).read() if each == kind]
    return pl.concat(found) if found else pl.DataFrame()


def same(found: pl.DataFrame, table: pl.DataFrame) -> bool:
    return found.select(KEY).sort(KEY).equals(table.select(KEY).sort(KEY))


@given(cuts=st.lists(st.integers(0, 300), max_size=4), back=st.integers(0, 200))
@settings(
    max_examples=settings().max_examples // 8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_replayed_trades_are_streamed_once(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], back: int
) -> None:
    root = tmp_path_factory.mktemp("data") / "sandbox" / "capture"
    capture_with_replays(root, market(200), cuts, back)
    publisher(root).publish()
    found = stream(root)
    assert same(found, rows(root))
    assert found.height == market(200).shape[0]


@pytest.mark.parametrize("rtype", [1, 160])
def test_a_book_streams_what_the_tables_have(root: Path, rtype: int) -> None:
    records = market(200, rtype)
    records["action"][::3] = b"A"
    records["flags"][5::40] = 32  # the state of the book, repeated
    capture_with_replays(root, records, [100, 200], 50)
    publisher(root).publish()
    assert same(stream(root), rows(root, TRADES))
    if rtype == 1:
        assert same(stream(root, "quotes"), rows(root, MBP_1))
    else:
        assert stream(root, "quotes").is_empty()


def test_a_reader_resumes_between_any_two_records(root: Path) -> None:
    capture_with_replays(root, market(60), [40, 80], 30)
    whole = stream(root)
    ends = [end for _, end, _ in LogTail(root / DATASET, BEGINNING).read()]
    for middle in ends:
        first = LogTail(root / DATASET, BEGINNING)
        before = [frame for _, _, frame in first.read(middle)]
        assert first.position == middle
        after = stream(root, start=middle)
        assert same(pl.concat([*before, *([after] if after.height else [])]), whole)


def test_a_session_whose_clock_went_back_repeats_nothing(root: Path) -> None:
    records = market(50)
    with Feed(root) as feed:
        feed.session(records)
    earlier = Feed(root, clock=Clock(NOON - timedelta(hours=1)))
    with earlier as feed:
        feed.session(records)
    assert stream(root).height == len(records)


def test_the_end_of_a_log_is_after_its_last_whole_record(root: Path) -> None:
    assert end_of_log(root / DATASET) == BEGINNING
    with Feed(root) as feed:
        feed.session(market(10))
        (segment,) = (root / DATASET).glob("*/*.dbn")
        size = segment.stat().st_size
        assert end_of_log(root / DATASET) == Position(1, size)
        with segment.open("ab") as file:
            file.write(b"\x0c\x00")
        assert end_of_log(root / DATASET) == Position(1, size)
