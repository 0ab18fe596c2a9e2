"""Every kind of end has its rule."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nq_pipeline.capture.reconnect_policy import (
    Attempts,
    EndReason,
    Retry,
    SessionEnd,
    StepDown,
    Stop,
    is_healthy,
    next_step,
)
from nq_pipeline.clock import to_ns

NOW = datetime(2025, 6, 10, 17, tzinfo=UTC)
CLOSES = NOW + timedelta(hours=3)
LOST = [
    EndReason.CLOSED,
    EndReason.RESET,
    EndReason.CUT,
    EndReason.SILENT,
    EndReason.GARBAGE,
    EndReason.UNREACHABLE,
    EndReason.SKIPPED,
    EndReason.REPAIR,
]


def after(
    ending: SessionEnd, attempts: Attempts | None = None, chance: float = 0.5
) -> Retry | StepDown | Stop:
    return next_step(ending, attempts or Attempts(), now=NOW, closes=CLOSES, chance=chance)


def error(code: int, text: str = "") -> SessionEnd:
    return SessionEnd(EndReason.ERROR, text, code)


def stopped(step: object) -> str:
    assert isinstance(step, Stop) and step.reason
    return step.reason


@pytest.mark.parametrize("how", LOST)
def test_a_lost_session_is_tried_again_at_once(how: EndReason) -> None:
    assert after(SessionEnd(how)) == Retry(0.0)


@pytest.mark.parametrize("how", LOST)
def test_a_sound_session_needs_no_pause_whatever_failed_before(how: EndReason) -> None:
    assert after(SessionEnd(how, healthy=True), Attempts(7)) == Retry(0.0)


@pytest.mark.parametrize(
    ("lived_s", "advanced_s", "sound"),
    [(0.2, 0.0, False), (0.2, 0.9, False), (4.9, 0.0, False), (5.0, 0.0, True), (0.2, 1.0, True)],
)
def test_a_session_is_sound_by_its_life_or_by_what_it_proved(
    lived_s: float, advanced_s: float, sound: bool
) -> None:
    assert is_healthy(lived_s, advanced_s) is sound


@pytest.mark.parametrize("how", LOST)
@given(failed=st.integers(1, 10_000), chance=st.floats(0, 1, exclude_max=True))
def test_attempts_go_on_for_ever_with_full_jitter_below_the_cap(
    how: EndReason, failed: int, chance: float
) -> None:
    step = after(SessionEnd(how), Attempts(failed), chance)
    assert isinstance(step, Retry) and 0 <= step.after_s < 60
    widest = after(SessionEnd(how), Attempts(failed), 1.0)
    assert isinstance(widest, Retry) and step.after_s == pytest.approx(chance * widest.after_s)


def test_the_bound_of_the_pause_doubles_up_to_a_minute() -> None:
    bounds = [after(SessionEnd(EndReason.RESET), Attempts(n), 1.0).after_s for n in range(10)]  # type: ignore[union-attr]
    assert bounds == [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_nothing_is_tried_once_the_window_has_closed() -> None:
    for how in LOST:
        assert next_step(SessionEnd(how), Attempts(), now=CLOSES, closes=CLOSES, chance=0.5) == Stop(None)


def test_a_window_that_never_closes_has_no_end() -> None:
    assert isinstance(
        next_step(SessionEnd(EndReason.RESET), Attempts(), now=NOW, closes=None, chance=0.5), Retry
    )


def test_an_end_of_our_own_is_the_end() -> None:
    assert after(SessionEnd(EndReason.STOPPED)) == Stop(None)


def test_a_failed_disk_stops_with_its_sentence() -> None:
    assert stopped(after(SessionEnd(EndReason.FAILED, "no space; free some"))) == "no space; free some"


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("Authentication failed.", "DATABENTO_API_KEY"),
        ("A live data license is required to access GLBX.MDP3.", "plan"),
        ("Unable to submit the request because there is an unpaid invoice.", "invoice"),
        ("User or API key deactivated", "DATABENTO_API_KEY"),
    ],
)
def test_a_refusal_that_time_does_not_heal_stops_and_says_what_to_do(text: str, advice: str) -> None:
    reason = stopped(after(SessionEnd(EndReason.REFUSED, text)))
    assert text.rstrip(".") in reason and advice in reason


def test_a_missing_licence_names_the_plan() -> None:
    text = "A live data license is required to access GLBX.MDP3."
    assert "CME Standard" in stopped(after(SessionEnd(EndReason.REFUSED, text)))


@pytest.mark.parametrize(
    "ending", [SessionEnd(EndReason.REFUSED, "Try again later"), error(3, "connection limit")]
)
def test_a_temporary_refusal_is_retried_ten_times_a_minute_apart(ending: SessionEnd) -> None:
    attempts, pauses = Attempts(), []
    while isinstance(step := after(ending, attempts), Retry):
        pauses.append(step.after_s)
        attempts = attempts.after(ending)
    assert pauses == [60.0] * 9
    assert ending.text in stopped(step)


@pytest.mark.parametrize("code", [1, 2])
def test_a_key_refused_in_the_stream_stops(code: int) -> None:
    assert "key" in stopped(after(error(code, "no")))


@pytest.mark.parametrize("code", [5, 6, 255])
def test_a_schema_the_plan_lacks_is_a_step_down_whatever_the_code(code: int) -> None:
    assert after(error(code, "Not authorized for mbo schema")) == StepDown("mbo")
    assert after(error(code, "Not authorized for MBO schema")) == StepDown("mbo")


@pytest.mark.parametrize("code", [6, 255])
def test_a_refused_schema_outside_the_order_is_no_step_down(code: int) -> None:
    assert isinstance(after(error(code, "Not authorized for tape schema")), Retry)


@pytest.mark.parametrize("code", [5, 8])
def test_a_start_too_old_is_tried_again_from_the_one_named(code: int) -> None:
    step = after(error(code, "Invalid start time. Must be 2025-06-09T17:00:00Z or later, or 0"))
    named = to_ns(datetime(2025, 6, 9, 17, tzinfo=UTC))
    assert step == Retry(0.0, replay_too_old=True, earliest_ns=named)


def test_an_aged_out_replay_is_too_old_without_a_time_as_well() -> None:
    assert after(error(8, "Replay data aged out")) == Retry(0.0, replay_too_old=True)


def test_an_invalid_subscription_stops() -> None:
    assert "NQ_CAPTURE_SCHEMA" in stopped(after(error(5, "Unsupported stype_in")))


@pytest.mark.parametrize("code", [6, 255, 99])
def test_an_error_of_the_gateway_itself_is_tried_again(code: int) -> None:
    assert after(error(code, "Internal error")) == Retry(0.0)


@pytest.mark.parametrize("code", [4, 7])
def test_codes_that_end_no_session_would_not_stop_the_capture(code: int) -> None:
    assert isinstance(after(error(code, "something")), Retry)


def test_a_sound_session_makes_the_next_attempt_a_first_one() -> None:
    tried = Attempts()
    for _ in range(5):
        tried = tried.after(error(3))
    assert tried == Attempts(5, 5)
    assert tried.after(SessionEnd(EndReason.RESET, healthy=True)) == Attempts()


@given(
    st.sampled_from(EndReason),
    st.text(),
    st.none() | st.integers(0, 255),
    st.integers(0, 50),
    st.integers(0, 50),
)
def test_whatever_the_gateway_says_there_is_a_next_step(
    how: EndReason, text: str, code: int | None, failed: int, limited: int
) -> None:
    step = after(SessionEnd(how, text, code), Attempts(failed, limited))
    assert isinstance(step, Retry | StepDown | Stop)
