"""The look all charts share.

Marks name a style (`call`, `put`, `spot`, …) and never a colour, so one chart is drawn in light, in
dark, or in a page's own CSS variables by another configuration. The pairs that are told apart by
colour, blue and orange, green and purple, stay apart for the colour-blind and in grey print.
Channels are named by their classes, because finding one for a bare text takes Altair milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import altair as alt
import polars as pl

Picture = alt.LayerChart | str
"""A chart, or the sentence that says why there is none."""

WIDTH, HEIGHT = 640, 244
"""Of a chart that is shown as it is, all in all, and of the field that is drawn on, pixels."""
LEFT, RIGHT, BOTTOM = 52, 16, 46
"""Room beside a picture for its axes, pixels. Fixed, because to fit it the renderer would draw all twice."""
TITLED, SUBTITLED, UNTITLED = 64, 16, 30
"""Room above it for its title, for every line below that, and for the name of the axis alone."""
SANDBOX = "SANDBOX: a synthetic market, no price here is real"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
SIGNED = "datum.value == 0 ? '0' : format(datum.value, '+,~r')"
"""Labels of an axis whose middle is nought."""
ZONE = "America/Chicago"
"""Times of day are the exchange's."""


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours by what they mean; `first` to `fourth` are expirations, the nearest first."""

    paper: str
    ink: str
    muted: str
    line: str
    call: str
    put: str
    buy: str
    sell: str
    warn: str
    first: str
    second: str
    third: str
    fourth: str


LIGHT = Palette(
    paper="#ffffff",
    ink="#1c2127",
    muted="#5c6672",
    line="#e4e7ea",
    call="#2166ac",
    put="#c75a12",
    buy="#1b7f5c",
    sell="#8e4585",
    warn="#b3261e",
    first="#16324f",
    second="#2f7fc1",
    third="#2a9d8f",
    fourth="#c98a1b",
)
DARK = Palette(
    paper="#15181c",
    ink="#e6e9ec",
    muted="#98a2ad",
    line="#2b3138",
    call="#6aaee8",
    put="#f0985a",
    buy="#56c596",
    sell="#d08bc7",
    warn="#ff8a80",
    first="#f2f5f8",
    second="#6aaee8",
    third="#4cc4b4",
    fourth="#e6b450",
)
PAGE = Palette(**{name: f"var(--{name})" for name in asdict(LIGHT)})
"""The CSS variables of the page that a picture is put into."""


def config(palette: Palette) -> dict[str, Any]:
    """Vega-Lite's configuration of the house."""
    line = {"strokeWidth": 2, "strokeCap": "round", "strokeJoin": "round"}
    words = {"font": FONT, "fontSize": 11}
    return {
        "background": palette.paper,
        "font": FONT,
        "view": {"stroke": None},
        "axis": {
            "domain": False,
            "ticks": False,
            "grid": True,
            "gridColor": palette.line,
            "labelColor": palette.muted,
            "labelFontSize": 11,
            "labelPadding": 6,
            "labelLimit": 0,
            "titleColor": palette.muted,
            "titleFontSize": 11,
            "titleFontWeight": "normal",
            "titlePadding": 8,
            "titleLimit": 0,
        },
        "axisX": {
            "grid": False,
            "domain": True,
            "domainColor": palette.line,
            "labelFlush": True,
            "labelSeparation": 10,
        },
        "axisY": {
            "titleAngle": 0,
            "titleAlign": "left",
            "titleAnchor": "start",
            "titleBaseline": "bottom",
            "titleX": 0,
            "titleY": -10,
        },
        "title": {
            "anchor": "start",
            "frame": "group",
            "color": palette.ink,
            "fontSize": 15,
            "fontWeight": 600,
            "offset": 24,
            "subtitleColor": palette.muted,
            "subtitleFontSize": 11.5,
            "subtitlePadding": 5,
            "subtitleLineHeight": 15,
        },
        "legend": {"disable": True},
        # Charts describe their marks; without this the others would read out column names.
        **{mark: {"aria": False} for mark in ("area", "line", "rule", "text")},
        "range": {"category": [palette.first, palette.second, palette.third, palette.fourth]},
        "style": {
            "call": {"color": palette.call},
            "put": {"color": palette.put},
            "buy": {"color": palette.buy},
            "sell": {"color": palette.sell},
            "line": {"color": palette.call, **line},
            "dots": {"color": palette.call, "size": 34, "opacity": 1, "filled": True},
            "ring": {"color": palette.call, "size": 34, "opacity": 1, "filled": False, "strokeWidth": 1.5},
            "band": {"color": palette.call, "opacity": 0.16},
            "ahead": {"color": palette.call, "strokeDash": [3, 4], **line},
            "cap": {"color": palette.warn, "strokeWidth": 1.25},
            "zero": {"color": palette.muted, "strokeWidth": 1},
            "spot": {"color": palette.ink, "strokeWidth": 1.25},
            "level": {"color": palette.warn, "strokeWidth": 1.25, "strokeDash": [4, 3]},
            "label": {"color": palette.muted, **words},
            "label_of_spot": {"color": palette.ink, **words},
            "label_of_level": {"color": palette.warn, **words},
        },
    }


def compose(
    layers: Sequence[alt.Chart],
    title: str,
    subtitle: str,
    rows: pl.DataFrame,
    *,
    height: int = HEIGHT,
    left: int = LEFT,
) -> alt.LayerChart:
    """The layers as one chart with titles, size and the light theme; sandbox rows are marked as such."""
    lines = [subtitle]
    if "environment" in rows.columns and (rows["environment"] == "sandbox").any():
        lines.append(SANDBOX)
    top = TITLED + SUBTITLED * len(lines)
    chart = alt.LayerChart(layer=list(layers)).properties(
        width=WIDTH - left - RIGHT,
        height=height,
        padding={"left": left, "right": RIGHT, "top": top, "bottom": BOTTOM},
        autosize="none",
        title=alt.Title(title, subtitle=lines),
    )
    chart.config = config(LIGHT)
    return chart


def axis(title: str, **more: Any) -> alt.Axis:
    return alt.Axis(title=title, **more)


def described() -> dict[str, Any]:
    """Encodings that describe a mark by its column `label`: the tooltip, and the text for screen readers."""
    return {"tooltip": alt.Tooltip("label:N", title=" "), "description": alt.Description("label:N")}


def series_label(series: pl.Expr) -> pl.Expr:
    """The short name of a series: `Q1B 1 Jul` for `Q1B-2025-07-01`."""
    day = series.str.slice(-10).str.to_date("%Y-%m-%d", strict=False)
    return pl.concat_str(series.str.head(-11), pl.lit(" "), day.dt.strftime("%-d %b")).fill_null(series)


def series_label_text(series: str) -> str:
    """`series_label` of one text."""
    return str(pl.select(series_label(pl.lit(series))).item())


def spread_labels(values: list[float], gap: float) -> list[float]:
    """Positions for labels near their values, in the same order, at least `gap` apart."""
    order = sorted(range(len(values)), key=values.__getitem__)
    places = list(values)
    for before, this in pairwise(order):
        places[this] = max(places[this], places[before] + gap)
    excess = sum(places) / len(places) - sum(values) / len(values) if values else 0.0
    return [place - excess for place in places]
