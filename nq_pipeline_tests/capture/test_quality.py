"""What is said about a capture, for every state it may be in."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nq_pipeline.capture.gap_store import GapStore
from nq_pipeline.capture.gaps import Gap
from nq_pipeline.capture.quality import (
    CaptureDay,
    judge_capture,
    judge_completeness,
    judge_entitlement,
    judge_freshness,
    judge_gaps,
    last_opened,
    read_capture_day,
)
from nq_pipeline.clock import to_ns
from nq_pipeline.configuration import build_settings
from nq_pipeline.workspace import Workspace

OPENS = datetime(2025, 6, 10, 13, 30, tzinfo=UTC)
CLOSES = datetime(2025, 6, 10, 20, 0, tzinfo=UTC)
NOW = OPENS + timedelta(hours=1)
DAY = CaptureDay(
    trade_date=date(2025, 6, 10),
    now=NOW,
    window=[(OPENS, CLOSES)],
    newest=NOW - timedelta(seconds=1),
    wanted={"options": "mbo", "futures": "trades"},
)


def gap(first: float, last: float | None, state: str = "verified", **more: Any) -> Gap:
    """A gap from one minute of the window to another."""
    begin = to_ns(OPENS + timedelta(minutes=first))
    end = None if last is None else to_ns(OPENS + timedelta(minutes=last))
    return Gap(f"{first}", "trades", begin, end, "closed", state=state, **more)  # type: ignore[arg-type]


def test_a_complete_day_passes_every_check() -> None:
    found = judge_capture(replace(DAY, gaps=[gap(0, 5)], wanted={"options": "trades", "futures": "trades"}))
    assert set(found) == {"gaps", "entitlement", "freshness", "completeness"}
    assert all(finding.passed for finding in found.values())


@pytest.mark.parametrize(
    ("found", "passed", "severity", "words"),
    [
        ([], True, "warn", "has no gap"),
        ([gap(0, 5)], True, "warn", "1 gap on 2025-06-10, filled and counted"),
        ([gap(0, 5), gap(6, None, "open")], False, "warn", "1 gap on 2025-06-10 not yet proven"),
        ([gap(0, 5, counted=7, published=7)], True, "warn", "1 gap on 2025-06-10, filled and counted"),
        ([gap(0, 5, counted=7, published=8)], False, "warn", "counted in 1 gap"),
        ([gap(0, 5, "replayed")], False, "warn", "not yet proven"),
        ([gap(0, 5, "unfillable"), gap(6, 7, "open")], False, "error", "1 gap on 2025-06-10 cannot"),
        ([gap(0, 5, "open", attempts=3)], False, "error", "cannot be filled"),
    ],
)  # fmt: skip
def test_gaps_by_their_worst_state(found: list[Gap], passed: bool, severity: str, words: str) -> None:
    finding = judge_gaps(replace(DAY, gaps=found))
    assert (finding.passed, words in finding.sentence) == (passed, True), finding.sentence
    assert passed or finding.severity == severity
    assert (finding.table is None) == (not found)
    assert sum(finding.numbers.values()) == len(found)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("refused", "passed", "severity", "words"),
    [
        ({}, True, "warn", "as wanted: mbo for options, trades for futures"),
        ({"mbo": "no mbo"}, False, "warn", "mbp-1 instead of mbo for options"),
        ({"mbo": "no mbo", "mbp-1": "no mbp-1"}, False, "warn", "trades instead of mbo for options"),
        ({"mbo": "x", "mbp-1": "y", "trades": "no trades"}, False, "error", "no schema of options: no"),
    ],
)  # fmt: skip
def test_entitlement_by_what_was_refused(
    refused: dict[str, str], passed: bool, severity: str, words: str
) -> None:
    finding = judge_entitlement(replace(DAY, refused=refused))
    assert (finding.passed, finding.severity, words in finding.sentence) == (passed, severity, True)


def test_a_plan_without_live_data_fails_entitlement() -> None:
    finding = judge_entitlement(replace(DAY, refusal="the plan has no live data"))
    assert (finding.passed, finding.severity, finding.sentence) == (
        False,
        "error",
        "the plan has no live data",
    )


@pytest.mark.parametrize(
    ("age", "passed", "severity"),
    [(0, True, None), (120, True, None), (121, False, "warn"), (600, False, "warn"), (601, False, "error")],
)
def test_freshness_by_the_age_of_the_newest_trade(age: int, passed: bool, severity: str | None) -> None:
    finding = judge_freshness(replace(DAY, newest=NOW - timedelta(seconds=age)))
    assert finding.passed == passed
    assert passed or finding.severity == severity
    assert finding.numbers["newest_age_s"] == age


def test_nothing_is_stale_while_the_window_is_closed() -> None:
    finding = judge_freshness(replace(DAY, now=CLOSES + timedelta(hours=3), newest=CLOSES))
    assert finding.passed and finding.sentence.startswith("the window is closed")


def test_a_window_that_has_just_opened_passes() -> None:
    day = replace(DAY, newest=None, now=OPENS + timedelta(seconds=30))
    assert judge_freshness(day).passed and judge_completeness(day).passed


def test_no_trade_is_first_a_warning_then_an_error() -> None:
    for minutes, severity in ((5, "warn"), (11, "error")):
        finding = judge_freshness(replace(DAY, newest=None, now=OPENS + timedelta(minutes=minutes)))
        assert (finding.passed, finding.severity) == (False, severity)


def test_completeness_is_the_proven_share_of_the_window() -> None:
    assert judge_completeness(DAY).numbers == {"proven_share": 1.0, "unproven_s": 0.0}
    quarter = judge_completeness(replace(DAY, gaps=[gap(10, 25, "unfillable"), gap(0, 9)]))
    assert quarter.numbers == {"proven_share": 0.75, "unproven_s": 900.0}
    assert (quarter.passed, quarter.severity) == (False, "error")
    little = judge_completeness(replace(DAY, gaps=[gap(10, 10.5, "open")]))
    assert (little.passed, little.severity) == (False, "warn")


def test_overlapping_holes_count_once_within_the_window() -> None:
    twice = [gap(10, 20, "open"), gap(15, 25, "open"), gap(-60, -5, "unfillable"), gap(12, 13, "replayed")]
    assert judge_completeness(replace(DAY, gaps=twice)).numbers["unproven_s"] == 900.0


def test_what_nobody_captured_is_not_complete() -> None:
    assert judge_completeness(replace(DAY, newest=None)).numbers["proven_share"] == 0.0
    half = judge_completeness(replace(DAY, newest=NOW - timedelta(minutes=30)))
    assert half.numbers["proven_share"] == 0.5
    proven = judge_completeness(replace(DAY, newest=NOW - timedelta(minutes=30), proven=NOW))
    assert proven.passed


def test_a_root_that_the_gateway_does_not_name_is_an_error() -> None:
    finding = judge_completeness(replace(DAY, missing=["NQ"]))
    assert (finding.passed, finding.severity) == (False, "error")
    assert "names no instrument of NQ" in finding.sentence


@pytest.mark.parametrize(
    ("window", "last", "dates"),
    [
        ("always", OPENS + timedelta(days=2), [10, 11, 12]),
        ("always", None, [10, 11, 12, 13]),
        ("rth", None, [10]),  # it ends with its window
        ("always", datetime(2025, 6, 10, 22, tzinfo=UTC), [10]),  # when the next session opens
    ],
)
def test_a_gap_counts_on_every_trade_date_it_reaches(
    window: str, last: datetime | None, dates: list[int], tmp_path: Path
) -> None:
    settings = build_settings(data_dir=tmp_path, capture_window=window)
    lake = Workspace.of(settings).lake
    lost = Gap("g", "trades", to_ns(OPENS), to_ns(last) if last else None, "not running", state="unfillable")
    GapStore(lake, dataset="GLBX.MDP3", run_id="run").write([lost], NOW)
    days = {
        day: read_capture_day(settings, NOW + timedelta(days=9), date(2025, 6, day)) for day in range(9, 14)
    }
    assert [day for day, found in days.items() if found.gaps] == dates


@given(
    st.lists(
        st.tuples(
            st.integers(-30, 500),
            st.one_of(st.none(), st.integers(-30, 500)),
            st.sampled_from(["open", "replayed", "verified", "unfillable"]),
        ),
        max_size=6,
    )
)
def test_the_share_is_whole_only_with_verified_gaps(
    spans: list[tuple[int, int | None, str]],
) -> None:
    found = [gap(a, None if b is None else max(a, b), state) for a, b, state in spans]
    finding = judge_completeness(replace(DAY, gaps=found))
    assert 0.0 <= finding.numbers["proven_share"] <= 1.0  # type: ignore[operator]
    if all(g.state == "verified" for g in found):
        assert finding.passed


@pytest.mark.parametrize(
    ("now", "window", "expected"),
    [
        ("2025-06-10T13:30", "rth", "2025-06-10"),
        ("2025-06-10T13:29", "rth", "2025-06-09"),
        ("2025-06-08T12:00", "rth", "2025-06-06"),
        ("2025-06-10T22:00", "globex", "2025-06-11"),
        ("2025-06-10T22:00", "rth", "2025-06-10"),
        ("2026-04-03T15:00", "rth", "2026-04-02"),  # a Good Friday without regular hours
    ],
)
def test_the_trade_date_judged_is_the_one_whose_window_opened_last(
    now: str, window: Any, expected: str
) -> None:
    assert last_opened(datetime.fromisoformat(now).replace(tzinfo=UTC), window).isoformat() == expected
