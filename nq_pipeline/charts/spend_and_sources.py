"""Charts of the pipeline itself: its spend, and how far its sources agree."""

from __future__ import annotations

import altair as alt
import polars as pl

from nq_pipeline.charts.theme import SIGNED, Picture, axis, compose, described, rule

PAIRS = 138
"""Left margin for the names of two sources, pixels."""


def spend(days: pl.DataFrame, *, budget_usd: float, environment: str) -> Picture:
    """Cumulative spend of the month by day, including the plan's fee, against NQ_BUDGET_MONTHLY_USD.

    Takes the days of the month as in `spend.statement`, amounts in USD.
    """
    if days.is_empty():
        return "No spend: the ledger has no entry yet."
    drawn = days.with_columns(
        pl.col("metered_usd", "cumulative_usd").cast(pl.Float64),
        pl.col("day").cast(pl.Datetime("ms")).dt.epoch("ms"),
        environment=pl.lit(environment),
        label=pl.format(
            "{} · {} on the day, {} in the month{}",
            pl.col("day").dt.strftime("%-d %b"),
            _usd("metered_usd"),
            _usd("cumulative_usd"),
            pl.when("projected").then(pl.lit(" (projected)")).otherwise(pl.lit("")),
        ),
    ).sort("day")
    most = max(budget_usd, *drawn["cumulative_usd"].to_list())
    gone = drawn.filter(~pl.col("projected"))
    ahead = pl.concat([gone.tail(1), drawn.filter("projected")])
    x = alt.X(
        "day:T", scale=alt.Scale(type="utc"), axis=axis("day of the month", format="%-d %b", tickCount=6)
    )
    y = alt.Y(
        "cumulative_usd:Q",
        scale=alt.Scale(domainMin=0, domainMax=most * 1.12),
        axis=axis("US dollars in the month", format="$,d", tickCount=5),
    )
    cap = alt.Chart(pl.DataFrame({"at": [budget_usd], "words": [f"budget ${budget_usd:,.0f}"]}))
    return compose(
        [
            alt.Chart(gone).mark_area(style="band", interpolate="step-after").encode(x=x, y=y),
            alt.Chart(gone).mark_line(style="line", interpolate="step-after").encode(x=x, y=y),
            alt.Chart(ahead).mark_line(style="ahead").encode(x=x, y=y),
            cap.mark_rule(style="cap").encode(y=alt.Y("at:Q")),
            cap.mark_text(style="label_of_level", align="left", baseline="bottom", dy=-4, x=4).encode(
                y=alt.Y("at:Q"), text=alt.Text("words:N")
            ),
            alt.Chart(drawn).mark_point(style="dots", opacity=0.001, size=90).encode(x=x, y=y, **described()),
        ],
        "Spend of the month",
        "The plan's fee and all metered requests; dashed: the projection to its end",
        drawn,
    )


def source_agreement(rows: pl.DataFrame, *, environment: str) -> Picture:
    """Median and 5th to 95th percentile of the difference of two sources' mid prices (`source_agreement`)."""
    gaps = rows.filter(pl.col("mid_gap").is_not_null())
    if gaps.is_empty():
        return "No comparison: no two sources quoted the same contract."
    gap = pl.col("mid_gap")
    drawn = (
        gaps.group_by("source", "other_source")
        .agg(
            low=gap.quantile(0.05),
            high=gap.quantile(0.95),
            median=gap.median(),
            contracts=pl.len(),
            overlapping=pl.col("quotes_overlap").mean(),
        )
        .sort("source", "other_source")
        .with_columns(
            environment=pl.lit(environment),
            pair=pl.format("{} → {}", "source", "other_source"),
            words=pl.format(
                "{} % of {} quotes overlap",
                (pl.col("overlapping").fill_null(0.0) * 100).round(0).cast(pl.Int64),
                pl.col("contracts").map_elements("{:,}".format, return_dtype=pl.String),
            ),
        )
        .with_columns(
            label=pl.format(
                "{} · median {} points, nine in ten from {} to {} · {}",
                "pair",
                pl.col("median").round(2),
                pl.col("low").round(2),
                pl.col("high").round(2),
                "words",
            )
        )
    )
    reach = max(0.5, *(abs(v) for name in ("low", "high") for v in drawn[name].to_list())) * 1.1
    x = alt.X(
        "low:Q",
        scale=alt.Scale(domain=[-reach, reach], nice=False),
        axis=axis("difference of mid prices, points", labelExpr=SIGNED, tickCount=7, grid=True),
    )
    y = alt.Y("pair:N", axis=alt.Axis(title=None, grid=False), scale=alt.Scale(paddingOuter=0.6))
    base = alt.Chart(drawn).encode(y=y)
    return compose(
        [
            rule(0.0, "zero", alt.X),
            base.mark_rule(style="call", strokeWidth=5, opacity=0.35, strokeCap="round").encode(
                x=x, x2=alt.X2("high:Q")
            ),
            base.mark_point(style="dots", size=60).encode(x=alt.X("median:Q"), **described()),
            base.mark_text(style="label", dy=-15).encode(x=alt.X("median:Q"), text=alt.Text("words:N")),
        ],
        "Do the sources agree?",
        "Second minus first source. Dot: median; bar: nine in ten contracts. Delays differ",
        drawn,
        height=24 + 44 * drawn.height,
        left=PAIRS,
    )


def _usd(name: str) -> pl.Expr:
    return pl.format("${}", pl.col(name).cast(pl.Float64).round(4))
