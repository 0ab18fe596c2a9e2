"""What the findings say about chains with one thing wrong."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nq_pipeline.chains import quality
from nq_pipeline.chains.request import build_request
from nq_pipeline.configuration import build_settings
from nq_pipeline.lake.tables import DECISIONS, OPTION_CHAIN, SOURCE_CHAIN
from nq_pipeline.outcome import Outcome
from nq_pipeline.sources.base import ChainAnswer, SeriesAnswer
from nq_pipeline_tests.testing.fake_vendors import UNDERLYING, chain

SETTINGS = build_settings(now=datetime(2025, 6, 10, 15, tzinfo=UTC), horizon_days=2, far_expirations=False)
REQUEST = build_request(SETTINGS)
CHAIN = chain(REQUEST, "barchart")
SECOND = REQUEST.series[1].key


def answer(outcome: Outcome = Outcome.OK, frame: pl.DataFrame = CHAIN, **more: object) -> ChainAnswer:
    series = {s.key: SeriesAnswer(Outcome.OK) for s in REQUEST.series}
    return replace(ChainAnswer("barchart", outcome, "", frame, series), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("outcome", "passed", "severity"),
    [
        (Outcome.OK, True, None),
        (Outcome.PARTIAL, False, "warn"),
        (Outcome.STALE, False, "warn"),
        (Outcome.NOT_CONFIGURED, False, "warn"),
        (Outcome.EMPTY, False, "error"),
        (Outcome.BLOCKED, False, "error"),
        (Outcome.NOT_ENTITLED, False, "error"),
        (Outcome.RATE_LIMITED, False, "error"),
        (Outcome.BAD_PAYLOAD, False, "error"),
        (Outcome.UNAVAILABLE, False, "error"),
        (Outcome.OVER_BUDGET, False, "error"),
    ],
)
def test_availability_of_every_outcome(outcome: Outcome, passed: bool, severity: str | None) -> None:
    finding = quality.available(answer(outcome))
    assert finding.passed is passed
    assert severity is None or finding.severity == severity


def test_vendor_without_rows_has_only_the_available_check() -> None:
    silent = answer(Outcome.BLOCKED, SOURCE_CHAIN.empty())
    assert set(quality.of_source(silent, REQUEST, SETTINGS)) == {"available"}


def test_a_broken_control_total_is_named() -> None:
    finding = quality.rows_complete(answer(controls={"a": True, "b": False}, dropped=Counter(spread=3)))
    assert finding is not None and not finding.passed and finding.severity == "error"
    assert finding.sentence == "control totals do not match: b"
    assert finding.numbers["dropped"] == 3


def test_a_series_that_came_in_part_is_named_as_a_warning() -> None:
    series = {SECOND: SeriesAnswer(Outcome.PARTIAL, "bounded")}
    finding = quality.rows_complete(answer(series=series))
    assert finding is not None and not finding.passed and finding.severity == "warn"
    assert SECOND in finding.sentence


@given(st.integers(0, 20), st.integers(0, 20), st.floats(0, 1))
def test_every_crossed_and_negative_quote_is_counted(crossed: int, negative: int, allowed: float) -> None:
    n = pl.int_range(pl.len())
    frame = CHAIN.with_columns(
        ask=pl.when(n < crossed).then(pl.col("bid") - 1).otherwise("ask"),
        bid=pl.when(n.is_between(30, 29 + negative)).then(-1.0).otherwise("bid"),
    )
    finding = quality.no_bad_quotes(frame, allowed)
    assert finding is not None
    assert finding.numbers["bad"] == crossed + negative
    assert finding.passed == (crossed + negative == 0)
    assert (finding.severity == "warn") == (crossed + negative <= allowed * CHAIN.height)


def test_infinite_quotes_are_bad_and_missing_ones_are_not() -> None:
    n = pl.int_range(pl.len())
    frame = CHAIN.with_columns(
        bid=pl.when(n == 0).then(float("nan")).when(n == 1).then(float("inf")).when(n > 1).then(None)
    )
    finding = quality.no_bad_quotes(frame, 0.0)
    assert finding is not None and finding.numbers["bad"] == 2
    assert quality.no_bad_quotes(frame.with_columns(bid=None, ask=None), 0.0) is None


def test_a_contract_that_comes_twice_is_counted() -> None:
    finding = quality.unique_contracts(pl.concat([CHAIN, CHAIN.head(3)]))
    assert finding is not None and not finding.passed
    assert finding.numbers["rows_too_many"] == 3


@pytest.mark.parametrize(
    ("age", "passed"),
    [(timedelta(minutes=30), True), (timedelta(minutes=31), False), (timedelta(days=-3), False)],
)
def test_freshness_goes_by_the_newest_quote(age: timedelta, passed: bool) -> None:
    old = chain(REQUEST, "barchart", age=timedelta(days=3))
    one = chain(REQUEST, "barchart", age=age).head(1)
    finding = quality.fresh(pl.concat([old, one]), REQUEST, stale_after_s=1800)
    assert finding is not None and finding.passed is passed
    assert finding.numbers["age_s"] == age.total_seconds()


def test_freshness_names_the_date_of_a_trade_without_a_time() -> None:
    moment = datetime(2025, 6, 10, tzinfo=UTC)
    dated = chain(REQUEST, "barchart").with_columns(quote_ts=pl.lit(moment), last_ts=pl.lit(moment))
    finding = quality.fresh(dated, REQUEST, stale_after_s=1800)
    assert finding is not None and "is from 2025-06-10, without a time;" in finding.sentence


@given(st.floats(-300, 300).filter(lambda shift: abs(abs(shift) / UNDERLYING - 0.005) > 1e-6))
def test_parity_finds_the_series_whose_underlying_is_another(shift: float) -> None:
    moved = pl.when(pl.col("series") == SECOND).then(UNDERLYING + shift).otherwise("underlying_price")
    finding = quality.parity_forward(CHAIN.with_columns(underlying_price=moved), tolerance=0.005)
    assert finding is not None and finding.table is not None
    distance = UNDERLYING / (UNDERLYING + shift) - 1
    assert finding.passed == (abs(distance) <= 0.005)
    assert finding.numbers["worst"] == pytest.approx(distance, abs=1e-9)
    assert finding.numbers["series_checked"] == len(REQUEST.series)


def test_parity_outvotes_one_wrong_price() -> None:
    at_the_money = (pl.col("strike") == UNDERLYING) & (pl.col("option_type") == "C")
    wrong = CHAIN.with_columns(
        pl.when(at_the_money).then(pl.col(c) + 400).otherwise(c) for c in ("bid", "ask")
    )
    finding = quality.parity_forward(wrong, tolerance=0.001)
    assert finding is not None and finding.passed


def test_parity_without_two_sided_quotes_is_a_warning() -> None:
    finding = quality.parity_forward(CHAIN.with_columns(ask=pl.lit(None, pl.Float64)), 0.005)
    assert finding is not None and not finding.passed and finding.severity == "warn"


def test_sources_agree_within_spread_and_underlying_move() -> None:
    moved = chain(REQUEST, "tradovate", underlying=UNDERLYING + 25)
    finding = quality.sources_agree(CHAIN, {"barchart": CHAIN, "tradovate": moved}, tolerance=0.005)
    assert finding is not None and finding.passed
    assert finding.numbers["common"] == CHAIN.height
    assert finding.numbers["sources_compared"] == 1


def test_a_source_that_quotes_otherwise_is_named() -> None:
    dear = chain(REQUEST, "databento").with_columns(bid=pl.col("bid") + 5, ask=pl.col("ask") + 5)
    finding = quality.sources_agree(CHAIN, {"barchart": CHAIN, "databento": dear}, tolerance=0.005)
    assert finding is not None and not finding.passed
    assert finding.sentence.endswith("out of line: databento")
    assert finding.numbers["agreeing"] == 0


def test_source_with_another_underlying_is_named() -> None:
    elsewhere = chain(REQUEST, "databento").with_columns(underlying_price=pl.lit(UNDERLYING * 1.02))
    finding = quality.sources_agree(CHAIN, {"databento": elsewhere}, tolerance=0.005)
    assert finding is not None and not finding.passed


def test_unknown_underlying_is_compared_within_tolerance() -> None:
    unknown = chain(REQUEST, "databento", underlying=UNDERLYING + 50).with_columns(
        underlying_price=pl.lit(None, pl.Float64)
    )
    finding = quality.sources_agree(CHAIN, {"databento": unknown}, tolerance=0.005)
    assert finding is not None and finding.passed


def test_no_shared_contract_gives_no_agreement_finding() -> None:
    proxy = chain(REQUEST, "polygon", underlying_class="index")
    assert quality.sources_agree(CHAIN, {"barchart": CHAIN, "polygon": proxy}, 0.005) is None


def decisions(*rows: tuple[str, str, Outcome, bool]) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {
                "series": series,
                "source": source,
                "outcome": str(outcome),
                "won": won,
                "reason": f"{source} says",
            }
            for series, source, outcome, won in rows
        ],
        schema={name: DECISIONS.schema[name] for name in ("series", "source", "outcome", "won", "reason")},
    )


def test_unlisted_series_is_not_missing() -> None:
    first, second, third, *_ = (s.key for s in REQUEST.series)
    request = replace(REQUEST, series=REQUEST.series[:3])
    table = decisions(
        (first, "barchart", Outcome.OK, True),
        (second, "barchart", Outcome.EMPTY, False),
        (second, "tradovate", Outcome.EMPTY, False),
        (third, "barchart", Outcome.BLOCKED, False),
        (third, "tradovate", Outcome.EMPTY, False),
    )
    finding = quality.series_covered(request, table)
    assert not finding.passed and finding.severity == "warn"
    assert finding.sentence == f"no usable chain for {third}"
    assert finding.numbers == {"series": 3, "series_won": 1, "series_unlisted": 1, "series_missing": 1}


def test_no_chain_at_all_names_every_source_and_its_reason() -> None:
    table = decisions(
        (SECOND, "barchart", Outcome.BLOCKED, False), (SECOND, "databento", Outcome.EMPTY, False)
    )
    finding = quality.chain_available(OPTION_CHAIN.empty(), table)
    assert not finding.passed and finding.severity == "error"
    assert finding.sentence == (
        "no source has a usable chain (barchart: barchart says; databento: databento says)"
    )
