"""The volatility smile of any expirations, over an axis of the reader's choice, beside an earlier moment."""

from __future__ import annotations

import altair as alt
import polars as pl

from nq_pipeline.charts import theme
from nq_pipeline.charts.volatility import REACH, SMILES, WIDEST

AXES = {
    "deviations": "standard deviations from the forward, σ√t",
    "strike": "strike",
    "delta": "delta, puts and calls",
    "log_moneyness": "log-moneyness, ln(strike / forward)",
}
"""What the horizontal axis can show, by its name as a parameter."""
PER_DEVIATION = 15
"""Most points of a line per standard deviation."""


def smile_explorer(rows: pl.DataFrame) -> theme.Picture:
    """Implied volatility of chosen series; the spread is a band, an earlier moment is dashed.

    Its parameters are `shown` (series), `axis` (one of `AXES`), `sides` (otm: the out-of-the-money option of
    every strike; C: calls, P: puts) and `against` (the moment that is dashed).

    Takes priced contracts of one snapshot, or of several with a column `moment`: series, option_type, strike,
    log_moneyness, deviations, delta, implied_volatility, iv_uncertainty, years, and `is_otm`.
    """
    width = pl.col("iv_uncertainty")
    unquoted = width.is_null().all().over("series")  # else the volatility of a last trade is noise
    usable = theme.of_moments(rows).filter(pl.col("deviations").abs() <= REACH, (width <= WIDEST) | unquoted)
    if usable.is_empty():
        return "No smile: no option of this snapshot has a volatility."
    shown = theme.spaced(usable.filter(pl.col("moment") == "now"), SMILES)
    is_call = pl.col("option_type") == "C"
    line = ["moment", "series", "option_type", "is_otm"]
    place = (pl.col("deviations") * PER_DEVIATION).floor().alias("place")
    drawn = (
        theme.with_shade(usable)
        .sort("series", "strike")
        .group_by(*line, place, maintain_order=True)
        .first()
        .select(
            *line,
            "strike",
            "shade",
            name=theme.series_label(pl.col("series")),
            deviations=pl.col("deviations").round(3),
            log_moneyness=pl.col("log_moneyness").round(5),
            # 0 at the money, −0.4 at the put of delta −0.1, 0.4 at the call of delta 0.1
            delta=(0.5 - pl.col("delta") - pl.when(is_call).then(0.0).otherwise(1.0)).round(4),
            iv=pl.col("implied_volatility").round(5),
            width=width.fill_null(0.0).round(5),
        )
    )
    now = "datum.moment == 'now'"
    x = alt.X(
        "x:Q", scale=alt.Scale(zero=False, nice=False, padding=8), axis=theme.axis(None, labelExpr=_LABELS)
    )
    y = alt.Y(
        "iv:Q",
        scale=alt.Scale(zero=False, padding=6),
        axis=theme.axis("implied volatility", format="~%", tickCount=6),
    )
    title = " : ".join(f"axis == '{name}' ? '{words}'" for name, words in AXES.items()) + " : ''"
    # The put and the call of the two sides of an out-of-the-money smile are one line.
    chosen = alt.Chart().encode(x=x, color=theme.shade(), detail=alt.Detail("series:N"))
    return theme.compose(
        [
            chosen.transform_filter(now)
            .mark_area(opacity=0.15)
            .encode(y=alt.Y("low:Q"), y2=alt.Y2("high:Q")),
            chosen.transform_filter(now).mark_line(strokeWidth=1.75).encode(y=y),
            chosen.transform_filter(f"!({now})").mark_line(strokeWidth=1.5, strokeDash=[4, 3]).encode(y=y),
            chosen.mark_circle(size=70, opacity=0.001).encode(y=y, **theme.described()),
            alt.Chart(pl.DataFrame({"one": [1]})).mark_text(
                style="label",
                text=alt.ExprRef(title),
                x=alt.ExprRef("width / 2"),
                y=alt.ExprRef("height + 36"),
            ),
        ],
        "Volatility smile",
        "The band is bid to ask; dashed: the earlier snapshot",
        rows,
        data=drawn,
        transform=_chosen(),
        params={"shown": shown, "axis": "deviations", "sides": "otm", "against": ""},
    )


_LABELS = (
    "axis == 'strike' ? format(datum.value, ',') : axis == 'log_moneyness' ? format(datum.value, '+.1%') : "
    "axis == 'delta' ? (datum.value == 0 ? 'ATM' : "
    "format(50 - 100 * abs(datum.value), '.0f') + (datum.value < 0 ? 'P' : 'C')) : "
) + theme.SIGNED


def _chosen() -> list[alt.Transform]:
    """The rows that the parameters choose, with their place `x` and label."""
    base = (
        alt.Chart()
        .transform_filter("indexof(shown, datum.series) >= 0")
        .transform_filter("datum.moment == 'now' || datum.moment == against")
        .transform_filter("sides == 'otm' ? datum.is_otm : datum.option_type == sides")
        .transform_calculate(
            x="datum[axis]",
            low="datum.iv - datum.width",
            high="datum.iv + datum.width",
            label="datum.name + (datum.moment == 'now' ? '' : ', earlier') + ' · ' "
            "+ format(datum.strike, ',') + (datum.option_type == 'C' ? ' call' : ' put') + ' · IV ' "
            "+ format(datum.iv, '.2%') + ' ± ' + format(datum.width, '.2%') + ' · delta ' "
            "+ format(datum.option_type == 'C' ? 0.5 - datum.delta : -0.5 - datum.delta, '+.2f')",
        )
    )
    return list(base.transform)
