"""The trade date so far: volatility, the levels of gamma, and net gamma exposure over time."""

from __future__ import annotations

import altair as alt
import polars as pl

from nq_pipeline.charts import theme

AFTER = 0.22
"""Space for the names of the lines, as a share of the time that the lines span."""
GAP = 0.08
"""Least distance of two names, as a share of the values that the lines span."""


def volatility_history(rows: pl.DataFrame) -> theme.Picture:
    """ATM IV of the first series to expire and at 30 days, from `market_history` of one product."""
    names = {"atm_iv": ("front", "call"), "atm_iv_30": ("30 days", "level")}
    return _over_time(rows, names, "ATM IV", "The first series to expire, and at 30 days", ".2%")


def level_history(rows: pl.DataFrame) -> theme.Picture:
    """The future, zero gamma and the walls, from `market_history` of one product."""
    names = {
        "forward": ("future", "spot"),
        "zero_gamma": ("zero gamma", "level"),
        "call_wall": ("call wall", "call"),
        "put_wall": ("put wall", "put"),
    }
    return _over_time(rows, names, "Future and levels", "The future, zero gamma and the walls", ",.0f")


def gamma_history(rows: pl.DataFrame) -> theme.Picture:
    """Net gamma exposure, from `market_history` of one product."""
    names = {"gex_per_pct": ("net gamma", "call")}
    return _over_time(rows, names, "Net gamma", "Dollars of futures per 1 % move", "$.2~s", zero=True)


def _over_time(
    rows: pl.DataFrame,
    names: dict[str, tuple[str, str]],
    title: str,
    subtitle: str,
    form: str,
    *,
    zero: bool = False,
) -> theme.Picture:
    """A line for each column of `names`, which has its name and its style."""
    drawn = (
        rows.select(
            theme.clock_time(pl.col("snapshot_ts")).alias("at"),
            pl.col("snapshot_ts").dt.convert_time_zone(theme.ZONE).dt.strftime("%H:%M").alias("time"),
            *(pl.col(column).cast(pl.Float64).alias(name) for column, (name, _) in names.items()),
        )
        .unpivot(index=["at", "time"], variable_name="name", value_name="value")
        .drop_nulls("value")
        .sort("at")
    )
    if drawn["at"].n_unique() < 2:
        return f"No {title} over time: it needs two snapshots on the trade date."
    words = f"datum.time + ' CT · ' + datum.name + ' ' + format(datum.value, '{form}')"
    first, last, low, high = drawn.select(
        pl.col("at").min().alias("first"),
        pl.col("at").max().alias("last"),
        pl.col("value").min().alias("low"),
        pl.col("value").max().alias("high"),
    ).row(0)
    ends = drawn.group_by("name", maintain_order=True).last()
    gap = GAP * ((high - low) or 1.0)
    ends = ends.with_columns(
        place=pl.Series(theme.spread_labels(ends["value"].to_list(), gap), dtype=pl.Float64)
    )
    x = theme.clock_axis("at")
    y = alt.Y(
        "value:Q", scale=alt.Scale(zero=zero, padding=8), axis=theme.axis(None, format=form, tickCount=5)
    )
    space = alt.Chart(pl.DataFrame({"at": [last + round(AFTER * (last - first))]}))
    layers: list[alt.Chart] = [space.mark_point(style="zero", opacity=0, aria=False).encode(x=x)]
    for name, style in names.values():
        own, end = drawn.filter(pl.col("name") == name), ends.filter(pl.col("name") == name)
        base = alt.Chart(own).transform_calculate(label=words).encode(x=x, y=y)
        layers += [
            base.mark_line(style=style, interpolate="step-after"),
            base.mark_point(style=style, size=22, filled=True).encode(**theme.described()),
            alt.Chart(end)
            .mark_text(style=style, align="left", dx=7, fontSize=11)
            .encode(x=x, y=alt.Y("place:Q"), text=alt.Text("name:N")),
        ]
    if zero:
        layers.insert(0, theme.rule(0.0, "zero"))
    return theme.compose(
        layers, title, subtitle if zero else f"{subtitle}; the axis does not start at zero", rows
    )
