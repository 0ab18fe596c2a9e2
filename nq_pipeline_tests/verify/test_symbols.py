"""What instruments are called: names that are understood, and those that are not."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import numpy as np

from nq_pipeline.capture.gateway import option_parents
from nq_pipeline.clock import ShiftedClock
from nq_pipeline.lake.objects import LocalObjects
from nq_pipeline.verify.check import CheckResult, Context
from nq_pipeline.verify.evidence import Evidence
from nq_pipeline.verify.feed import symbols
from nq_pipeline.verify.feed_recorder import FeedRecorder, Recording
from nq_pipeline_tests.testing.dbn_streams import NOON, empty
from nq_pipeline_tests.testing.verify_standins import verify_settings

NAMES = {
    "NQ.FUT": ["NQM5", "NQU5", "NQM5-NQU5"],
    "NQ.OPT": ["NQM5 C21000", "NQM5 P21000", "UD:1V: GN 0123"],
    "Q2C.OPT": ["Q2CM5 C21800"],
}


def found(names: dict[str, list[str]]) -> CheckResult:
    """What the check finds when the gateway names these instruments."""
    pairs = [(parent, symbol) for parent, own in names.items() for symbol in own]
    mappings = empty(22, len(pairs))
    mappings["instrument_id"] = np.arange(len(pairs))
    mappings["stype_in_symbol"] = [parent.encode() for parent, _ in pairs]
    mappings["stype_out_symbol"] = [symbol.encode() for _, symbol in pairs]
    own, clock = verify_settings(None, Path()), ShiftedClock(NOON)
    ctx = Context(
        settings=own,
        clock=clock,
        recorder=FeedRecorder(None, "GLBX.MDP3", ("127.0.0.1", 9), clock),
        evidence=Evidence(LocalObjects(Path()), "run", own),
        work=Path(),
        max_usd=Decimal(0),
        stream_s=1.0,
        live=Recording(mappings=mappings),
    )
    return symbols(ctx)


def test_options_futures_and_spreads_are_distinguished() -> None:
    finding = found(NAMES)
    assert finding.verdict == "PASS"
    assert finding.facts["kinds"] == {"future": 2, "spread": 2, "option": 3}
    assert finding.facts["series"] == ["NQ-2025-06-20", "Q2C-2025-06-11"]


def test_a_root_that_is_always_listed_and_missing_fails() -> None:
    for parent in ("NQ.FUT", "NQ.OPT"):
        finding = found({name: own for name, own in NAMES.items() if name != parent})
        assert finding.verdict == "FAIL" and parent in finding.reason


def test_unlisted_weeklies_are_named_but_not_fifth_weeks() -> None:
    finding = found(NAMES)
    absent = finding.facts["not_listed_now"]
    assert set(absent) == {p for p in option_parents() if not p.startswith("Q5")} - {"NQ.OPT", "Q2C.OPT"}
    assert all(parent in finding.reason for parent in absent)


def test_names_that_mean_nothing_to_us_fail_with_an_example() -> None:
    strange = {**NAMES, "Q2C.OPT": ["Q2CM5 C21800", "Q2CM5 X21800"]}
    finding = found(strange)
    assert finding.verdict == "FAIL" and "'Q2CM5 X21800' of Q2C.OPT" in finding.reason


def test_one_strange_name_among_hundreds_is_reported_and_passes() -> None:
    many = {**NAMES, "NQ.OPT": ["?", *(f"NQM5 C{strike}" for strike in range(20_000, 30_000, 25))]}
    finding = found(many)
    assert finding.verdict == "PASS" and "1 unreadable, e.g. '?' of NQ.OPT" in finding.reason


def test_an_option_under_the_parent_of_another_root_is_unread() -> None:
    finding = found({**NAMES, "Q1C.OPT": ["Q2CM5 C21800"]})
    assert finding.facts["unread"] == ["'Q2CM5 C21800' of Q1C.OPT (it belongs to Q2C)"]


def test_bytes_that_are_no_text_are_unread_and_harm_nothing() -> None:
    finding = found({**NAMES, "Q1C.OPT": ["\udcff".encode("utf-8", "surrogatepass").decode("latin-1")]})
    assert finding.facts["kinds"]["unread"] == 1


def test_a_gateway_that_names_nothing_fails() -> None:
    assert found({}).verdict == "FAIL"
