"""When a capture is started, and what is said when it is not: every branch of the decision."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nq_pipeline.capture.capture_policy import (
    Attempt,
    Situation,
    decide_capture,
    retry_pause,
    settings_fingerprint,
)
from nq_pipeline.capture.log.locks import LockHolder
from nq_pipeline.configuration import build_settings
from nq_pipeline.market.sessions import CHICAGO

NOW = datetime(2025, 6, 10, 10, 0, tzinfo=CHICAGO).astimezone(UTC)
DAY = "2025-06-10"
UNFINISHED = ("NOT_STARTED", "MANAGED", "QUEUED", "STARTING", "STARTED", "CANCELING")
OPEN = Situation(now=NOW, market=NOW, window="rth", settings="a")


def ago(**duration: float) -> datetime:
    return NOW - timedelta(**duration)


def failed(number: int = 1, *, ended: datetime = NOW - timedelta(seconds=1), **more: Any) -> Attempt:
    return Attempt(f"run{number}-of-many", "FAILURE", DAY, number, started=ago(hours=1), ended=ended, **more)


def started(**more: Any) -> Attempt:
    return Attempt("run1-of-many", "STARTED", DAY, 1, **{"started": ago(minutes=10), **more})


def reason(**situation: Any) -> str:
    decision = decide_capture(replace(OPEN, **situation))
    assert decision.trade_date is None
    return decision.reason


def test_an_open_window_without_a_capture_starts_one() -> None:
    decision = decide_capture(OPEN)
    assert (decision.trade_date, decision.number, decision.reason) == (date(2025, 6, 10), 1, "")
    assert decision.dead == ()


def test_a_closed_window_is_a_reason_with_the_next_open() -> None:
    evening = datetime(2025, 6, 10, 16, 30, tzinfo=CHICAGO)
    assert reason(now=evening, market=evening) == (
        "2025-06-10 closed at 15:00 CT; the next window (rth) opens Wed 2025-06-11 08:30 CT"
    )
    assert decide_capture(replace(OPEN, market=evening, window="always")).trade_date == date(2025, 6, 10)


def test_the_market_decides_and_not_the_machine_s_clock() -> None:
    sunday = datetime(2025, 6, 8, 12, tzinfo=CHICAGO)
    assert decide_capture(replace(OPEN, now=sunday, moved=True)).trade_date == date(2025, 6, 10)
    evening = datetime(2025, 6, 10, 16, 30, tzinfo=CHICAGO)
    assert reason(now=sunday, market=evening, moved=True).startswith(
        "the stand-in's market is at Tue 2025-06-10 16:30 CT: 2025-06-10 closed at 15:00 CT"
    )


def test_a_pinned_clock_or_missing_key_prevents_a_start() -> None:
    assert reason(pinned=NOW).startswith("NQ_NOW holds the clock at Tue 2025-06-10 10:00 CT")
    assert reason(unconfigured="set DATABENTO_API_KEY") == "not configured: set DATABENTO_API_KEY"


def test_whoever_captures_is_named_with_the_age_of_what_came_last() -> None:
    holder = LockHolder(4711, ago(hours=1), ago(seconds=3))
    assert reason(holder=holder) == (
        "capturing since Tue 2025-06-10 09:00 CT, process 4711, the log grew 3 s ago"
    )
    assert reason(holder=LockHolder(0, NOW)).endswith("a process that is starting")


def test_a_capture_filling_gaps_after_the_close_is_left_alone() -> None:
    evening = datetime(2025, 6, 10, 15, 10, tzinfo=CHICAGO)
    assert reason(now=evening, market=evening, holder=LockHolder(1, evening)).startswith("capturing since")


@pytest.mark.parametrize("status", ["NOT_STARTED", "MANAGED", "QUEUED", "STARTING", "CANCELING"])
def test_a_run_that_is_on_its_way_is_waited_for(status: str) -> None:
    on_its_way = Attempt("run1-of-many", status, "2025-06-09", 1)
    assert reason(attempts=[on_its_way]) == f"run run1-of- is {status}"


def test_a_run_whose_process_lives_is_starting_or_sealing() -> None:
    assert reason(attempts=[started(alive=True)]) == "run run1-of- is starting or sealing"
    assert decide_capture(replace(OPEN, attempts=[started(alive=True)])).dead == ()


def test_a_run_that_has_just_been_started_may_not_have_its_lock_yet() -> None:
    new = started(started=ago(seconds=59))
    decision = decide_capture(replace(OPEN, attempts=[new]))
    assert decision.dead == () and decision.reason == "run run1-of- is starting or sealing"


def test_a_dead_run_is_reported_and_replaced_at_once() -> None:
    decision = decide_capture(replace(OPEN, attempts=[started()]))
    assert decision.dead == ("run1-of-many",)
    assert (decision.trade_date, decision.number) == (date(2025, 6, 10), 2)


@pytest.mark.parametrize("status", ["NOT_STARTED", "MANAGED", "STARTING"])
def test_a_run_that_never_begins_is_waited_for_until_it_is_too_old(status: str) -> None:
    young = Attempt("run1-of-many", status, DAY, 1, changed=ago(minutes=4, seconds=59))
    assert reason(attempts=[young]) == f"run run1-of- is {status}"
    decision = decide_capture(replace(OPEN, attempts=[replace(young, changed=ago(minutes=5))]))
    assert decision.dead == ("run1-of-many",)
    assert (decision.trade_date, decision.number) == (date(2025, 6, 10), 2)


@pytest.mark.parametrize("status", ["QUEUED", "CANCELING"])
def test_a_queued_or_canceling_run_is_left_to_dagster(status: str) -> None:
    waiting = Attempt("run1-of-many", status, DAY, 1, changed=ago(days=1))
    assert reason(attempts=[waiting]) == f"run run1-of- is {status}"


def test_a_dead_run_is_reported_even_when_nothing_is_to_be_started() -> None:
    for other in (
        {"pinned": NOW},
        {"unconfigured": "set a key"},
        {"holder": LockHolder(1, NOW)},
        {"market": datetime(2025, 6, 10, 16, 30, tzinfo=CHICAGO)},
    ):
        decision = decide_capture(replace(OPEN, attempts=[started()], **other))
        assert decision.dead == ("run1-of-many",) and decision.trade_date is None


def test_a_canceled_capture_stays_stopped_for_its_trade_date() -> None:
    stopped = Attempt("run1-of-many", "CANCELED", DAY, 1, ended=ago(hours=1))
    why = reason(attempts=[stopped])
    assert "stopped by the operator" in why and "partition 2025-06-10" in why
    tomorrow = NOW + timedelta(days=1)
    assert decide_capture(replace(OPEN, now=tomorrow, market=tomorrow, attempts=[stopped])).number == 1


def test_after_a_run_by_hand_the_sensor_looks_after_the_capture_again() -> None:
    by_hand = failed(0, ended=ago(seconds=1))
    stopped = Attempt("run1-of-many", "CANCELED", DAY, 1, ended=ago(hours=1))
    assert decide_capture(replace(OPEN, attempts=[by_hand, stopped])).number == 2


def test_a_final_error_waits_for_changed_settings() -> None:
    refused = failed(1, ended=ago(hours=2), settings="a", stopped="Databento refuses the key")
    why = reason(attempts=[refused])
    assert why.startswith("ALERT: run run1-of- ended for good: Databento refuses the key")
    assert decide_capture(replace(OPEN, attempts=[refused], settings="b")).number == 2
    tomorrow = NOW + timedelta(days=1)
    assert decide_capture(replace(OPEN, now=tomorrow, market=tomorrow, attempts=[refused])).number == 1


def test_failures_are_followed_after_growing_pauses() -> None:
    assert decide_capture(replace(OPEN, attempts=[failed(1)])).number == 2
    twice = [failed(2), failed(1)]
    assert reason(attempts=twice) == (
        "attempt 2 of 6 within 30 min failed (run run2-of-); the next follows in 29 s"
    )
    later = [replace(twice[0], ended=ago(seconds=30)), twice[1]]
    assert decide_capture(replace(OPEN, attempts=later)).number == 3


def test_too_many_failures_alert_until_they_are_old() -> None:
    many = [failed(number, ended=ago(minutes=7 - number)) for number in (6, 5, 4, 3, 2, 1)]
    why = reason(attempts=many)
    assert why.startswith("ALERT: 6 attempts failed within 30 min")
    assert "Tue 2025-06-10 10:24 CT" in why
    old = [failed(number, ended=ago(minutes=37 - number)) for number in (6, 5, 4, 3, 2, 1)]
    assert decide_capture(replace(OPEN, attempts=old)).number == 7


def test_a_successful_attempt_in_an_open_window_is_followed() -> None:
    segment = Attempt("run1-of-many", "SUCCESS", DAY, 1, ended=ago(hours=1))
    assert decide_capture(replace(OPEN, attempts=[segment, failed(0)])).number == 2


@given(st.integers(0, 60))
def test_pauses_grow_and_are_bounded(failures: int) -> None:
    assert timedelta() <= retry_pause(failures) <= retry_pause(failures + 1) <= timedelta(minutes=8)


ATTEMPTS = st.builds(
    Attempt,
    run_id=st.uuids().map(str),
    status=st.sampled_from([*UNFINISHED, "SUCCESS", "FAILURE", "CANCELED"]),
    trade_date=st.sampled_from([DAY, "2025-06-09"]),
    number=st.integers(0, 9),
    alive=st.booleans(),
    changed=st.sampled_from([None, ago(minutes=1), ago(hours=1)]),
    started=st.one_of(st.none(), st.datetimes(datetime(2025, 6, 9), datetime(2025, 6, 10, 15)).map(
        lambda at: at.replace(tzinfo=UTC)
    )),
    ended=st.one_of(st.none(), st.just(ago(minutes=5))),
    stopped=st.sampled_from(["", "refused"]),
)  # fmt: skip


@given(st.lists(ATTEMPTS, max_size=8), st.booleans())
def test_no_start_beside_a_living_run_and_no_number_twice(attempts: list[Attempt], held: bool) -> None:
    holder = LockHolder(1, NOW) if held else None
    decision = decide_capture(replace(OPEN, attempts=attempts, holder=holder))
    assert (decision.trade_date is None) == bool(decision.reason)
    if decision.trade_date is not None:
        assert not held
        assert all(a.run_id in decision.dead or a.status not in UNFINISHED for a in attempts)
        assert decision.number not in {a.number for a in attempts if a.trade_date == DAY}


def test_the_fingerprint_changes_with_settings_and_hides_secrets() -> None:
    before = build_settings(environment="live", databento_api_key="db-one")
    changes: list[dict[str, Any]] = [
        {"databento_api_key": "db-two"},
        {"capture_schema": "mbo"},
        {"capture_window": "globex"},
        {"products": ("NQ", "ES")},
    ]
    for change in changes:
        other = build_settings(**{"environment": "live", "databento_api_key": "db-one", **change})
        assert settings_fingerprint(other) != settings_fingerprint(before)
    unrelated = build_settings(environment="live", databento_api_key="db-one", horizon_days=3)
    assert settings_fingerprint(unrelated) == settings_fingerprint(before)
    assert "db-one" not in settings_fingerprint(before)
