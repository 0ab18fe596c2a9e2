"""Spans, counts and the table of gaps."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nq_pipeline.capture.gap_store import GapStore
from nq_pipeline.capture.gaps import (
    Gap,
    RecordCount,
    compare_counts,
    earliest_replay,
    open_window,
    split_at_replay_limit,
    unproven_spans,
)
from nq_pipeline.clock import from_ns, to_ns
from nq_pipeline.lake.store import Lake
from nq_pipeline_tests.testing.dbn_streams import NOON, begun, mapping, one_frame, trades

OPENS, CLOSES = datetime(2025, 6, 10, 13, 30, tzinfo=UTC), datetime(2025, 6, 10, 20, tzinfo=UTC)
DAY = timedelta(days=1)


def ns(instant: datetime) -> int:
    return to_ns(instant)


def gap(first: int = 100, last: int | None = 200, **more: object) -> Gap:
    return Gap("g", "trades", first, last, "closed", **more)  # type: ignore[arg-type]


# ── windows ─────────────────────────────────────────────────────────────────────────────────────


def test_the_window_that_is_open_has_an_opening_and_a_close() -> None:
    assert open_window(OPENS, "rth") == (OPENS, CLOSES)
    assert open_window(CLOSES, "rth") is None
    assert open_window(CLOSES, "globex") == (
        OPENS.replace(minute=0) - timedelta(hours=15),
        CLOSES + timedelta(hours=1),
    )
    assert open_window(CLOSES, "always") == (OPENS.replace(minute=0) - timedelta(hours=15), None)


def test_the_gateway_replays_a_day_and_of_mbo_the_whole_week() -> None:
    friday = OPENS + 3 * DAY
    sunday = datetime(2025, 6, 8, 22, tzinfo=UTC)
    assert friday - DAY < from_ns(earliest_replay("trades", friday)) < friday - DAY + timedelta(minutes=2)
    assert earliest_replay("mbo", friday) == earliest_replay("mbo", sunday + timedelta(hours=1)) == ns(sunday)


def test_a_first_capture_misses_what_was_since_the_opening() -> None:
    assert unproven_spans(None, NOON, "rth") == [(ns(OPENS), None)]


def test_nothing_is_missed_outside_the_window() -> None:
    assert unproven_spans(ns(CLOSES), OPENS + DAY, "rth") == [(ns(OPENS + DAY), None)]
    assert unproven_spans(ns(CLOSES + timedelta(minutes=5)), CLOSES + timedelta(hours=2), "rth") == []


def test_what_is_proven_within_the_window_is_where_the_hole_begins() -> None:
    assert unproven_spans(ns(NOON), NOON + timedelta(hours=1), "rth") == [(ns(NOON), None)]


def test_whole_windows_that_were_missed_are_holes_of_their_own() -> None:
    assert unproven_spans(ns(NOON), NOON + 2 * DAY, "rth") == [
        (ns(NOON), ns(CLOSES)),
        (ns(OPENS + DAY), ns(CLOSES + DAY)),
        (ns(OPENS + 2 * DAY), None),
    ]


def test_a_weekend_is_no_hole() -> None:
    friday, monday = datetime(2025, 6, 13, 21, tzinfo=UTC), datetime(2025, 6, 15, 22, 0, 1, tzinfo=UTC)
    assert unproven_spans(ns(friday), monday, "globex") == [(ns(monday.replace(second=0)), None)]


def test_a_clock_that_went_back_begins_with_the_opening() -> None:
    assert unproven_spans(ns(NOON + DAY), NOON, "rth") == [(ns(OPENS), None)]


@given(
    st.integers(0, 8 * 24 * 3600), st.integers(0, 8 * 24 * 3600), st.sampled_from(["rth", "globex", "always"])
)
def test_holes_are_in_order_and_lie_between_what_is_proven_and_now(a: int, b: int, window: str) -> None:
    proven, now = (NOON + timedelta(seconds=s) for s in sorted((a, b)))
    found = unproven_spans(ns(proven), now, window)  # type: ignore[arg-type]
    edges = [edge for hole in found for edge in hole if edge is not None]
    assert edges == sorted(edges)
    assert all(ns(proven) <= edge <= ns(now) for edge in edges)
    assert all(last is not None for _, last in found[:-1])


# ── what can no longer be replayed ──────────────────────────────────────────────────────────────


def test_a_gap_across_the_replay_limit_is_split() -> None:
    before, across, after = gap(100, 200), gap(100, 400), gap(300, None)
    (lost,) = split_at_replay_limit([before], 300, "n")
    assert lost.state == "unfillable" and "historical API" in lost.reason and lost.revision == 1
    part, rest = split_at_replay_limit([across], 300, "n")
    assert (part.gap_id, part.first_ns, part.last_ns, part.state, part.revision) == (
        "n-0",
        100,
        300,
        "unfillable",
        0,
    )
    assert (rest.gap_id, rest.first_ns, rest.last_ns, rest.state) == ("g", 300, 400, "open")
    assert split_at_replay_limit([after], 300, "n") == []


def test_gaps_that_are_settled_are_left_alone() -> None:
    assert split_at_replay_limit([gap(state="verified"), gap(state="unfillable")], 1000, "n") == []


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 1000) | st.none())), st.integers(0, 2000))
def test_no_moment_of_a_gap_is_lost_when_it_is_divided(
    spans: list[tuple[int, int | None]], limit: int
) -> None:
    for first, length in spans:
        whole = gap(first, None if length is None else first + length)
        parts = sorted(split_at_replay_limit([whole], limit, "n") or [whole], key=lambda g: g.first_ns)
        assert parts[0].first_ns == first and parts[-1].last_ns == whole.last_ns
        assert all(a.last_ns == b.first_ns for a, b in pairwise(parts))


# ── counts ──────────────────────────────────────────────────────────────────────────────────────


@given(st.integers(0, 60), st.integers(0, 60), st.lists(st.integers(1, 20), max_size=5))
def test_a_count_is_of_the_span_by_instrument_however_the_frames_fall(
    a: int, b: int, sizes: list[int]
) -> None:
    first, last = ns(NOON) + min(a, b), ns(NOON) + max(a, b)
    count, framer, at, everything = RecordCount(0, first, last), begun(), 0, []
    for size in sizes:
        frame = one_frame(mapping(9, "NQU5") + trades(at, size), framer)
        everything.append(frame.array(0))
        count.add(frame)
        at += size
    records = (
        np.concatenate(everything)
        if everything
        else np.empty(0, [("ts_event", "u8"), ("instrument_id", "u4")])
    )
    inside = records[(records["ts_event"] >= first) & (records["ts_event"] < last)]
    ids, counts = np.unique(inside["instrument_id"], return_counts=True)
    assert dict(count.by_instrument) == dict(zip(ids.tolist(), counts.tolist(), strict=True))
    assert count.total == len(inside)


def test_other_schemas_are_not_counted() -> None:
    count = RecordCount(160, 0)
    count.add(one_frame(trades(0, 10), begun()))
    assert count.total == 0


def counted(*numbers: int) -> RecordCount:
    framer, count = begun(), RecordCount(0, 0)
    for number in numbers:
        count.add(one_frame(trades(number, 1), framer))
    return count


def test_two_replays_that_agree_verify_a_gap() -> None:
    verified = compare_counts(gap(state="replayed"), counted(1, 2, 3), counted(1, 2, 3))
    assert (verified.state, verified.replayed, verified.counted, verified.revision) == ("verified", 3, 3, 1)


@pytest.mark.parametrize("found", [(1, 2), (1, 2, 3, 4), (1, 2, 4)])
def test_two_replays_that_differ_in_any_instrument_leave_it_open(found: tuple[int, ...]) -> None:
    judged = compare_counts(gap(state="replayed"), counted(1, 2, 3), counted(*found))
    assert judged.state == "open" and judged.attempts == 1 and f"found {len(found)}" in judged.reason


# ── the table ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def store(tmp_path: Path) -> GapStore:
    return GapStore(Lake(tmp_path), dataset="GLBX.MDP3", run_id="r")


def test_the_highest_revision_is_read_back_whole(store: GapStore) -> None:
    first = Gap("g", "mbo", ns(NOON), None, "reset", "by peer")
    last = first.change(state="replayed", last_ns=ns(NOON) + 7).change(
        state="open", replayed=3, counted=4, attempts=1
    )
    store.write([first], NOON)
    store.write([last], NOON + DAY)
    assert store.gaps(NOON) == [last]
    assert store.gaps(NOON + DAY) == []


def test_a_state_written_twice_is_one_row(store: GapStore, tmp_path: Path) -> None:
    from nq_pipeline.lake.tables import GAPS

    for _ in range(2):
        store.write([Gap("g", "mbo", ns(NOON), None, "reset")], NOON)
    assert Lake(tmp_path).scan(GAPS).collect().height == 1


def test_another_datasets_gaps_are_not_ours(store: GapStore, tmp_path: Path) -> None:
    store.write([Gap("g", "mbo", ns(NOON), None, "reset")], NOON)
    assert GapStore(Lake(tmp_path), dataset="OPRA", run_id="r").gaps(NOON) == []
