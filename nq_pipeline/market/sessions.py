"""CME sessions: the only place where a trade date is computed.

A session opens 17:00 America/Chicago the evening before its trade date and closes 16:00.
The hours come from pandas_market_calendars (`CME Globex Equity`), the trade dates from its
`CME_TradeDate`. This module corrects what both get wrong:

- Good Friday trades only when the monthly payrolls come out that day, until 08:15, and is
  then a trade date of its own (2021, 2023, 2026); otherwise it is closed (2024, 2025, 2027).
  The library has it open in every year.
- 2018-12-05 and 2025-01-09, national days of mourning, closed at 08:30 (CME press releases).
- Until 2021-06-25 trading paused from 15:15 to 15:30; the library's calendar has no pause.

No day before `FIRST_DAY` is supported: the holidays of those years were not checked, and the library
has a close of 16:00 where it was 16:15 until 2015-09-20.

Days on which the market opens but halts at noon (Martin Luther King, Presidents, Memorial,
Juneteenth, Independence, Labor, Thanksgiving) are not trade dates: their trades belong to the
next one, whose session then has several segments. Checked day by day for 2019 to 2027.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from nq_pipeline.clock import FIRST_DAY, LAST_DAY, from_ns, to_ns, unsupported_day
from nq_pipeline.errors import NoSession
from nq_pipeline.market.trading_hours import CHICAGO as CHICAGO
from nq_pipeline.market.trading_hours import SESSION_CLOSE, in_utc, trading_days

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Window = Literal["rth", "globex", "always"]

RTH_OPEN, RTH_CLOSE = time(8, 30), time(15, 0)
YEARS = range(FIRST_DAY.year - 1, LAST_DAY.year + 2)
"""Years with sessions: the supported ones, and one more at either end for the neighbouring sessions."""

_GOOD_FRIDAY_CLOSE = time(8, 15)
_EARLY_CLOSES = {date(2018, 12, 5): time(8, 30), date(2025, 1, 9): time(8, 30)}
_LAST_AFTERNOON_PAUSE = date(2021, 6, 25)
_AFTERNOON_PAUSE = (time(15, 15), time(15, 30))


@dataclass(frozen=True, slots=True)
class Session:
    """The trading of one trade date. All instants are aware and in UTC; every span excludes its end."""

    trade_date: date
    # The (open, close) spans in which the market trades, in order. More than one where a holiday halt rolls
    # into the next trade date, and with the former afternoon pause.
    segments: tuple[tuple[datetime, datetime], ...]
    rth: tuple[datetime, datetime] | None  # from 08:30 to 15:00 Chicago; None on 2026-04-03, for example

    @property
    def open(self) -> datetime:
        return self.segments[0][0]

    @property
    def close(self) -> datetime:
        return self.segments[-1][1]


def session(trade_date: date) -> Session:
    """The session of a trade date; `NoSession` if the day is not one."""
    if not is_trade_date(trade_date):
        raise NoSession(f"{trade_date} is not a CME trade date; take one from `sessions(start, end)`")
    return _year(trade_date.year).by_date[trade_date]


def sessions(start: date, end: date) -> list[Session]:
    """All sessions from `start` to `end`, both included, in order; years outside `YEARS` have none."""
    return [
        s
        for year in range(max(start.year, YEARS.start), min(end.year, YEARS.stop - 1) + 1)
        for s in _year(year).sessions
        if s.trade_date.year == year and start <= s.trade_date <= end
    ]


def previous_trade_date(day: date, *, with_rth: bool = False) -> date:
    """The trade date before a day; `with_rth` leaves out those without regular trading hours."""
    before = sessions(day - timedelta(days=12), day - timedelta(days=1))
    return next(s.trade_date for s in reversed(before) if s.rth or not with_rth)


def is_trade_date(day: date) -> bool:
    return day.year in YEARS and day in _year(day.year).by_date


def trade_date(instant: datetime) -> date:
    """The CME trade date an instant belongs to; pauses and weekends belong to the last session.

    A holiday halt belongs to the next trade date. Raises ValueError for an instant without a time zone
    or outside `YEARS`.
    """
    return current_session(instant).trade_date


def trade_dates(ts_ns: npt.NDArray[np.int64] | npt.NDArray[np.uint64]) -> npt.NDArray[np.datetime64]:
    """The trade date (datetime64[D]) of each instant (nanoseconds UTC), as `trade_date` gives it.

    Instants outside `YEARS`, including DBN's undefined timestamp, give NaT.
    """
    import numpy as np

    lowest, highest = (to_ns(datetime(year, 1, 1, tzinfo=UTC)) for year in (YEARS.start, YEARS.stop))
    known = (ts_ns >= lowest) & (ts_ns < highest)
    dates = np.full(ts_ns.shape, np.datetime64("NaT"), dtype="datetime64[D]")
    if known.any():
        inside = ts_ns[known].astype(np.int64)
        years = {from_ns(int(edge)).year for edge in (inside.min(), inside.max())}
        if len(years) > 1:  # no more years than occur: loading one takes a while
            each = np.unique(inside.astype("datetime64[ns]").astype("datetime64[Y]"))
            years = set((each.astype(np.int64) + 1970).tolist())
        opens, days = _opens(tuple(sorted(years)))
        dates[known] = days[np.searchsorted(opens, inside, side="right") - 1]
    return dates


def current_session(instant: datetime) -> Session:
    """The session that is open at the instant, or the last one before it."""
    return _sessions_from(instant)[0][0]


def is_open(instant: datetime, window: Window = "globex") -> bool:
    """Whether the market trades at the instant, within the window."""
    if window == "always":
        return True
    now = instant.astimezone(UTC)
    return any(start <= now < end for start, end in _spans(current_session(instant), window))


def next_open(instant: datetime, window: Window = "globex") -> datetime:
    """The first opening of the window strictly after the instant (`always` counts as `globex`)."""
    following, now = _sessions_from(instant)
    return next(start for s in following for start, _ in _spans(s, window) if start > now)


def next_boundary(instant: datetime) -> datetime:
    """The next instant at which the market opens or closes (any segment edge), strictly after."""
    following, now = _sessions_from(instant)
    return next(edge for s in following for span in s.segments for edge in span if edge > now)


def chain_moment(instant: datetime, window: Window = "rth") -> datetime:
    """The market moment of a chain requested at `instant`, in UTC.

    It is the instant itself, but no later than the close of the window in its session (the session's close
    if `rth` is empty; no limit for `always`). During a halt it is the close of the segment before.
    """
    now = instant.astimezone(UTC)
    if window == "always":
        return now
    current = current_session(instant)
    spans = _spans(current, window) or current.segments
    moment = min(now, spans[-1][1])
    ended = [end for _, end in current.segments if end <= moment]
    halted = not any(start <= moment < end for start, end in current.segments)
    return ended[-1] if halted and ended else moment


# ── loading the calendar ─────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Year:
    """The sessions of one year, the last one before and the first one after it."""

    sessions: tuple[Session, ...]
    opens: tuple[datetime, ...]
    by_date: dict[date, Session]


def _sessions_from(instant: datetime) -> tuple[tuple[Session, ...], datetime]:
    """The session that `current_session` returns and those after it in its year, and the instant in UTC."""
    if instant.tzinfo is None:
        raise ValueError(f"{instant} has no time zone, so its trade date is unknown; pass an aware datetime")
    now = instant.astimezone(UTC)
    if now.year not in YEARS:
        raise ValueError(unsupported_day(now.date()))
    year = _year(now.year)
    return year.sessions[bisect_right(year.opens, now) - 1 :], now


def _spans(s: Session, window: Window) -> tuple[tuple[datetime, datetime], ...]:
    if window == "rth":
        return (s.rth,) if s.rth else ()
    return s.segments


@lru_cache(maxsize=len(YEARS))
def _year(year: int) -> _Year:
    """A year of sessions, with a few weeks on either side to find the neighbouring sessions."""
    around = list(_load(date(year - 1, 12, 1), date(year + 1, 1, 31)))
    inside = [i for i, s in enumerate(around) if s.trade_date.year == year]
    loaded = tuple(around[inside[0] - 1 : inside[-1] + 2])
    return _Year(loaded, tuple(s.open for s in loaded), {s.trade_date: s for s in loaded})


def _load(start: date, end: date) -> Iterator[Session]:
    rolled: list[tuple[datetime, datetime]] = []
    for day, open_, close, is_counted in trading_days(start, end):
        if day in _EARLY_CLOSES:
            close = in_utc(day, _EARLY_CLOSES[day])
        good_friday = close == in_utc(day, _GOOD_FRIDAY_CLOSE)
        if good_friday and day != _april_payrolls(day.year):
            continue
        rolled += _without_pause(day, open_, close)
        if is_counted or good_friday or day in _EARLY_CLOSES:
            yield Session(day, tuple(rolled), _rth(day, open_, close))
            rolled = []


def _without_pause(day: date, open_: datetime, close: datetime) -> list[tuple[datetime, datetime]]:
    pause, resume = (in_utc(day, edge) for edge in _AFTERNOON_PAUSE)
    if day > _LAST_AFTERNOON_PAUSE or close <= pause:
        return [(open_, close)]
    return [(open_, pause), (resume, close)]


def _rth(day: date, open_: datetime, close: datetime) -> tuple[datetime, datetime] | None:
    start, end = max(open_, in_utc(day, RTH_OPEN)), min(close, in_utc(day, RTH_CLOSE))
    return (start, end) if start < end else None


def _april_payrolls(year: int) -> date:
    """The Employment Situation for March: the third Friday after the week that holds March 12.

    This rule of the Bureau of Labor Statistics gives every Good Friday on which CME traded (2010, 2012,
    2015, 2021, 2023, 2026) and no other.
    """
    twelfth = date(year, 3, 12)
    saturday = twelfth + timedelta(days=(5 - twelfth.weekday()) % 7)
    return saturday + timedelta(days=20)


@lru_cache(maxsize=8)
def _opens(years: tuple[int, ...]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.datetime64]]:
    """Opening instants and trade dates of some years, in order, and the neighbours of each."""
    import numpy as np

    found = {s.trade_date: s for year in years for s in _year(year).sessions}
    opens = np.array([to_ns(s.open) for s in found.values()], dtype=np.int64)
    return opens, np.array(list(found), dtype="datetime64[D]")


def in_chicago(moment: datetime) -> str:
    """An instant as text in Chicago time: `Tue 2025-06-10 10:00 CT`."""
    return moment.astimezone(CHICAGO).strftime("%a %Y-%m-%d %H:%M CT")


def describe_closure(instant: datetime, window: Window) -> str:
    """Why the window is closed at an instant: `2025-07-03 closed early at 12:15 CT`."""
    local = instant.astimezone(CHICAGO)
    day = local.date()
    if not is_trade_date(day):
        return describe_closed_day(day)
    hours = session(day)
    if window == "rth" and hours.rth is None:
        return f"{day} has no regular trading hours"
    opens, closes = hours.rth if window == "rth" and hours.rth else (hours.open, hours.close)
    if instant < opens:
        return f"before the open of {day}"
    closed = closes.astimezone(CHICAGO).time()
    early = closed < (RTH_CLOSE if window == "rth" else SESSION_CLOSE)
    return f"{day} closed {'early ' if early else ''}at {closed:%H:%M} CT"


def describe_closed_day(day: date) -> str:
    return f"{day} is a {'weekend day' if day.weekday() >= 5 else 'holiday'}"
