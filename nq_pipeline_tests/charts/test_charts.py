"""What the charts draw, and the sentence where there is nothing to draw."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import altair as alt
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nq_pipeline import charts
from nq_pipeline.charts import render
from nq_pipeline.charts.theme import DARK, LIGHT, PAGE, SANDBOX, Palette, Picture, spread_labels
from nq_pipeline_tests.testing import chart_frames

FIRST = chart_frames.SERIES[0]
PICTURES: dict[str, Callable[[str], Picture]] = {
    "smile": lambda env: charts.smile(chart_frames.smile(env)),
    "smile_explorer": lambda env: charts.smile_explorer(chart_frames.quotes(env)),
    "open_interest_change": lambda env: charts.open_interest_change(
        chart_frames.changes(env), chart_frames.FORWARD
    ),
    "surface": lambda env: charts.surface(chart_frames.surface(env)),
    "volatility_history": lambda env: charts.volatility_history(chart_frames.history(env)),
    "level_history": lambda env: charts.level_history(chart_frames.history(env)),
    "gamma_history": lambda env: charts.gamma_history(chart_frames.history(env)),
    "term_structure": lambda env: charts.term_structure(chart_frames.metrics(env)),
    "expected_move": lambda env: charts.expected_move(chart_frames.metrics(env)),
    "open_interest": lambda env: charts.open_interest(chart_frames.profile(env), chart_frames.metrics(env)),
    "open_interest of one": lambda env: charts.open_interest(
        chart_frames.profile(env), chart_frames.metrics(env), FIRST
    ),
    "volume": lambda env: charts.volume(chart_frames.profile(env), chart_frames.metrics(env), FIRST),
    "gamma_exposure": lambda env: charts.gamma_exposure(chart_frames.profile(env), chart_frames.levels(env)),
    "put_call": lambda env: charts.put_call(chart_frames.metrics(env)),
    "pressure": lambda env: charts.pressure(chart_frames.pressure(env), "C", forward=chart_frames.FORWARD),
    "spend": lambda env: charts.spend(chart_frames.days(), budget_usd=200.0, environment=env),
    "source_agreement": lambda env: charts.source_agreement(chart_frames.agreement(), environment=env),
}


def drawn(picture: Picture) -> alt.LayerChart:
    assert not isinstance(picture, str), picture
    return picture


def words(svg: str) -> list[str]:
    """All texts of a chart, and the descriptions of its marks."""
    root = ElementTree.fromstring(svg)
    texts = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
    return texts + [node.get("aria-label", "") for node in root.iter()]


@pytest.mark.parametrize("name", PICTURES)
def test_chart_is_complete_and_marks_sandbox_data(name: str) -> None:
    for environment in ("sandbox", "live"):
        chart = drawn(PICTURES[name](environment))
        svg = render.svg(chart, width=560, height=320)
        assert any(SANDBOX in text for text in words(svg)) == (environment == "sandbox")
        assert 'width="560" height="320"' in svg
        assert "NaN" not in svg and "undefined" not in svg and "null" not in svg
        assert not [word for word in words(svg) if re.search(r"[a-z]_[a-z]+: ", word)], "a column's name"
        axes = [label for label in words(svg) if label.startswith("X-axis")]
        assert axes and (axes[0].startswith("X-axis titled") or name == "smile_explorer"), "it has a title"


def colours(chart: alt.LayerChart, palette: Palette) -> set[str]:
    svg = render.svg(chart, palette=palette, width=360, height=300)
    return set(re.findall(r'(?:fill|stroke)="([^"]+)"', svg))


@pytest.mark.parametrize("name", PICTURES)
def test_every_colour_comes_from_the_palette(name: str) -> None:
    chart = drawn(PICTURES[name]("live"))
    found = colours(chart, PAGE)
    assert {colour for colour in found if not colour.startswith("var(--")} <= {"none", "transparent"}


def test_palettes_share_no_colour() -> None:
    chart = drawn(PICTURES["smile"]("live"))
    light, dark = colours(chart, LIGHT), colours(chart, DARK)
    assert LIGHT["first"] in light and DARK["first"] in dark
    assert not (light & dark) - {"none", "transparent"}


@pytest.mark.parametrize(
    "picture",
    [
        lambda: charts.smile(chart_frames.smile().clear()),
        lambda: charts.smile(chart_frames.smile().with_columns(deviations=9.0)),
        lambda: charts.term_structure(chart_frames.metrics().with_columns(atm_iv=pl.lit(None, pl.Float64))),
        lambda: charts.expected_move(chart_frames.metrics().clear()),
        lambda: charts.open_interest(chart_frames.profile().clear(), chart_frames.metrics()),
        lambda: charts.open_interest(chart_frames.profile(), chart_frames.metrics(), "Q9Z-2025-07-01"),
        lambda: charts.smile_explorer(chart_frames.quotes().clear()),
        lambda: charts.open_interest_change(chart_frames.changes().clear(), chart_frames.FORWARD),
        lambda: charts.open_interest_change(chart_frames.changes(), None),
        lambda: charts.open_interest_change(
            chart_frames.changes().with_columns(open_interest_change=0), chart_frames.FORWARD
        ),
        lambda: charts.surface(chart_frames.surface().clear()),
        lambda: charts.surface(chart_frames.surface().with_columns(implied_volatility=None)),
        lambda: charts.volatility_history(chart_frames.history(snapshots=1)),
        lambda: charts.level_history(chart_frames.history().clear()),
        lambda: charts.volume(chart_frames.profile().with_columns(call_volume=0), chart_frames.metrics()),
        lambda: charts.gamma_exposure(chart_frames.profile(), chart_frames.levels().clear()),
        lambda: charts.gamma_exposure(
            chart_frames.profile().with_columns(call_gex_per_pct=0.0, put_gex_per_pct=None),
            chart_frames.levels(),
        ),
        lambda: charts.put_call(chart_frames.metrics().clear()),
        lambda: charts.pressure(chart_frames.pressure().clear(), "C"),
        lambda: charts.pressure(chart_frames.pressure(), "C", forward=30_000.0),
        lambda: charts.spend(chart_frames.days().clear(), budget_usd=1.0, environment="live"),
        lambda: charts.source_agreement(chart_frames.agreement().clear(), environment="live"),
    ],
)
def test_empty_frames_give_a_sentence(picture: Callable[[], Picture]) -> None:
    sentence = picture()
    assert isinstance(sentence, str) and sentence.startswith("No ") and sentence.endswith(".")


def rendered(chart: alt.LayerChart, **params: object) -> list[str]:
    """The words of a chart after a reader has set some of its parameters."""
    changed: Any = chart.copy()
    for one in changed.params:
        one.value = params.get(one.name, one.value)
    return words(render.svg(changed, width=600, height=320))


def counts(texts: list[str]) -> tuple[int, int]:
    """Calls and puts of all bars; a bar has both, and is there twice: up and down."""
    bars = {text for text in texts if re.search(r"calls · .* puts$", text)}
    found = [
        tuple(int(n.replace(",", "")) for n in re.findall(r"([\d,]+) (?:calls|puts)", bar)) for bar in bars
    ]
    return sum(calls for calls, _ in found), sum(puts for _, puts in found)


def test_reader_chooses_how_far_the_strikes_go() -> None:
    far = chart_frames.profile().with_columns(strike=pl.col("strike") + 9_000)
    both = pl.concat([*[chart_frames.profile()] * 4, far])
    chart = drawn(charts.open_interest(both, chart_frames.metrics()))
    near = 2 * sum(range(1, 6))
    first = rendered(chart)
    assert counts(first) == (4 * near, 8 * near)
    assert f"{5 * near:,} calls, {10 * near:,} puts; {3 * near:,} of them outside the chart" in first
    everything = rendered(chart, reach=0)
    assert counts(everything) == (5 * near, 10 * near)
    assert f"{5 * near:,} calls, {10 * near:,} puts" in everything


def test_reader_chooses_series_and_sides_of_the_bars() -> None:
    chart = drawn(charts.open_interest(chart_frames.profile(), chart_frames.metrics()))
    one = rendered(chart, shown=[FIRST])
    assert counts(one) == (15, 30)
    assert "max pain 22,050" in one and "max pain 22,050" not in rendered(chart)
    puts = rendered(chart, sides="P")
    assert not any("calls ·" in text and "role-calls" in text for text in puts)
    assert "future 22,110.00" in puts


def test_gamma_of_one_series_has_no_levels_of_all() -> None:
    chart = drawn(charts.gamma_exposure(chart_frames.profile(), chart_frames.levels()))
    levels = {"zero gamma 22,060", "call wall 22,200", "put wall 22,000"}
    assert levels <= set(rendered(chart))
    assert not levels & set(rendered(chart, shown=[FIRST]))


def test_an_earlier_moment_is_outlined_when_chosen() -> None:
    both = pl.concat(
        chart_frames.profile().with_columns(moment=pl.lit(moment), call_open_interest=calls)
        for moment, calls in (("now", 7), ("close", 9))
    )
    chart = drawn(charts.open_interest(both, chart_frames.metrics()))
    assert not any("9 calls" in text for text in rendered(chart, reach=0))
    assert any("18 calls" in text for text in rendered(chart, reach=0, against="close"))


def test_change_of_open_interest_has_its_sign_day_and_vendor() -> None:
    chart = drawn(charts.open_interest_change(chart_frames.changes(), chart_frames.FORWARD))
    shown = rendered(chart, reach=0)
    assert "+15 calls, −30 puts" in shown
    assert any("+5 calls · −10 puts" in text for text in shown)
    assert any("2025-06-27, by barchart" in text for text in shown)


def test_history_has_chicago_time_and_names_of_known_lines() -> None:
    shown = words(render.svg(drawn(charts.level_history(chart_frames.history())), width=600, height=320))
    assert {"future", "zero gamma", "call wall"} <= set(shown) and "put wall" not in shown
    assert "10:05 CT · future 22,111" in shown
    net = words(render.svg(drawn(charts.gamma_history(chart_frames.history())), width=600, height=320))
    assert "10:10 CT · net gamma −$1M" in net


def test_surface_has_no_cell_outside_the_quotes() -> None:
    rows = chart_frames.surface()
    shown = words(render.svg(drawn(charts.surface(rows)), width=600, height=320))
    cells = [text for text in shown if re.search(r"strike .* · IV .*%, quotes .*% to .*%$", text)]
    assert len(cells) == rows.height - 1


def test_smile_explorer_shows_the_chosen_axis_side_and_moment() -> None:
    chart = drawn(charts.smile_explorer(chart_frames.quotes(moments=("now", "close"))))
    first = rendered(chart)
    assert any(re.search(r"call · IV .* · delta \+0\.", text) for text in first)
    assert any(re.search(r"put · IV .* · delta −0\.", text) for text in first)
    assert not any(", earlier" in text for text in first)
    assert any(", earlier" in text for text in rendered(chart, against="close"))
    assert not any(" put ·" in text for text in rendered(chart, sides="C"))
    assert {"−0.2", "+0.2"} <= set(first)
    assert "ATM" in rendered(chart, axis="delta") and "22,000" in rendered(chart, axis="strike")
    assert {"strike", "standard deviations from the forward, σ√t"} <= {
        *rendered(chart, axis="strike"),
        *first,
    }


def test_smile_shows_four_expirations_with_the_nearest() -> None:
    many = tuple(f"Q1B-2025-07-{day:02}" for day in range(1, 10))
    svg = render.svg(drawn(charts.smile(chart_frames.smile(series=many))), width=600, height=320)
    named = {text for text in words(svg) if re.fullmatch(r"Q1B \d+ Jul", text)}
    assert len(named) == 4
    assert {"Q1B 1 Jul", "Q1B 9 Jul"} <= named


@pytest.mark.parametrize("name", ["smile", "smile_explorer"])
def test_a_flat_smile_repeats_no_label_of_its_axis(name: str) -> None:
    rows = chart_frames.smile() if name == "smile" else chart_frames.quotes()
    flat = rows.with_columns(implied_volatility=0.12 + pl.col("implied_volatility") / 10)
    labels = words(render.svg(drawn(getattr(charts, name)(flat)), width=600, height=320))
    percents = [text for text in labels if re.fullmatch(r"[\d.]+%", text)]
    assert len(percents) > 2 and len(set(percents)) == len(percents)


def test_smile_of_a_quoted_series_has_no_lone_last_trade() -> None:
    rows = chart_frames.smile().with_columns(
        iv_uncertainty=pl.when(pl.col("strike") < 22_200).then("iv_uncertainty"),
        implied_volatility=pl.when(pl.col("strike") < 22_200).then("implied_volatility").otherwise(0.9),
    )
    svg = render.svg(drawn(charts.smile(rows)), width=600, height=320)
    assert not any("90.0 %" in text for text in words(svg))


def test_names_of_lines_at_one_strike_do_not_overlap() -> None:
    level = chart_frames.metrics().with_columns(max_pain=pl.col("forward"))
    picture = drawn(charts.open_interest(chart_frames.profile(), level, FIRST))
    root = ElementTree.fromstring(render.svg(picture, width=600, height=320))
    places = {
        "".join(node.itertext()): node.get("transform")
        for node in root.iter("{http://www.w3.org/2000/svg}text")
    }
    assert places["future 22,110.00"] != places["max pain 22,110"]


def test_flat_term_structure_repeats_no_tick() -> None:
    flat = chart_frames.metrics().with_columns(atm_iv=0.162 + pl.int_range(pl.len()) * 1e-5)
    svg = render.svg(drawn(charts.term_structure(flat)), width=560, height=320)
    ticks = [word for word in words(svg) if re.fullmatch(r"[\d.]+%", word)]
    assert ticks and len(ticks) == len(set(ticks))


def test_vendor_names_are_escaped() -> None:
    hostile = chart_frames.agreement().with_columns(other_source=pl.lit("<script>alert(1)</script>"))
    svg = render.svg(drawn(charts.source_agreement(hostile, environment="live")), width=600, height=320)
    assert "<script" not in svg
    assert "&lt;script" in svg


def test_a_page_shows_the_title_itself() -> None:
    chart = drawn(PICTURES["term_structure"]("sandbox"))
    assert "Term structure" in words(render.svg(chart, width=400, height=300))
    spec, columns = render.for_page(chart)
    assert "title" not in spec and columns


@given(st.lists(st.floats(0, 1), max_size=6), st.floats(0.001, 0.2))
def test_spread_labels_keeps_order_and_distance(values: list[float], gap: float) -> None:
    places = spread_labels(values, gap)
    assert len(places) == len(values)
    order = sorted(range(len(values)), key=values.__getitem__)
    for lower, higher in pairwise(order):
        assert places[higher] - places[lower] >= gap - 1e-9
