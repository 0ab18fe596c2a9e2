"""When schedules run, and what they say when they don't."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import dagster as dg
import pytest

from nq_pipeline.configuration import build_settings
from nq_pipeline.market.sessions import CHICAGO, Window, session, sessions
from nq_pipeline.orchestration.resources import Vendors
from nq_pipeline.orchestration.schedules import chains_while_open, housekeeping_after_close
from nq_pipeline.schedule_policy import CADENCE, SCHEDULED, chain_tick, scheduled_for, trade_date_tick


def ct(text: str) -> datetime:
    """An instant from Chicago time."""
    return datetime.fromisoformat(text).replace(tzinfo=CHICAGO).astimezone(UTC)


@pytest.mark.parametrize(
    ("at", "window", "expected"),
    [
        ("2025-06-10 08:30", "rth", "2025-06-10"),
        ("2025-06-10 14:55", "rth", "2025-06-10"),
        ("2025-06-10 08:25", "rth", "before the open of 2025-06-10"),
        ("2025-06-10 15:00", "rth", "2025-06-10 closed at 15:00 CT"),
        ("2025-06-10 17:00", "globex", "2025-06-11"),
        ("2025-06-10 16:30", "globex", "2025-06-10 closed at 16:00 CT"),
        ("2025-06-10 16:30", "always", "2025-06-10 closed at 16:00 CT"),
        # Independence Day: the eve closes early, the day halts at noon and belongs to the next trade date
        ("2025-07-03 12:10", "rth", "2025-07-03"),
        ("2025-07-03 12:15", "rth", "2025-07-03 closed early at 12:15 CT"),
        ("2025-07-04 10:00", "rth", "2025-07-04 is a holiday"),
        ("2025-07-04 10:00", "globex", "2025-07-07"),
        ("2025-12-25 10:00", "globex", "2025-12-25 is a holiday"),
        # Sunday: nothing until 17:00, then Monday's session without regular hours
        ("2025-06-08 16:55", "globex", "2025-06-08 is a weekend day"),
        ("2025-06-08 17:00", "globex", "2025-06-09"),
        ("2025-06-08 17:00", "rth", "2025-06-08 is a weekend day"),
        # Good Friday with payrolls: trades until 08:15, so no regular hours
        ("2026-04-03 08:00", "globex", "2026-04-03"),
        ("2026-04-03 10:00", "rth", "2026-04-03 has no regular trading hours"),
        # Both sides of both changes of the clocks
        ("2025-03-07 08:30", "rth", "2025-03-07"),
        ("2025-03-10 08:30", "rth", "2025-03-10"),
        ("2025-10-31 08:30", "rth", "2025-10-31"),
        ("2025-11-03 08:30", "rth", "2025-11-03"),
        ("2025-11-03 08:25", "rth", "before the open of 2025-11-03"),
    ],
)
def test_chains_are_fetched_while_the_window_is_open(at: str, window: Window, expected: str) -> None:
    tick = chain_tick(ct(at), ct(at), window=window)
    if tick.trade_date is not None:
        assert (tick.trade_date.isoformat(), tick.reason) == (expected, "")
    else:
        assert tick.reason.startswith(expected)


def test_a_skip_says_when_the_window_opens_again() -> None:
    noon = ct("2025-07-04 12:00")
    assert chain_tick(noon, noon, window="rth").reason == (
        "2025-07-04 is a holiday; the next window (rth) opens Mon 2025-07-07 08:30 CT"
    )


@pytest.mark.parametrize(("day", "ticks"), [("2025-06-10", 78), ("2025-07-03", 45), ("2025-11-28", 45)])
def test_a_day_has_a_tick_for_every_five_regular_minutes(day: str, ticks: int) -> None:
    midnight = ct(f"{day} 00:00")
    all_day = [midnight + n * CADENCE for n in range(288)]
    asked = [t for t in all_day if chain_tick(t, t, window="rth").trade_date]
    assert len(asked) == ticks
    opens, closes = session(date.fromisoformat(day)).rth or (None, None)
    assert asked[0] == opens
    assert closes is not None and asked[-1] == closes - CADENCE


def test_no_tick_of_a_week_without_sessions_asks() -> None:
    saturday = ct("2025-06-07 00:00")
    assert not any(
        chain_tick(t, t, window="globex").trade_date
        for t in (saturday + n * CADENCE for n in range(2 * 288 - 7 * 12))
    )


def test_a_late_tick_after_an_outage_asks_nothing() -> None:
    scheduled = ct("2025-06-10 10:00")
    assert chain_tick(scheduled, scheduled + CADENCE, window="rth").trade_date is not None
    late = chain_tick(scheduled, scheduled + timedelta(minutes=42), window="rth")
    assert late.trade_date is None
    assert late.reason == "this tick is 42 min late, and vendors show only the current chain"


def test_a_pinned_clock_stops_every_schedule() -> None:
    now = ct("2025-06-10 10:00")
    for tick in (chain_tick(now, now, window="rth", pinned=now), trade_date_tick(now, pinned=now)):
        assert tick.trade_date is None
        assert tick.reason.startswith("NQ_NOW holds the clock at Tue 2025-06-10 10:00 CT")


def test_housekeeping_runs_in_the_evening_of_trade_dates_only() -> None:
    days = [date(2025, 1, 1) + timedelta(days=n) for n in range(365)]
    due = [tick.trade_date for d in days if (tick := trade_date_tick(ct(f"{d} 19:15"))).trade_date]
    assert due == [s.trade_date for s in sessions(days[0], days[-1])]


def test_a_run_that_waited_too_long_asks_for_the_present() -> None:
    scheduled = ct("2025-06-10 10:00")
    tag = scheduled.isoformat()
    assert scheduled_for(tag, scheduled + timedelta(minutes=4)) == scheduled
    assert scheduled_for(tag, scheduled + timedelta(hours=2)) is None
    assert scheduled_for(None, scheduled) is None


def test_schedules_skip_under_a_pinned_clock() -> None:
    pinned = Vendors(build_settings(now=datetime(2025, 6, 10, 15, tzinfo=UTC)))
    for schedule in (chains_while_open, housekeeping_after_close):
        context = dg.build_schedule_context(
            scheduled_execution_time=ct("2025-06-10 10:00"), resources={"vendors": pinned}
        )
        result = schedule(context)
        assert isinstance(result, dg.SkipReason)
        assert result.skip_message is not None and "NQ_NOW" in result.skip_message


def test_housekeeping_launches_one_run_per_trade_date() -> None:
    context = dg.build_schedule_context(
        scheduled_execution_time=ct("2025-06-10 19:15"), resources={"vendors": Vendors(build_settings())}
    )
    result = housekeeping_after_close(context)
    assert isinstance(result, dg.RunRequest)
    assert result.run_key == "2025-06-10"


def test_the_chain_schedule_passes_instant_and_partition() -> None:
    # The schedule follows the machine's clock, so this looks at a tick of right now.
    scheduled = datetime.now(UTC)
    context = dg.build_schedule_context(
        scheduled_execution_time=scheduled,
        resources={"vendors": Vendors(build_settings(chain_window="globex"))},
    )
    result = chains_while_open(context)
    tick = chain_tick(scheduled, scheduled, window="globex")
    if tick.trade_date is None:
        assert isinstance(result, dg.SkipReason)
    else:
        assert isinstance(result, dg.RunRequest)
        assert result.partition_key == tick.trade_date.isoformat()
        assert result.tags[SCHEDULED] == scheduled.isoformat()
