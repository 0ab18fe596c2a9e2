"""Where a session's replays begin, as far as the gateway has shown what it still replays."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from nq_pipeline.capture.gap_store import GapStore
from nq_pipeline.capture.gap_tracker import OVERLAP_NS, GapTracker
from nq_pipeline.capture.gateway import SessionState
from nq_pipeline.capture.reconnect_policy import EndReason, SessionEnd
from nq_pipeline.clock import NS_PER_S, to_ns
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.dbn_streams import Clock, begun, one_frame, record

NOW = datetime(2025, 6, 13, 17, tzinfo=UTC)
OPENS = datetime(2025, 6, 13, 13, 30, tzinfo=UTC)
AGING_S = 60
SCHEMAS = ("mbo", "trades")


def at_once(work: Callable[[], object]) -> None:
    work()


@pytest.fixture
def tracker(root: Path) -> GapTracker:
    """Of a capture that starts late, options by mbo and futures by trades."""
    store = GapStore(Workspace(root).lake, dataset="GLBX.MDP3", run_id="run")
    made = GapTracker(
        store,
        at_once,
        clock=Clock(NOW),
        run_id="run",
        window="rth",
        opens_ns=to_ns(OPENS),
        close_ns=None,
        settle_s=1.0,
        aging_s=AGING_S,
    )
    made.load_gaps(root, SCHEMAS)
    made.give_up_aged(SCHEMAS)
    return made


def starts(tracker: GapTracker) -> dict[str, int]:
    return {schema: ns for schema in SCHEMAS if (ns := tracker.replay_start(schema)) is not None}


def test_a_late_start_is_replayed_from_the_opening(tracker: GapTracker) -> None:
    assert starts(tracker) == dict.fromkeys(SCHEMAS, to_ns(OPENS) - OVERLAP_NS)
    assert {gap.state for gap in tracker.gaps} == {"open"} and tracker.beyond_replay == []


def test_a_refused_start_first_blames_schemas_not_replayed_weekly(tracker: GapTracker) -> None:
    earliest = to_ns(OPENS + timedelta(hours=1))
    tracker.handle_too_old(starts(tracker), earliest)
    assert starts(tracker)["mbo"] < earliest < starts(tracker)["trades"] + OVERLAP_NS
    (lost,) = tracker.beyond_replay
    assert (lost.schema, lost.first_ns) == ("trades", to_ns(OPENS))
    tracker.handle_too_old(starts(tracker), earliest)  # said again, it can only be the other one
    assert {gap.schema for gap in tracker.beyond_replay} == {"trades", "mbo"}


def test_the_first_record_of_a_full_replay_shows_where_it_begins(
    tracker: GapTracker,
) -> None:
    tracker.handle_too_old(starts(tracker), None)
    assert starts(tracker) == dict.fromkeys(SCHEMAS, 0)
    tracker.begin_session({"mbo": 160, "trades": 0})
    first = to_ns(OPENS + timedelta(hours=2))
    tracker.track(one_frame(record(0, ts_event=first, ts_recv=first), begun()), SessionState())
    assert tracker.replay_start("trades") == first + AGING_S * NS_PER_S
    assert tracker.replay_start("mbo") == 0
    (lost,) = tracker.beyond_replay
    assert lost.state == "unfillable" and lost.last_ns == first + AGING_S * NS_PER_S


def test_where_all_there_is_is_nothing_all_before_the_replay_is_lost(tracker: GapTracker) -> None:
    tracker.handle_too_old(starts(tracker), None)
    tracker.begin_session({"trades": 0})
    done = to_ns(NOW)
    tracker.advance(SessionState(replayed={"trades": done}), 0.0)
    lost = [gap for gap in tracker.beyond_replay if gap.schema == "trades"]
    assert [(gap.first_ns, gap.last_ns) for gap in lost] == [(to_ns(OPENS), done)]


def test_a_dropped_schema_hands_its_gap_to_the_next(tracker: GapTracker) -> None:
    first = to_ns(NOW - timedelta(minutes=1))
    tracker.begin_session({"trades": 0})
    tracker.advance(SessionState(replayed={"mbo": first, "trades": first}), 0.0)
    tracker.end_session(SessionState(replayed={"trades": first}), SessionEnd(EndReason.CLOSED), None)  # type: ignore[arg-type]
    tracker.follow_schemas(["mbp-1"])
    assert {gap.schema for gap in tracker.unresolved} == {"mbp-1"}
    assert tracker.replay_start("mbp-1") == to_ns(OPENS) - OVERLAP_NS


def test_a_new_schema_gets_a_gap_where_the_others_have_theirs(tracker: GapTracker) -> None:
    tracker.begin_session(dict.fromkeys(SCHEMAS, 0))
    tracker.follow_schemas([*SCHEMAS, "mbp-1"])
    assert tracker.replay_start("mbp-1") == tracker.replay_start("trades")
    before = len(tracker.gaps)
    tracker.follow_schemas([*SCHEMAS, "mbp-1"])
    assert len(tracker.gaps) == before
