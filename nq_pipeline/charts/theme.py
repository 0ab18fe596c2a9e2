"""The theme that all charts share: sizes, palettes, styles.

Marks name a style (`call`, `put`, `spot`, …) instead of a colour, so the same chart can be rendered in
light, in dark or with the CSS variables of a page. Blue and orange, and green and purple, can be told
apart by colour-blind readers and in greyscale.

Charts name channels by class (`alt.X("strike:Q")`), because Altair takes milliseconds to find the class
for a plain string.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import altair as alt
import numpy as np
import polars as pl

Picture = alt.LayerChart | str
"""A chart, or the sentence that says why there is none."""

WIDTH, HEIGHT = 640, 244
"""Default width of the whole image, and height of the plot area, pixels."""
LEFT, RIGHT, BOTTOM = 52, 16, 46
"""Margins for the axes, pixels. Fixed, because to fit them the renderer would draw each chart twice."""
TITLED, SUBTITLED, UNTITLED = 64, 16, 30
"""Top margin for the title, for each line of subtitle, and without either, pixels."""
SANDBOX = "SANDBOX: a synthetic market, no price here is real"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
SIGNED = "datum.value == 0 ? '0' : format(datum.value, '+,~r')"
"""Label expression (Vega) of an axis around zero: numbers with their sign."""
ZONE = "America/Chicago"
"""Time zone of the times of day in charts and reports."""


_COLOURS = {
    "paper": ("#ffffff", "#15181c"),
    "ink": ("#1c2127", "#e6e9ec"),
    "muted": ("#5c6672", "#98a2ad"),
    "line": ("#e4e7ea", "#2b3138"),
    "call": ("#2166ac", "#6aaee8"),
    "put": ("#c75a12", "#f0985a"),
    "buy": ("#1b7f5c", "#56c596"),
    "sell": ("#8e4585", "#d08bc7"),
    "warn": ("#b3261e", "#ff8a80"),
    "first": ("#16324f", "#f2f5f8"),
    "second": ("#2f7fc1", "#6aaee8"),
    "third": ("#2a9d8f", "#4cc4b4"),
    "fourth": ("#c98a1b", "#e6b450"),
}
"""Light and dark colours by meaning; `first` to `fourth` are expirations, the nearest first."""
Palette = dict[str, str]
LIGHT, DARK = (Palette({name: pair[at] for name, pair in _COLOURS.items()}) for at in (0, 1))
PAGE = Palette({name: f"var(--{name})" for name in _COLOURS})
"""Colours as CSS variables of the page that contains the SVG."""
SHADES = 16
"""Colours of expirations, from the nearest to the furthest."""


def shades(palette: Palette) -> list[str]:
    """The colours of expirations: `first` to `fourth`, and colours between them."""
    if palette is PAGE:
        return [f"var(--shade-{shade})" for shade in range(SHADES)]
    stops = (palette[name] for name in ("first", "second", "third", "fourth"))
    channels = zip(*([int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in stops), strict=True)
    mixed = [np.interp(np.linspace(0, 3, SHADES), range(4), channel) for channel in channels]
    return ["#" + "".join(f"{round(value):02x}" for value in colour) for colour in zip(*mixed, strict=True)]


def with_shade(rows: pl.DataFrame) -> pl.DataFrame:
    """Add the column `shade`: which of the colours of expirations a row's series has, by its expiration."""
    order = rows.group_by("series").agg(pl.col("years").median()).sort("years", "series")
    step = (SHADES - 1) / max(1, order.height - 1)
    order = order.select("series", shade=(pl.int_range(pl.len()) * step).round().cast(pl.Int64))
    return rows.join(order, on="series", how="left", maintain_order="left")


def shade() -> alt.Color:
    """The colour of a row's series, from the column `shade`."""
    return alt.Color("shade:O", scale=alt.Scale(domain=list(range(SHADES))), legend=None)


def config(palette: Palette) -> dict[str, Any]:
    """The Vega-Lite configuration of all charts."""
    line = {"strokeWidth": 2, "strokeCap": "round", "strokeJoin": "round"}
    words = {"font": FONT, "fontSize": 11}
    return {
        "background": palette["paper"],
        "font": FONT,
        "view": {"stroke": None},
        "axis": {
            "domain": False,
            "ticks": False,
            "grid": True,
            "gridColor": palette["line"],
            "labelColor": palette["muted"],
            "labelFontSize": 11,
            "labelPadding": 6,
            "labelLimit": 0,
            "titleColor": palette["muted"],
            "titleFontSize": 11,
            "titleFontWeight": "normal",
            "titlePadding": 8,
            "titleLimit": 0,
        },
        "axisX": {
            "grid": False,
            "domain": True,
            "domainColor": palette["line"],
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
            "color": palette["ink"],
            "fontSize": 15,
            "fontWeight": 600,
            "offset": 24,
            "subtitleColor": palette["muted"],
            "subtitleFontSize": 11.5,
            "subtitlePadding": 5,
            "subtitleLineHeight": 15,
        },
        "legend": {"disable": True},
        # Screen readers would read out the column names of marks without a description.
        **{mark: {"aria": False} for mark in ("area", "line", "rule", "text")},
        "range": {"category": shades(palette), "ordinal": shades(palette)},
        "style": {
            "call": {"color": palette["call"]},
            "put": {"color": palette["put"]},
            "buy": {"color": palette["buy"]},
            "sell": {"color": palette["sell"]},
            "line": {"color": palette["call"], **line},
            "dots": {"color": palette["call"], "size": 34, "opacity": 1, "filled": True},
            "ring": {"color": palette["call"], "size": 34, "opacity": 1, "filled": False, "strokeWidth": 1.5},
            "band": {"color": palette["call"], "opacity": 0.16},
            "ahead": {"color": palette["call"], "strokeDash": [3, 4], **line},
            "cap": {"color": palette["warn"], "strokeWidth": 1.25},
            "zero": {"color": palette["muted"], "strokeWidth": 1},
            "earlier": {"filled": False, "color": palette["muted"], "strokeWidth": 1.25},
            "spot": {"color": palette["ink"], "strokeWidth": 1.25},
            "level": {"color": palette["warn"], "strokeWidth": 1.25, "strokeDash": [4, 3]},
            "label": {"color": palette["muted"], **words},
            "label_of_spot": {"color": palette["ink"], **words},
            "label_of_level": {"color": palette["warn"], **words},
        },
    }


def page_colours() -> str:
    """CSS that defines the variables of `PAGE` for light and, on a screen that prefers it, dark."""

    def variables(palette: Palette) -> str:
        named = palette | {f"shade-{at}": colour for at, colour in enumerate(shades(palette))}
        return "".join(f"--{name}:{value};" for name, value in named.items())

    dark = f"@media screen and (prefers-color-scheme: dark){{:root{{{variables(DARK)}}}}}"
    return f":root{{{variables(LIGHT)}}}\n{dark}\n"


def compose(
    layers: Sequence[alt.Chart],
    title: str,
    subtitle: str,
    rows: pl.DataFrame,
    *,
    height: int = HEIGHT,
    left: int = LEFT,
    params: Mapping[str, Any] | None = None,
    **shared: Any,
) -> alt.LayerChart:
    """Layer marks into one chart with titles, size and the light theme; sandbox data is labelled as such.

    `params` are the names and first values of what a page lets its reader change. `shared` has the `data` and
    the `transform` of all layers that have none of their own.
    """
    lines = [subtitle]
    if "environment" in rows.columns and (rows["environment"] == "sandbox").any():
        lines.append(SANDBOX)
    top = TITLED + SUBTITLED * len(lines)
    if params:
        shared["params"] = [alt.VariableParameter(name=name, value=value) for name, value in params.items()]
    chart = alt.LayerChart(layer=list(layers), **shared).properties(
        width=WIDTH - left - RIGHT,
        height=height,
        padding={"left": left, "right": RIGHT, "top": top, "bottom": BOTTOM},
        autosize="none",
        title=alt.Title(title, subtitle=lines),
    )
    chart.config = config(LIGHT)
    return chart


def of_moments(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows with the column `moment`: `now`, or the name of an earlier snapshot."""
    return rows if "moment" in rows.columns else rows.with_columns(moment=pl.lit("now"))


def axis(title: str | None, **more: Any) -> alt.Axis:
    return alt.Axis(title=title, **more)


def clock_axis(field: str) -> alt.X:
    """The horizontal axis of times of day, of a column made by `clock_time`."""
    at = axis("time of day, Chicago", format="%H:%M", tickCount=6)
    return alt.X(f"{field}:T", scale=alt.Scale(type="utc", nice=False), axis=at)


def clock_time(instant: pl.Expr) -> pl.Expr:
    """Milliseconds of the time in Chicago as if it were UTC: Vega knows UTC and the browser's zone only."""
    return instant.dt.convert_time_zone(ZONE).dt.replace_time_zone(None).dt.epoch("ms")


def rule(at: float, style: str, along: type[alt.X] | type[alt.Y] = alt.Y, **mark: Any) -> alt.Chart:
    """A line across the chart at a value of an axis."""
    line: alt.Chart = alt.Chart(pl.DataFrame({"at": [at]})).mark_rule(style=style, **mark)
    return line.encode(along("at:Q"))


def described() -> dict[str, Any]:
    """Encodings that show the column `label` as the tooltip and to screen readers."""
    return {"tooltip": alt.Tooltip("label:N", title=" "), "description": alt.Description("label:N")}


def series_label(series: pl.Expr) -> pl.Expr:
    """The short name of a series: `Q1B 1 Jul` for `Q1B-2025-07-01`."""
    day = series.str.slice(-10).str.to_date("%Y-%m-%d", strict=False)
    return pl.concat_str(series.str.head(-11), pl.lit(" "), day.dt.strftime("%-d %b")).fill_null(series)


def series_label_text(series: str) -> str:
    """`series_label` for a single string."""
    return str(pl.select(series_label(pl.lit(series))).item())


def spaced(rows: pl.DataFrame, most: int) -> list[str]:
    """At most so many series, the nearest first, evenly spaced by rank of expiration."""
    series = rows.group_by("series").agg(pl.col("years").median()).sort("years", "series")["series"].to_list()
    most = min(most, len(series))
    return [series[round(i * (len(series) - 1) / max(1, most - 1))] for i in range(most)]


def spread_labels(values: list[float], gap: float) -> list[float]:
    """Positions for labels near their values, in the same order, at least `gap` apart."""
    order = sorted(range(len(values)), key=values.__getitem__)
    places = list(values)
    for before, this in pairwise(order):
        places[this] = max(places[this], places[before] + gap)
    excess = sum(places) / len(places) - sum(values) / len(values) if values else 0.0
    return [place - excess for place in places]
