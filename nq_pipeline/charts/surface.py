"""The fitted volatility surface as a heat map."""

from __future__ import annotations

import altair as alt
import polars as pl

from nq_pipeline.charts.theme import Picture, axis, compose, described, series_label

LEFT = 76
"""Left margin for the names of series, pixels."""
STEP = 20
"""Height of a row, pixels."""


def surface(rows: pl.DataFrame) -> Picture:
    """The fitted volatility by strike and expiration; cells outside the quotes are empty.

    Takes `VolatilitySurface.implied_volatility` at evenly spaced strikes of every listed expiration, with the
    columns `environment` and `series`.
    """
    if rows.is_empty() or not rows["implied_volatility"].count():
        return "No surface: no series has enough quotes."
    drawn = rows.drop_nulls("implied_volatility").sort("expiration", "series", "strike")
    strikes = rows["strike"].unique().sort()
    half = float(strikes[1] - strikes[0]) / 2 if len(strikes) > 1 else 0.5
    iv = pl.col("implied_volatility")
    low, high = drawn.select(iv.min().alias("low"), iv.max().alias("high")).row(0)
    drawn = drawn.select(
        name=series_label(pl.col("series")),
        left=pl.col("strike") - half,
        right=pl.col("strike") + half,
        iv=iv.round(4),
        lower=pl.col("lower").round(4),
        upper=pl.col("upper").round(4),
        strike="strike",
    )
    names = drawn["name"].unique(maintain_order=True).to_list()
    forward = rows.sort("expiration")["forward"].drop_nulls().head(1)
    label = (
        "datum.name + ' · strike ' + format(datum.strike, ',.0f') + ' · IV ' + format(datum.iv, '.1%')"
        " + ', quotes ' + format(datum.lower, '.1%') + ' to ' + format(datum.upper, '.1%')"
    )
    x = alt.X(
        "left:Q", scale=alt.Scale(zero=False, nice=False), axis=axis("strike", format=",d", tickCount=7)
    )
    y = alt.Y("name:N", sort=names, axis=alt.Axis(title=None, grid=False), scale=alt.Scale(padding=0.06))
    strength = alt.Opacity("iv:Q", scale=alt.Scale(domain=[low, high], range=[0.08, 1]), legend=None)
    return compose(
        [
            alt.Chart(drawn)
            .transform_calculate(label=label)
            .mark_rect(style="call")
            .encode(x=x, x2=alt.X2("right:Q"), y=y, opacity=strength, **described()),
            alt.Chart(pl.DataFrame({"at": forward})).mark_rule(style="spot").encode(x=alt.X("at:Q")),
        ],
        "Volatility surface",
        f"Fitted implied volatility from {low:.1%} (light) to {high:.1%} (dark); line: the future",
        rows,
        height=STEP * len(names),
        left=LEFT,
    )
