"""Where a session's replays begin, as far as the gateway has shown what it still replays."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from nq_pipeline.capture.gap_tracker import OVERLAP_NS, GapTracker
from nq_pipeline.capture.gaps import GapStore
from nq_pipeline.capture.gateway import SessionState
from nq_pipeline.capture.reconnect_policy import EndReason, SessionEnd
from nq_pipeline.clock import NS_PER_S, to_ns
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.dbn_streams import (
    Clock,
    begun,
    one_frame,
    record,
)

NOW = datetime(2025, 6, 13, 17, tzinfo=UTC)
OPENS = datetime(2025, 6, 13, 13, 30, tzinfo=UTC)
AGING_S = 60
SCHEMAS = ("mbo", "trades")


def at_once(work: Callable[[], object]) -> None:
    work()


@pytest.fixture
def accounts(root: Path) -> GapTracker:
    """Of a capture that starts late, options by mbo and futures by trades."""
    book = GapStore(Workspace(root).lake, dataset="GLBX.MDP3", environment="sandbox", run_id="run")
    made = GapTracker(
        book,
        at_once,
        clock=Clock(NOW),
        run_id="run",
        window="rth",
        opens_ns=to_ns(OPENS),
        close_ns=None,
        settle_s=1.0,
        aging_s=AGING_S,
    )
    made.find(root, SCHEMAS)
    made.reach(SCHEMAS)
    return made


def starts(accounts: GapTracker) -> dict[str, int]:
    return {schema: ns for schema in SCHEMAS if (ns := accounts.starts(schema)) is not None}


def test_a_late_start_is_replayed_from_the_opening(accounts: GapTracker) -> None:
    assert starts(accounts) == dict.fromkeys(SCHEMAS, to_ns(OPENS) - OVERLAP_NS)
    assert {gap.state for gap in accounts.gaps} == {"open"} and accounts.beyond == []


def test_a_refusal_is_not_meant_of_the_schema_that_is_replayed_for_a_week(accounts: GapTracker) -> None:
    earliest = to_ns(OPENS + timedelta(hours=1))
    accounts.start_later(starts(accounts), earliest)
    assert starts(accounts)["mbo"] < earliest < starts(accounts)["trades"] + OVERLAP_NS
    (lost,) = accounts.beyond
    assert (lost.schema, lost.first_ns) == ("trades", to_ns(OPENS))
    accounts.start_later(starts(accounts), earliest)  # said again, it can only be the other one
    assert {gap.schema for gap in accounts.beyond} == {"trades", "mbo"}


def test_without_a_time_all_there_is_is_asked_for_and_its_first_record_says_where_it_begins(
    accounts: GapTracker,
) -> None:
    accounts.start_later(starts(accounts), None)
    assert starts(accounts) == dict.fromkeys(SCHEMAS, 0)
    accounts.begin({"mbo": 160, "trades": 0})
    first = to_ns(OPENS + timedelta(hours=2))
    accounts.take(one_frame(record(0, ts_event=first, ts_recv=first), begun()), SessionState())
    assert accounts.starts("trades") == first + AGING_S * NS_PER_S
    assert accounts.starts("mbo") == 0
    (lost,) = accounts.beyond
    assert lost.state == "unfillable" and lost.last_ns == first + AGING_S * NS_PER_S


def test_where_all_there_is_is_nothing_all_before_the_replay_is_lost(accounts: GapTracker) -> None:
    accounts.start_later(starts(accounts), None)
    accounts.begin({"trades": 0})
    done = to_ns(NOW)
    accounts.advance(SessionState(replayed={"trades": done}), 0.0)
    lost = [gap for gap in accounts.beyond if gap.schema == "trades"]
    assert [(gap.first_ns, gap.last_ns) for gap in lost] == [(to_ns(OPENS), done)]


def test_a_schema_that_is_streamed_no_longer_leaves_its_gap_to_the_next(accounts: GapTracker) -> None:
    first = to_ns(NOW - timedelta(minutes=1))
    accounts.begin({"trades": 0})
    accounts.advance(SessionState(replayed={"mbo": first, "trades": first}), 0.0)
    accounts.end(SessionState(replayed={"trades": first}), SessionEnd(EndReason.CLOSED), None)  # type: ignore[arg-type]
    accounts.follow(["mbp-1"])
    assert {gap.schema for gap in accounts.unresolved} == {"mbp-1"}
    assert accounts.starts("mbp-1") == to_ns(OPENS) - OVERLAP_NS


def test_a_schema_that_is_new_has_a_gap_from_where_the_others_have_theirs(accounts: GapTracker) -> None:
    accounts.begin(dict.fromkeys(SCHEMAS, 0))
    accounts.follow([*SCHEMAS, "mbp-1"])
    assert accounts.starts("mbp-1") == accounts.starts("trades")
    before = len(accounts.gaps)
    accounts.follow([*SCHEMAS, "mbp-1"])
    assert len(accounts.gaps) == before
