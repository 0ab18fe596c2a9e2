"""How long an answer may be served again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from nq_pipeline.clock import PinnedClock, SystemClock
from nq_pipeline.market import sessions
from nq_pipeline.transport.lifetime import Keep, Lifetime

OPEN = datetime(2025, 6, 10, 15, 0, tzinfo=UTC)
PAUSE = datetime(2025, 6, 10, 21, 10, tzinfo=UTC)
SATURDAY = datetime(2025, 6, 14, 12, 0, tzinfo=UTC)
LIFETIME = Lifetime(SystemClock(), open_s=300, closed_s=1800)


@pytest.mark.parametrize(
    ("scheduled", "expires"),
    [
        (OPEN, OPEN + timedelta(seconds=300)),
        (SATURDAY, SATURDAY + timedelta(seconds=1800)),
        # Never past the next opening or closing.
        (datetime(2025, 6, 10, 20, 58, tzinfo=UTC), datetime(2025, 6, 10, 21, 0, tzinfo=UTC)),
        (datetime(2025, 6, 10, 21, 55, tzinfo=UTC), datetime(2025, 6, 10, 22, 0, tzinfo=UTC)),
        (datetime(2025, 6, 15, 21, 59, tzinfo=UTC), datetime(2025, 6, 15, 22, 0, tzinfo=UTC)),
    ],
)
def test_age_counts_from_the_schedule_up_to_a_boundary(scheduled: datetime, expires: datetime) -> None:
    assert LIFETIME.expires(Keep.MARKET, scheduled) == expires


def test_two_ticks_of_a_schedule_never_share_an_answer() -> None:
    for tick in (OPEN + timedelta(minutes=5 * n) for n in range(20)):
        expires = LIFETIME.expires(Keep.MARKET, tick)
        assert expires is not None and expires <= tick + timedelta(minutes=5)


@pytest.mark.parametrize("scheduled", [OPEN, PAUSE, SATURDAY])
def test_trade_date_lifetime_ends_at_the_next_open(scheduled: datetime) -> None:
    expires = LIFETIME.expires(Keep.TRADE_DATE, scheduled)
    assert expires is not None and expires > scheduled
    assert sessions.trade_date(expires) > sessions.trade_date(scheduled)
    assert sessions.trade_date(expires - timedelta(seconds=1)) == sessions.trade_date(scheduled)


def test_what_is_never_kept_has_no_end() -> None:
    assert LIFETIME.expires(Keep.NEVER, OPEN) is None


@pytest.mark.parametrize(("instant", "seconds"), [(OPEN, 300), (SATURDAY, 1800), (PAUSE, 1800)])
def test_pinned_clock_uses_the_frozen_market_state(instant: datetime, seconds: int) -> None:
    before = datetime.now(UTC)
    expires = Lifetime(PinnedClock(instant), open_s=300, closed_s=1800).expires(Keep.MARKET, instant)
    after = datetime.now(UTC)
    assert expires is not None
    assert before <= expires - timedelta(seconds=seconds) <= after
