"""Whether to start a capture now: a pure decision, with a reason in words when not.

`orchestration/sensors.py` gathers the situation and acts on the decision. Three safeguards prevent a
second capture: this decision, the limit of the tag `nq/live_capture` in dagster.yaml, and the lease
`capture` with the lock of the capture log, the only one that also stops a capture from a terminal or
another Dagster.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING

from nq_pipeline.capture.log.locks import LockHolder
from nq_pipeline.market import sessions
from nq_pipeline.market.sessions import Window, describe_closure, in_chicago
from nq_pipeline.sources.databento.spec import DatabentoSettings

if TYPE_CHECKING:
    from nq_pipeline.settings import Settings

LIVE_CAPTURE_TAG, ATTEMPT_TAG = "nq/live_capture", "nq/attempt"
"""Run tags: the captured environment, of which no two runs may run at once; the attempt's number in its
trade date."""
SETTINGS_TAG, STOPPED_TAG = "nq/settings", "nq/stopped"
"""Run tags: the fingerprint of the settings; the error after which another attempt cannot help."""

STARTING_UP = timedelta(seconds=60)
"""How long a run may take from Dagster's "started" to its lease; without it, it is dead afterwards."""
NOT_BEGUN, TO_BEGIN = ("NOT_STARTED", "MANAGED", "STARTING"), timedelta(minutes=5)
"""How long a run may stay in these states before its launcher counts as gone. Dagster's own monitoring,
if enabled, ends most of them after three minutes. A queued run waits for a slot as long as it takes."""
FIRST_PAUSE, LONGEST_PAUSE = timedelta(seconds=30), timedelta(minutes=8)
"""The attempt after the first failure follows at once, later ones after pauses that double."""
MOST_FAILURES, WITHIN = 6, timedelta(minutes=30)
"""This many failures in this time are a fault that another attempt will not fix."""
UNFINISHED = ("NOT_STARTED", "MANAGED", "QUEUED", "STARTING", "STARTED", "CANCELING")


@dataclass(frozen=True, slots=True)
class Attempt:
    """A capture run; instants by the machine's clock."""

    run_id: str
    status: str  # Dagster's, which proves neither life nor death
    trade_date: str
    number: int = 0  # among the attempts of its trade date; 0 if it was launched by hand
    alive: bool = False  # whether its process holds its lease, on whichever machine
    changed: datetime | None = None  # when its status last changed
    started: datetime | None = None
    ended: datetime | None = None
    settings: str = ""  # their fingerprint
    stopped: str = ""  # why another attempt cannot help, if it ended so; known of the newest attempt only

    def is_dead(self, now: datetime) -> bool:
        """Whether Dagster believes that the run is alive or will be, and it is not."""
        if self.alive:
            return False
        if self.status in NOT_BEGUN:
            return self.changed is not None and now - self.changed >= TO_BEGIN
        return self.status == "STARTED" and (self.started is None or now - self.started >= STARTING_UP)


@dataclass(frozen=True, slots=True)
class Situation:
    """Everything that a decision depends on."""

    now: datetime  # by the machine's clock
    market: datetime  # by the clock that a capture would follow
    window: Window
    moved: bool = False  # whether those clocks differ: the sandbox has a market at any hour
    settings: str = ""  # the fingerprint of those in force
    attempts: Sequence[Attempt] = ()  # newest first
    holder: LockHolder | None = None
    pinned: datetime | None = None  # the instant of a pinned clock
    unconfigured: str = ""  # what has to be set before a capture is possible


@dataclass(frozen=True, slots=True)
class Decision:
    """The `dead` runs to report as failed, and the `trade_date` to capture now or the `reason` against it."""

    trade_date: date | None = None
    number: int = 0
    reason: str = ""
    dead: tuple[str, ...] = ()


def decide_capture(situation: Situation) -> Decision:
    """Keep exactly one capture running while the window is open; the first reason against a start counts."""
    now = situation.now
    dead = tuple(attempt.run_id for attempt in situation.attempts if attempt.is_dead(now))
    attempts = [
        replace(attempt, status="FAILURE", ended=now) if attempt.run_id in dead else attempt
        for attempt in situation.attempts
    ]
    day = sessions.trade_date(situation.market)
    today = [attempt for attempt in attempts if attempt.trade_date == day.isoformat()]
    reason = _not_wanted(situation) or _under_way(attempts) or _after(today, situation)
    if reason:
        return Decision(reason=reason, dead=dead)
    return Decision(day, 1 + max((attempt.number for attempt in today), default=0), dead=dead)


def settings_fingerprint(settings: Settings) -> str:
    """A digest that changes with every setting that can make a failed capture succeed; reveals none."""
    databento, capture = settings.vendor(DatabentoSettings), settings.capture
    key = databento.api_key.get_secret_value() if databento.api_key else None
    vendor = (databento.dataset, databento.gateway)
    wanted = (capture.window, capture.options_schema, capture.futures_schema, settings.products)
    parts = (settings.environment, *vendor, *wanted, key)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def _not_wanted(s: Situation) -> str:
    if s.pinned:
        held = in_chicago(s.pinned)
        return f"NQ_NOW holds the clock at {held}, and a capture needs a running clock; unset it"
    if s.unconfigured:
        return f"not configured: {s.unconfigured}"
    if s.holder:
        grew = s.holder.grew
        age = "" if grew is None else f", the log grew {_seconds(s.now - grew)} ago"
        process = f"process {s.holder.process}" if s.holder.process else "a process that is starting"
        process += f" on {s.holder.host}" if s.holder.host else ""
        return f"capturing since {in_chicago(s.holder.since)}, {process}{age}"
    if sessions.is_open(s.market, s.window):
        return ""
    opens = in_chicago(sessions.next_open(s.market, s.window))
    elsewhere = f"the stand-in's market is at {in_chicago(s.market)}: " if s.moved else ""
    return f"{elsewhere}{describe_closure(s.market, s.window)}; the next window ({s.window}) opens {opens}"


def _under_way(attempts: Sequence[Attempt]) -> str:
    for attempt in attempts:
        if attempt.status in UNFINISHED:
            doing = "is starting or sealing" if attempt.status == "STARTED" else f"is {attempt.status}"
            return f"run {attempt.run_id[:8]} {doing}"
    return ""


def _after(today: Sequence[Attempt], s: Situation) -> str:
    """Why the attempts of this trade date, newest first, rule out another one now."""
    if not today:
        return ""
    latest = today[0]
    run = f"run {latest.run_id[:8]}"
    if latest.status == "CANCELED":
        return (
            f"stopped by the operator ({run}); the next trade date is captured again; to capture "
            f"now, launch the partition {latest.trade_date} of databento/trades"
        )
    if latest.stopped and latest.settings == s.settings:
        return (
            f"ALERT: {run} ended for good: {latest.stopped}; the next attempt follows a change of settings, "
            f"on the next trade date, or by hand"
        )
    failed = [a.ended for a in today if a.status == "FAILURE" and a.ended and s.now - a.ended < WITHIN]
    if not failed or latest.status != "FAILURE":
        return ""
    minutes = WITHIN // timedelta(minutes=1)
    if len(failed) >= MOST_FAILURES:
        again = in_chicago(failed[-1] + WITHIN)
        return (
            f"ALERT: {len(failed)} attempts failed within {minutes} min, {run} last; see its error. "
            f"Next attempt at {again}, or by hand"
        )
    due = failed[0] + retry_pause(len(failed))
    if s.now < due:
        number = f"attempt {len(failed)} of {MOST_FAILURES} within {minutes} min"
        return f"{number} failed ({run}); the next follows in {_seconds(due - s.now)}"
    return ""


def retry_pause(failures: int) -> timedelta:
    """The pause after a number of failures in a row."""
    if failures <= 1:
        return timedelta()
    return min(FIRST_PAUSE * (1 << min(failures - 2, 16)), LONGEST_PAUSE)


def _seconds(duration: timedelta) -> str:
    return f"{max(round(duration.total_seconds()), 0)} s"
