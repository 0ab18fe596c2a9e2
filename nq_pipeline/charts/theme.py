"""The theme that all charts share: sizes, palettes, styles.

Marks name a style (`call`, `put`, `spot`, …) instead of a colour, so the same chart can be rendered in
light, in dark or with the CSS variables of a page. Blue and orange, and green and purple, can be told
apart by colour-blind readers and in greyscale.

Charts name channels by class (`alt.X("strike:Q")`), because Altair takes milliseconds to find the class
for a plain string.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import altair as alt
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


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours by meaning; `first` to `fourth` are expirations, the nearest first."""

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
"""Colours as CSS variables of the page that contains the SVG."""
SHADES = 16
"""Colours of expirations, from the nearest to the furthest."""


def shades(palette: Palette) -> list[str]:
    """The colours of expirations: `first` to `fourth`, and colours between them."""
    if palette is PAGE:
        return [f"var(--shade-{shade})" for shade in range(SHADES)]
    stops = [
        [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
        for colour in (palette.first, palette.second, palette.third, palette.fourth)
    ]
    mixed = []
    for shade in range(SHADES):
        stop, share = divmod(shade * (len(stops) - 1) / (SHADES - 1), 1)
        low, high = stops[int(stop)], stops[min(int(stop) + 1, len(stops) - 1)]
        mixed.append(
            "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in zip(low, high, strict=True))
        )
    return mixed


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
        # Screen readers would read out the column names of marks without a description.
        **{mark: {"aria": False} for mark in ("area", "line", "rule", "text")},
        "range": {"category": shades(palette), "ordinal": shades(palette)},
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
            "earlier": {"filled": False, "color": palette.muted, "strokeWidth": 1.25},
            "spot": {"color": palette.ink, "strokeWidth": 1.25},
            "level": {"color": palette.warn, "strokeWidth": 1.25, "strokeDash": [4, 3]},
            "label": {"color": palette.muted, **words},
            "label_of_spot": {"color": palette.ink, **words},
            "label_of_level": {"color": palette.warn, **words},
        },
    }


def page_colours() -> str:
    """CSS that defines the variables of `PAGE` for light and, on a screen that prefers it, dark."""

    def variables(palette: Palette) -> str:
        named = asdict(palette) | {f"shade-{at}": colour for at, colour in enumerate(shades(palette))}
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
