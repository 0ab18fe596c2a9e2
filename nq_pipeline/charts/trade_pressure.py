"""Trade pressure: net contracts bought by aggressors, by strike and time."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import altair as alt
import polars as pl

from nq_pipeline.charts.positions import NEAR, WIDTHS
from nq_pipeline.charts.theme import ZONE, Picture, axis, clock_axis, clock_time, compose, described, rule

MINUTES = 5
MOST_CELLS = 24
"""Maximum of cells per window; neighbouring strikes are grouped to stay within it."""
NAMES = {"C": "calls", "P": "puts"}


def pressure(rows: pl.DataFrame, option_type: str, *, forward: float | None = None) -> Picture:
    """Contracts that aggressors bought less those they sold, by strike and five-minute window.

    Takes rows of `pressure` or `trade_pressure`, one trade date, and draws calls (C) or puts (P). Strikes
    more than 5 % away from `forward`, the price of the future, are not drawn; the subtitle counts them.
    """
    name = NAMES[option_type]
    traded = rows.filter(pl.col("option_type") == option_type)
    near = traded.filter((pl.col("strike") / forward - 1).abs() <= NEAR) if forward else traded
    if traded.is_empty():
        return f"No pressure for {name}: no live trades were captured."
    if near.is_empty():
        return f"No pressure for {name} near the future: all captured trades are at more distant strikes."
    span = near.select(pl.col("strike").max() - pl.col("strike").min()).item()
    width = next((w for w in WIDTHS if span / w <= MOST_CELLS), WIDTHS[-1])
    bought, sold = pl.col("buy_volume").sum(), pl.col("sell_volume").sum()
    cells = (
        near.group_by("window_start", strike=(pl.col("strike") / width).round() * width)
        .agg(bought=bought, sold=sold, trades=pl.col("trades").sum())
        .with_columns(net=pl.col("bought") - pl.col("sold"))
        .sort("window_start", "strike")
    )
    local = pl.col("window_start").dt.convert_time_zone(ZONE)
    wall = clock_time(pl.col("window_start"))
    cells = cells.with_columns(
        start=wall,
        end=wall + MINUTES * 60 * 1000,
        low=pl.col("strike") - width / 2,
        high=pl.col("strike") + width / 2,
        strength=pl.col("net").abs().sqrt(),
        label=pl.format(
            "{} CT · around {} · {} bought, {} sold in {} trades",
            local.dt.strftime("%H:%M"),
            pl.col("strike").cast(pl.Int64),
            "bought",
            "sold",
            "trades",
        ),
    )
    x = clock_axis("start")
    y = alt.Y(
        "low:Q",
        scale=alt.Scale(zero=False, nice=False),
        axis=axis("strike", format=",d", tickCount=6, grid=False),
    )
    strength = alt.Opacity("strength:Q", scale=alt.Scale(domainMin=0, range=[0.12, 1]), legend=None)
    first, last = traded.select(first=local.min(), last=local.max()).row(0)
    when = f"{first:%Y-%m-%d %H:%M} to {last + timedelta(minutes=MINUTES):%H:%M} CT"
    total = near.select(bought.alias("bought"), sold.alias("sold")).row(0, named=True)
    beyond = int((traded["buy_volume"] + traded["sell_volume"]).sum()) - total["bought"] - total["sold"]

    def marks(style: str, where: pl.Expr, **mark: Any) -> alt.Chart:
        base: alt.Chart = alt.Chart(cells.filter(where)).mark_rect(style=style, **mark)
        return base.encode(x=x, x2=alt.X2("end:T"), y=y, y2=alt.Y2("high:Q"), **described())

    net = pl.col("net")
    return compose(
        [
            marks("buy", net > 0).encode(opacity=strength),
            marks("sell", net < 0).encode(opacity=strength),
            marks("zero", net == 0, opacity=0.12),
            *([rule(forward, "spot")] if forward else []),
        ],
        f"Pressure, {name}",
        f"{total['bought']:,} bought (green), {total['sold']:,} sold (purple) by aggressors, {when}"
        + (f"; {beyond:,} outside the chart" if beyond else ""),
        rows,
    )
