"""The tracker of one session: what a replay brings, when it counts as whole, where a hole begins."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from nq_pipeline.capture.gap_store import GapStore
from nq_pipeline.capture.gap_tracker import GapTracker, last_moments
from nq_pipeline.capture.gaps import Gap, RecordCount
from nq_pipeline.capture.gateway import SessionState
from nq_pipeline.capture.log.writer import CaptureLog
from nq_pipeline.capture.reconnect_policy import EndReason, SessionEnd
from nq_pipeline.clock import NS_PER_S, to_ns
from nq_pipeline.dbn.framer import Frame
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.dbn_streams import Clock, begun, one_frame, record, trades
from nq_pipeline_tests.testing.feeds import DATASET, Feed

NOW = datetime(2025, 6, 13, 17, tzinfo=UTC)
OPENS = datetime(2025, 6, 13, 13, 30, tzinfo=UTC)
SETTLE_S = 1.0
NOW_NS, SETTLE_NS = to_ns(NOW), int(SETTLE_S * NS_PER_S)


def trade(at: int, instrument: int = 1) -> Frame:
    """A trade so many nanoseconds after `NOW`, received a microsecond later."""
    return one_frame(
        record(0, instrument_id=instrument, ts_event=NOW_NS + at, ts_recv=NOW_NS + at + 1_000), begun()
    )


def run_at_once(work: Callable[[], object]) -> None:
    work()


class Session:
    """A capture that starts late and its first session, of trades alone."""

    def __init__(
        self,
        root: Path,
        *,
        now: datetime = NOW,
        opens: datetime = OPENS,
        closes: datetime | None = None,
        run_id: str = "run",
    ) -> None:
        self.clock, self.wall, self.state, self.root = Clock(now), 0.0, SessionState(), root
        self.store = GapStore(Workspace(root).lake, dataset=DATASET, run_id=run_id)
        self.tracker = GapTracker(
            self.store,
            run_at_once,
            clock=self.clock,
            run_id=run_id,
            window="rth",
            opens_ns=to_ns(opens),
            close_ns=to_ns(closes) if closes else None,
            settle_s=SETTLE_S,
            aging_s=60.0,
        )
        self.tracker.load_gaps(root / DATASET, ["trades"])
        self.tracker.begin_session({"trades": 0})

    def take(self, *frames: Frame) -> int | None:
        return [self.tracker.track(frame, self.state) for frame in frames][-1]

    def completed(self) -> None:
        """The gateway calls the replay complete."""
        self.state.replayed["trades"] = to_ns(self.clock.now())

    def advance(self, *, wall: float = 0.0, market: float = 0.0) -> list[Gap]:
        self.wall += wall
        self.clock.instant += timedelta(seconds=market)
        return self.tracker.advance(self.state, self.wall)

    def replayed(self, *frames: Frame) -> Gap:
        """The gap after a replay of some records that has settled."""
        self.take(*frames or [trade(-5)])
        self.completed()
        assert self.advance() == []
        (gap,) = self.advance(wall=SETTLE_S, market=SETTLE_S)
        return gap

    def ended(self, how: EndReason, log: CaptureLog | None = None) -> int | None:
        return self.tracker.end_session(self.state, SessionEnd(how), log)  # type: ignore[arg-type]

    @property
    def hole(self) -> Gap:
        """The gap that was opened last."""
        return self.tracker.gaps[-1]


@pytest.fixture
def session(root: Path) -> Session:
    return Session(root)


def counted(gap: Gap, *frames: Frame) -> RecordCount:
    count = RecordCount(0, gap.first_ns, gap.last_ns)
    for frame in frames:
        count.add(frame)
    return count


# ── a replay ────────────────────────────────────────────────────────────────────────────────────


def test_a_replay_settles_by_wall_time_and_market_time(session: Session) -> None:
    session.completed()
    assert session.advance() == []
    assert [gap.state for gap in session.tracker.gaps] == ["replayed"]
    assert session.advance(wall=2 * SETTLE_S) == []
    session = Session(session.root / "other")
    session.completed()
    session.advance()
    assert session.advance(market=2 * SETTLE_S) == []
    assert len(session.advance(wall=SETTLE_S)) == 1


def test_what_comes_after_the_replay_is_not_counted_as_a_part_of_it(session: Session) -> None:
    before, after = trade(-5), trade(+5)
    session.take(before)
    session.completed()
    session.take(after)  # before anybody has looked at what was completed
    session.advance()
    (gap,) = session.advance(wall=SETTLE_S, market=SETTLE_S)
    judged = session.tracker.judge(gap, counted(gap, before, after))
    assert judged and (judged.state, judged.replayed, judged.counted) == ("verified", 1, 1)


def test_what_comes_after_the_close_is_no_part_of_the_gap(root: Path) -> None:
    closes = NOW - timedelta(seconds=1)
    session, inside, outside = Session(root, closes=closes), trade(-2 * NS_PER_S), trade(-5)
    gap = session.replayed(inside, outside)
    assert gap.last_ns == to_ns(closes)
    judged = session.tracker.judge(gap, counted(gap, inside, outside))
    assert judged and (judged.state, judged.replayed) == ("verified", 1)


def test_records_have_a_lag_once_the_replay_is_completed(session: Session) -> None:
    assert session.take(trade(-5)) is None
    session.completed()
    session.advance()
    assert session.take(trade(+5)) == NOW_NS + 5 + 1_000


def test_a_session_ended_before_settling_proves_nothing(session: Session) -> None:
    session.completed()
    session.advance()
    session.ended(EndReason.CLOSED)
    late = session.tracker.gaps[0]
    assert late.state == "open" and "just after the replay" in late.reason


# ── the second count ────────────────────────────────────────────────────────────────────────────


def test_a_gap_is_given_up_with_the_third_count_that_does_not_agree(session: Session) -> None:
    for attempt in (1, 2, 3):
        gap = session.replayed()
        judged = session.tracker.judge(gap, counted(gap))
        assert judged and (judged.state, judged.attempts) == ("open", attempt)
        assert session.tracker.fillable == (attempt < 3) != bool(session.tracker.beyond_replay)
        session.state = SessionState()
        session.tracker.begin_session({"trades": 0})


def test_a_count_of_what_is_replayed_anew_is_of_no_use(session: Session) -> None:
    gap = session.replayed()
    session.tracker.move_gaps("trades", ["mbp-1"], "refused")
    assert session.tracker.judge(gap, counted(gap, trade(-5))) is None
    session.tracker.mark_uncountable(gap)
    assert [gap.state for gap in session.tracker.gaps] == ["open"] and not session.tracker.beyond_replay


def test_an_uncountable_gap_goes_to_history(
    session: Session,
) -> None:
    session.tracker.mark_uncountable(session.replayed())
    (beyond,) = session.tracker.beyond_replay
    assert (beyond.state, beyond.replayed, beyond.filled_by) == ("unfillable", 1, "live replay")


# ── where a hole begins ─────────────────────────────────────────────────────────────────────────


def test_after_a_lost_connection_a_gap_begins_at_the_last_record(
    session: Session,
) -> None:
    session.replayed()
    session.take(trade(+2 * NS_PER_S))
    session.clock.instant += timedelta(seconds=60)
    session.state.heard_ns = NOW_NS + 50 * NS_PER_S
    assert session.ended(EndReason.CLOSED) == session.hole.first_ns == NOW_NS + 2 * NS_PER_S


def test_just_after_a_replay_a_gap_begins_earlier(session: Session) -> None:
    session.replayed(trade(-2 * NS_PER_S))
    assert session.ended(EndReason.RESET) == session.hole.first_ns == NOW_NS - SETTLE_NS


def test_a_session_we_end_leaves_no_gap(session: Session) -> None:
    session.replayed()
    session.take(trade(+2 * NS_PER_S))
    session.clock.instant = NOW + timedelta(seconds=60)
    session.state.heard_ns = NOW_NS + 50 * NS_PER_S
    before = len(session.tracker.gaps)
    assert session.ended(EndReason.STOPPED) == NOW_NS + 50 * NS_PER_S - SETTLE_NS
    assert len(session.tracker.gaps) == before


def test_a_gateway_whose_clock_is_ahead_proves_nothing_of_the_future(session: Session) -> None:
    session.replayed()
    session.state.heard_ns = NOW_NS + 50 * NS_PER_S
    assert session.ended(EndReason.STOPPED) == to_ns(session.clock.now()) - SETTLE_NS


def test_a_skip_gap_begins_at_the_last_record_before_it(session: Session) -> None:
    session.replayed()
    session.take(trade(+2 * NS_PER_S))
    session.state.skipped = "Skipped records"
    session.take(trade(+9 * NS_PER_S))
    session.ended(EndReason.SKIPPED)
    assert session.hole.first_ns == NOW_NS + 2 * NS_PER_S


def test_records_skipped_at_once_are_missing_since_the_opening(session: Session) -> None:
    session.state.skipped = "Skipped records"
    session.take(trade(-5))
    session.completed()
    session.ended(EndReason.SKIPPED)
    assert session.hole.first_ns == to_ns(OPENS)


def test_after_a_failed_disk_it_begins_at_what_was_synced(session: Session) -> None:
    session.replayed()
    with CaptureLog(session.root, DATASET, clock=Clock(NOW), sync_every_s=3_600) as log:
        framer = begun()
        for at in (2, 3):
            trade = record(0, ts_event=NOW_NS + at * NS_PER_S, ts_recv=NOW_NS + at * NS_PER_S)
            frame = one_frame(trade, framer)
            log.append(frame)
            session.take(frame)
            if at == 2:
                log.sync()
        session.ended(EndReason.FAILED, log)
    assert session.hole.first_ns == NOW_NS + 2 * NS_PER_S


def test_an_incomplete_replay_of_one_schema_proves_nothing(
    session: Session,
) -> None:
    session.tracker.begin_session({"trades": 0, "mbp-1": 1})
    session.take(trade(+5))
    session.completed()
    assert session.ended(EndReason.STOPPED) is None


@pytest.mark.parametrize("off_s", [83 * 86_400, 90, -90, -30 * 86_400])
def test_a_time_far_from_its_receipt_moves_no_hole(session: Session, off_s: int) -> None:
    session.replayed()
    at = NOW_NS + 3 * NS_PER_S
    wrong = record(0, instrument_id=1, ts_event=at + off_s * NS_PER_S, ts_recv=at)
    sound = record(0, instrument_id=1, ts_event=NOW_NS + 2 * NS_PER_S, ts_recv=NOW_NS + 2 * NS_PER_S)
    session.take(one_frame(sound + wrong, begun()), one_frame(wrong, begun()))
    session.ended(EndReason.CLOSED)
    assert session.hole.first_ns == NOW_NS + 2 * NS_PER_S


def test_a_replay_is_complete_no_later_than_reported(session: Session) -> None:
    session.take(trade(-5))
    session.state.replayed["trades"] = NOW_NS + 83 * 86_400 * NS_PER_S
    assert session.advance() == []
    (gap,) = session.advance(wall=SETTLE_S, market=SETTLE_S)
    assert (gap.state, gap.last_ns) == ("replayed", NOW_NS)
    assert session.ended(EndReason.CLOSED) == session.hole.first_ns <= NOW_NS


def test_a_clock_behind_the_gateways_shortens_no_gap(session: Session) -> None:
    """The replay of a short outage would else seem complete before the outage, and be verified unseen."""
    session.state.replayed["trades"] = done = NOW_NS + 2 * NS_PER_S
    session.advance()
    (gap,) = session.tracker.gaps
    assert (gap.state, gap.last_ns) == ("replayed", done)


def test_a_clock_far_behind_yields_to_the_gateways_records(session: Session) -> None:
    session.state.replayed["trades"] = done = NOW_NS + 1200 * NS_PER_S
    session.state.heard_ns = done + 5
    assert session.advance() == []
    session.state.heard_ns = done + SETTLE_NS
    (gap,) = session.advance(wall=SETTLE_S)
    assert (gap.state, gap.last_ns) == ("replayed", done)


def test_a_record_from_after_the_close_hides_no_hole(root: Path) -> None:
    session, far = Session(root, closes=NOW + timedelta(hours=1)), NOW_NS + 86_400 * NS_PER_S
    session.replayed()
    session.take(one_frame(record(0, ts_event=far, ts_recv=far), begun()))
    session.ended(EndReason.CLOSED)
    assert session.hole.first_ns == to_ns(session.clock.now()) and session.hole.last_ns is None


def test_an_open_gap_of_an_earlier_window_ends_with_it(root: Path) -> None:
    (before,) = Session(root).tracker.gaps
    assert before.last_ns is None
    day = timedelta(days=1)
    after = Session(root, now=NOW + day, opens=OPENS + day, run_id="next").tracker.gaps
    kept = next(gap for gap in after if gap.gap_id == before.gap_id)
    assert (kept.state, kept.last_ns) == ("open", to_ns(OPENS.replace(hour=20, minute=0)))


def test_nobody_resumes_from_after_the_receipt(session: Session) -> None:
    session.replayed()
    at = NOW_NS + 2 * NS_PER_S
    session.take(one_frame(record(0, ts_event=at + 50 * NS_PER_S, ts_recv=at), begun()))
    session.ended(EndReason.CLOSED)
    assert session.hole.first_ns == at


def test_a_replay_begins_where_its_first_record_was_received(session: Session) -> None:
    session.tracker.handle_too_old({"trades": to_ns(OPENS)}, None)
    since = NOW_NS - 600 * NS_PER_S
    for off_s in (-30 * 86_400, 83 * 86_400):
        session.take(one_frame(record(0, ts_event=since + off_s * NS_PER_S, ts_recv=since), begun()))
    assert session.tracker.replay_start("trades") == 0  # still not known
    session.take(one_frame(record(0, ts_event=since, ts_recv=since), begun()))
    lost, rest = sorted(session.tracker.gaps, key=lambda gap: gap.state == "open")
    assert (lost.state, lost.last_ns, rest.first_ns) == ("unfillable", *[since + 60 * NS_PER_S] * 2)


# ── from one capture to the next ────────────────────────────────────────────────────────────────


def test_the_next_capture_resets_the_attempts_of_a_gap(session: Session) -> None:
    (gap,) = session.tracker.gaps
    session.store.write([gap.change(attempts=3, reason="the counts differ")], NOW)
    (taken,) = Session(session.root, run_id="next").tracker.gaps
    assert (taken.gap_id, taken.state, taken.attempts) == (gap.gap_id, "open", 0)


def test_what_a_dead_capture_left_open_is_one_gap_until_the_close(session: Session) -> None:
    """`session` began on a Friday, and the next capture begins on Monday."""
    (friday,), days = session.tracker.gaps, timedelta(days=3)
    after = Session(session.root, now=NOW + days, opens=OPENS + days, run_id="next")
    spans = [(gap.gap_id, gap.first_ns, gap.last_ns) for gap in after.tracker.gaps]
    closes = to_ns(OPENS + timedelta(hours=6, minutes=30))
    assert spans == [(friday.gap_id, to_ns(OPENS), closes), ("next-1", to_ns(OPENS + days), None)]


def test_the_log_of_a_clock_that_is_behind_is_not_forgotten(root: Path) -> None:
    with Feed(root, clock=Clock(NOW)) as feed:
        feed.session(record(0, ts_event=NOW_NS + 2 * NS_PER_S, ts_recv=NOW_NS + 2 * NS_PER_S))
    (gap,) = Session(root).tracker.gaps
    assert (gap.first_ns, gap.cause) == (NOW_NS, "not running")


def test_the_next_capture_requests_lost_gaps_but_buys_none_twice(
    session: Session,
) -> None:
    (gap,) = session.tracker.gaps
    lost = gap.change(state="unfillable", last_ns=NOW_NS)
    session.store.write([lost], NOW)
    assert Session(session.root, run_id="next").tracker.beyond_replay == [lost]
    session.store.write([lost.change(filled_by="historical", cost_usd=Decimal(1))], NOW)
    assert Session(session.root, run_id="after").tracker.beyond_replay == []


def test_only_a_stopped_session_proves_its_last_moment(session: Session) -> None:
    nothing = dict.fromkeys(("gateway_session", "replay_from", "detail", "code", "missing"))
    for number, (ended, proven) in enumerate([("stopped", 5), ("failed", 9), ("stopped", None)]):
        row = {"session_key": f"s{number}", "started_at": NOW_NS, "ended_at": NOW_NS, "schemas": "trades"}
        proof = {"ended": ended, "proven_ts": proven, "records": 1, "bytes": 1}
        session.store.write_session({**nothing, **row, **proof}, NOW)
    assert session.store.proven(NOW - timedelta(days=1), NOW) == 5


def test_the_last_moment_is_that_of_the_newest_segment(root: Path) -> None:
    with Feed(root) as feed:
        feed.session(trades(100, 10))
        feed.session(trades(0, 10))
    last = one_frame(trades(9, 1), begun()).tallies[0].ts_event
    assert last_moments(root / DATASET, {"trades": 0, "mbo": 160}) == {"trades": last}


def test_a_time_far_from_its_receipt_is_not_the_last_moment(root: Path) -> None:
    with Feed(root) as feed:
        feed.session(trades(0, 10), record(0, ts_event=NOW_NS + 83 * 86_400 * NS_PER_S, ts_recv=NOW_NS))
    last = one_frame(trades(9, 1), begun()).tallies[0].ts_event
    assert last_moments(root / DATASET, {"trades": 0}) == {"trades": last}


def test_records_after_a_skip_prove_nothing(root: Path) -> None:
    """As after a kill between the gateway's message and the row of the gap."""
    skipped = record(21, code=7, err=b"skipped records after slow reading", is_last=1)
    with Feed(root) as feed:
        feed.session(trades(0, 10))
        feed.send(skipped)
        feed.send(trades(500, 10))
    last = one_frame(trades(9, 1), begun()).tallies[0].ts_event
    assert last_moments(root / DATASET, {"trades": 0}) == {"trades": last}
    with Feed(root) as feed:
        feed.session(trades(5, 30))  # the next session's replay
    last = one_frame(trades(34, 1), begun()).tallies[0].ts_event
    assert last_moments(root / DATASET, {"trades": 0}) == {"trades": last}
