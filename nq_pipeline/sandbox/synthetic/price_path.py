"""The level and volatility of the index at any instant, computed directly.

The index is a Brownian bridge between the closes of consecutive trade dates, in trading time: three
times as fast in regular hours, and still while the market is closed. The closes follow a slower walk
over calendar days that returns near `LEVEL` every 512 days.
"""

from __future__ import annotations

from datetime import date, timedelta
from functools import lru_cache
from typing import Any

import numpy as np

from nq_pipeline.clock import from_ns, to_ns
from nq_pipeline.market import sessions
from nq_pipeline.sandbox.synthetic.hashed_random import Floats, brownian_bridge, mix, normal

LEVEL = 21_500.0
"""Index points around which the path wanders."""
DAY_NS = 86_400_000_000_000

_DAY_SIGMA, _SESSION_SIGMA = 0.009, 0.010
_BLOCK_DAYS, _VOLATILITY_DAYS = 512, 256
# Each use of random numbers has its own stream, so that none repeats another. Below 10 here.
_BLOCK, _DAILY, _INTRADAY, _VOLATILITY = range(4)


def index(seed: int, ts_ns: Any) -> Floats:
    """The Nasdaq-100 index at instants (nanoseconds UTC); it stands still while the market is closed."""
    ts = np.atleast_1d(np.asarray(ts_ns, np.int64))
    knots, elapsed, days = _timeline(from_ns(int(ts.min())).year, from_ns(int(ts.max())).year)
    session, share = np.divmod(np.interp(ts, knots, elapsed), 1.0)
    today = np.minimum(session.astype(np.int64) + 1, len(days) - 1)
    start, end = log_close(seed, days[today - 1]), log_close(seed, days[today])
    walk = _SESSION_SIGMA * brownian_bridge(mix(seed, _INTRADAY, days[today]), share, 15)
    return np.asarray(np.exp(start + (end - start) * share + walk), np.float64)


def log_close(seed: int, day: Any) -> Floats:
    """Log of the index at the close of a day, days counted from 1970."""
    block, inside = np.divmod(np.asarray(day, np.int64), _BLOCK_DAYS)
    share = inside / _BLOCK_DAYS
    left, right = normal(seed, _BLOCK, block), normal(seed, _BLOCK, block + 1)
    walk = brownian_bridge(mix(seed, _DAILY, block), share, 9) + 0.25 * (left + (right - left) * share)
    return np.asarray(np.log(LEVEL) + _DAY_SIGMA * np.sqrt(_BLOCK_DAYS) * walk, np.float64)


def volatility(seed: int, ts: Any) -> Floats:
    """At-the-money volatility of far expirations, which drifts over weeks."""
    share = np.asarray(ts, np.float64) / (_VOLATILITY_DAYS * DAY_NS)
    block = np.floor(share).astype(np.int64)
    return np.asarray(0.20 * np.exp(0.8 * brownian_bridge(mix(seed, _VOLATILITY, block), share - block, 6)))


def session_knots(session: sessions.Session) -> tuple[Any, Any]:
    """The edges of a session's segments and regular hours, and the share of trading time at each."""
    edges = {to_ns(edge) for segment in session.segments for edge in segment}
    if session.rth:
        edges |= {to_ns(edge) for edge in session.rth}
    at = np.array(sorted(edges), np.int64)
    middle = (at[1:] + at[:-1]) // 2
    weight = np.zeros(len(middle))
    for start, end in session.segments:
        weight[(middle >= to_ns(start)) & (middle < to_ns(end))] = 1.0
    if session.rth:
        weight[(middle >= to_ns(session.rth[0])) & (middle < to_ns(session.rth[1]))] = 3.0
    passed = np.concatenate([[0.0], np.cumsum(weight * np.diff(at))])
    return at, passed / passed[-1]


def in_rth(ts: Any) -> Any:
    """Whether each instant (nanoseconds UTC) lies in regular trading hours."""
    first, last = from_ns(int(np.min(ts))), from_ns(int(np.max(ts)))
    spans = [
        s.rth for s in sessions.sessions(first.date() - timedelta(4), last.date() + timedelta(1)) if s.rth
    ]
    edges = np.array([to_ns(edge) for span in spans for edge in span], np.int64)
    return np.searchsorted(edges, ts, side="right") % 2 == 1


def day_number(day: date) -> int:
    """Days since 1970-01-01."""
    return (day - date(1970, 1, 1)).days


@lru_cache(maxsize=16)
def _timeline(first: int, last: int) -> tuple[Any, Any, Any]:
    """Instants, the number of sessions passed at each, and the sessions' days since 1970."""
    trading = sessions.sessions(date(first - 1, 12, 1), date(last + 1, 1, 15))
    knots, elapsed = [], []
    for ordinal, session in enumerate(trading[1:]):
        at, share = session_knots(session)
        knots.append(at)
        elapsed.append(ordinal + share)
    days = np.array([day_number(s.trade_date) for s in trading])
    return np.concatenate(knots), np.concatenate(elapsed), days
