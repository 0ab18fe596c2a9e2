"""The capture log: segments a DBN reader opens, tails that a restart cuts, positions to go on from."""

from __future__ import annotations

import os
import time
import tracemalloc
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import databento
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nq_pipeline.capture.log.reader import Block, tail
from nq_pipeline.capture.log.recovery import recover
from nq_pipeline.capture.log.segments import BEGINNING, Position, list_segments
from nq_pipeline.capture.log.writer import CaptureLog
from nq_pipeline.dbn.framer import Framer
from nq_pipeline.errors import CaptureError
from nq_pipeline_tests.testing.dbn_streams import Clock, begun, head, mapping, one_frame, record, trades

DATASET = "GLBX.MDP3"
OpenLog = Callable[..., CaptureLog]


@pytest.fixture
def open_log(root: Path) -> OpenLog:
    """A log that syncs when asked only, unless told otherwise."""

    def open_log(clock: Clock | None = None, **options: Any) -> CaptureLog:
        return CaptureLog(root, DATASET, clock=clock or Clock(), **{"sync_every_s": 3_600.0, **options})

    return open_log


def sequences(blocks: list[Block]) -> list[int]:
    return [int(n) for b in blocks for n in b.frame.array(0)["sequence"]]


def synced_blocks(log: CaptureLog, position: Position = BEGINNING) -> list[Block]:
    return list(tail(log.folder, position, log.synced))


def last_mappings(log: CaptureLog) -> dict[int, bytes]:
    """instrument_id to its mapping, from the newest segment alone."""
    blocks = synced_blocks(log, Position(log.synced.segment, 0))
    return {number: record for b in blocks for number, record in b.frame.mappings().items()}


# ── what is written ─────────────────────────────────────────────────────────────────────────────


def test_a_segment_is_a_dbn_file_of_the_bytes_that_came(open_log: OpenLog) -> None:
    body = mapping(1, "NQU5") + trades(0, 1_000) + record(23, msg=b"Heartbeat")
    with open_log() as log:
        framer = Framer()
        for frame in framer.feed(head() + body):
            log.append(frame)
    (segment,) = list_segments(log.folder)
    assert segment.path.read_bytes() == head() + body
    store = databento.DBNStore.from_file(segment.path)
    assert len(store.to_df(schema="trades")) == 1_000
    assert store.metadata.dataset == DATASET


def test_the_folder_of_a_segment_is_the_trade_date_of_its_beginning(open_log: OpenLog) -> None:
    clock = Clock(datetime(2025, 6, 10, 20, 59, tzinfo=UTC))  # a minute before the close
    with open_log(clock, segment_age_s=1e9) as log:
        framer = begun()
        log.append(one_frame(trades(0, 1), framer))
        clock.instant = datetime(2025, 6, 10, 21, 30, tzinfo=UTC)  # the pause belongs to the last session
        log.append(one_frame(trades(1, 1), framer))
        clock.instant = datetime(2025, 6, 10, 22, 0, tzinfo=UTC)
        log.append(one_frame(trades(2, 1), framer))
        log.sync()
        assert [s.trade_date for s in list_segments(log.folder)] == [date(2025, 6, 10), date(2025, 6, 11)]
        assert [s.path.parent.name for s in list_segments(log.folder)] == [
            "trade_date=2025-06-10",
            "trade_date=2025-06-11",
        ]
        assert sequences(synced_blocks(log)) == [0, 1, 2]


def test_a_segment_ends_by_size_and_by_age(open_log: OpenLog) -> None:
    clock = Clock()
    with open_log(clock, segment_bytes=10_000, segment_age_s=60) as log:
        framer = begun()
        for number in range(10):
            log.append(one_frame(trades(100 * number, 100), framer))  # 4,800 bytes: two fit
        assert [s.number for s in list_segments(log.folder)] == [1, 2, 3, 4, 5]
        assert max(s.path.stat().st_size for s in list_segments(log.folder)) <= 10_000
        clock.instant += timedelta(seconds=61)
        log.append(one_frame(trades(1_000, 1), framer))
        assert log.written.segment == 6
        log.sync()
        assert sequences(synced_blocks(log)) == list(range(1_001))


def test_symbols_larger_than_a_segment_do_not_begin_one_at_every_call(open_log: OpenLog) -> None:
    with open_log(segment_bytes=10_000) as log:
        framer = begun()
        log.append(one_frame(b"".join(mapping(i, f"NQU5 C{i}") for i in range(200)), framer))
        for number in range(10):
            log.append(one_frame(trades(number, 1), framer))
        assert len(list_segments(log.folder)) == 2


def test_each_session_of_the_gateway_has_segments_of_its_own(open_log: OpenLog) -> None:
    with open_log() as log:
        for session in range(3):
            framer = begun()  # the same head each time, but another stream
            log.append(one_frame(mapping(session, "NQU5"), framer))
            log.append(one_frame(trades(session, 1), framer))
        log.sync()
        assert [s.number for s in list_segments(log.folder)] == [1, 2, 3]
        assert last_mappings(log).keys() == {2}


def test_a_continued_segment_begins_with_its_symbols(open_log: OpenLog) -> None:
    with open_log(segment_bytes=10_000) as log:
        framer = begun()
        log.append(one_frame(mapping(1, "NQU5") + mapping(2, "NQZ5") + mapping(1, "NQU5 C21500"), framer))
        for number in range(4):
            log.append(one_frame(trades(100 * number, 100), framer))
        log.sync()
        *_, last = list_segments(log.folder)
        assert last.number > 1
        symbols = databento.DBNStore.from_file(last.path).to_df(schema="trades")["symbol"]
        assert set(symbols[:7]) >= {"NQU5 C21500", "NQZ5"}
        assert last_mappings(log) == {
            1: mapping(1, "NQU5 C21500"),
            2: mapping(2, "NQZ5"),
        }


# ── what is safe ────────────────────────────────────────────────────────────────────────────────


def test_readers_of_the_log_see_what_is_synced_and_no_more(open_log: OpenLog) -> None:
    with open_log() as log:
        framer = begun()
        log.append(one_frame(trades(0, 10), framer))
        assert synced_blocks(log) == []
        assert log.synced < log.written
        log.sync()
        assert log.synced == log.written
        log.append(one_frame(trades(10, 10), framer))
        assert sequences(synced_blocks(log)) == list(range(10))


def test_the_log_syncs_by_itself(open_log: OpenLog) -> None:
    with open_log(sync_every_s=0.01) as log:
        log.append(one_frame(trades(0, 10), begun()))
        deadline = time.monotonic() + 60
        while log.synced != log.written:
            assert time.monotonic() < deadline, "nothing was synced"
            time.sleep(0.005)
        assert sequences(synced_blocks(log)) == list(range(10))


def test_without_an_interval_every_call_is_synced(open_log: OpenLog) -> None:
    with open_log(sync_every_s=0) as log:
        assert log.append(one_frame(trades(0, 10), begun())) == log.synced


# ── reading on ──────────────────────────────────────────────────────────────────────────────────


@settings(deadline=None)
@given(st.integers(0, 10**9), st.integers(0, 10**15))
def test_a_position_survives_as_text(segment: int, offset: int) -> None:
    position = Position(segment, offset)
    assert Position.parse(str(position)) == position


@pytest.mark.parametrize("text", ["", "17", "17:", ":5", "a:5", "-1:5", "1:5:6"])
def test_text_that_is_no_position_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write SEGMENT:OFFSET"):
        Position.parse(text)


@settings(deadline=None)
@given(
    batches=st.lists(st.tuples(st.integers(1, 300), st.booleans(), st.booleans()), min_size=1, max_size=15),
    block=st.integers(16, 20_000),
)
def test_a_reader_that_goes_on_from_its_position_sees_each_trade_once(
    tmp_path_factory: pytest.TempPathFactory, batches: list[tuple[int, bool, bool]], block: int
) -> None:
    root = tmp_path_factory.mktemp("capture")
    framer, written, synced, seen, cursor = begun(), 0, 0, [], BEGINNING
    with CaptureLog(root, DATASET, clock=Clock(), sync_every_s=3_600, segment_bytes=30_000) as log:
        for count, sync, read in batches:
            log.append(one_frame(trades(written, count), framer))
            written += count
            if sync:
                log.sync()
                synced = written
            if read:
                for part in tail(log.folder, Position.parse(str(cursor)), log.synced, block=block):
                    assert part.start >= cursor
                    seen += sequences([part])
                    cursor = part.end
                assert len(seen) >= synced
    for part in tail(log.folder, cursor, block=block):
        seen += sequences([part])
    assert seen == list(range(written))


def test_another_process_reads_whole_records_of_a_segment_that_grows(open_log: OpenLog) -> None:
    with open_log() as log:
        framer = begun()
        log.append(one_frame(trades(0, 10), framer))
        with list_segments(log.folder)[-1].path.open("ab") as half:  # as seen in the middle of a write
            half.write(trades(10, 1)[:20])
        (block,) = tail(log.folder)
        assert sequences([block]) == list(range(10))
        assert block.end == log.written


def test_a_position_beyond_the_log_is_an_error(open_log: OpenLog) -> None:
    with open_log(segment_bytes=5_000) as log:
        framer = begun()
        for number in range(3):
            log.append(one_frame(trades(100 * number, 100), framer))
    first, second, third = list_segments(log.folder)
    with pytest.raises(CaptureError, match="the file was cut"):
        list(tail(log.folder, Position(3, 1_000_000)))
    with pytest.raises(CaptureError, match=r"segment 4 .* is missing"):
        list(tail(log.folder, Position(4, 100)))
    second.path.unlink()
    with pytest.raises(CaptureError, match=r"segment 2 .* is missing"):
        list(tail(log.folder))
    os.truncate(first.path, first.path.stat().st_size - 1)
    with pytest.raises(CaptureError, match="ends within a record"):
        list(tail(log.folder))
    third.path.write_bytes(third.path.read_bytes()[:-48] + bytes(48))
    with pytest.raises(CaptureError, match="is damaged: no DBN record at byte"):
        list(tail(log.folder, Position(3, 0)))


def test_reading_a_large_log_takes_little_memory(open_log: OpenLog) -> None:
    with open_log() as log:
        framer, body = begun(), trades(0, 100_000)
        for _ in range(10):  # 48 MB
            log.append(one_frame(body, framer))
    count = 0
    tracemalloc.start()
    for block in tail(log.folder):
        count += len(block.frame)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 1_000_000
    assert peak < 8 * 1024 * 1024


# ── after a crash ───────────────────────────────────────────────────────────────────────────────


def test_a_tail_torn_at_any_byte_is_cut_at_the_last_whole_record(open_log: OpenLog) -> None:
    with open_log() as log:
        log.append(one_frame(trades(0, 3), begun()))
    (segment,) = list_segments(log.folder)
    whole = segment.path.read_bytes()
    for lost in range(48):
        segment.path.write_bytes(whole[: len(whole) - lost])
        found = recover(log.folder)
        kept = len(whole) - (48 if lost else 0)
        assert found is not None
        assert (found.kept, found.cut, found.aside) == (kept, len(whole) - lost - kept, None)
        assert segment.path.read_bytes() == whole[:kept]
        assert len(list(databento.DBNStore.from_file(segment.path))) == (2 if lost else 3)


@pytest.mark.parametrize(
    "rest", [bytes(5_000), b"\xff" * 100, b"\x0c\x63" * 40], ids=["zeros", "ones", "noise"]
)
def test_bytes_that_are_no_record_are_kept_aside(
    open_log: OpenLog, rest: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with open_log() as log:
        log.append(one_frame(trades(0, 3), begun()))
    (segment,) = list_segments(log.folder)
    whole = segment.path.read_bytes()
    segment.path.write_bytes(whole + rest)
    with open_log() as log:
        found = log.recovery
        assert found is not None
        assert (found.kept, found.cut) == (len(whole), len(rest))
        assert found.aside is not None
        assert found.aside.read_bytes() == rest
        assert found.aside.name in caplog.text
        assert segment.path.read_bytes() == whole
        log.append(one_frame(trades(3, 1), begun()))
        log.sync()
        assert sequences(synced_blocks(log)) == [0, 1, 2, 3]


def test_the_next_capture_goes_on_behind_what_the_last_one_left(open_log: OpenLog) -> None:
    with open_log() as log:
        assert log.recovery is None
        log.append(one_frame(trades(0, 3), begun()))
        end = log.written
    copy = list_segments(log.folder)[0].path.with_name(".half.dbn.0123.tmp")
    copy.write_bytes(b"half a segment, which another process is copying")
    with open_log() as log:
        assert copy.exists()
        assert log.synced == end
        assert sequences(synced_blocks(log)) == [0, 1, 2]
        log.append(one_frame(trades(3, 1), begun()))
        log.sync()
        assert sequences(synced_blocks(log, end)) == [3]
    assert [s.number for s in list_segments(log.folder)] == [1, 2]


def test_a_segment_without_a_readable_head_is_not_touched(open_log: OpenLog) -> None:
    with open_log() as log:
        log.append(one_frame(trades(0, 3), begun()))
    (segment,) = list_segments(log.folder)
    segment.path.write_bytes(b"no head at all")
    with pytest.raises(CaptureError, match="cannot be read"):
        open_log()
    assert segment.path.read_bytes() == b"no head at all"
    segment.path.unlink()
    with open_log() as log:
        assert np.array_equal(sequences(synced_blocks(log)), [])
