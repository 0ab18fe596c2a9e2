"""Volatility smile, term structure and expected move."""

from __future__ import annotations

import altair as alt
import polars as pl

from nq_pipeline.charts import theme

SMILES = 4
"""Maximum of series in one chart; more lines would need colours that cannot be told apart."""
REACH = 3.0
"""Standard deviations drawn to either side; prices further out are of few ticks and say little."""
LABEL_SPACE = 1.6
"""Space to the right for the labels of the lines, standard deviations."""
WIDEST = 0.05
"""Largest `iv_uncertainty` (half the spread, in volatility) of a point that is drawn."""
PER_DEVIATION, DOTS_PER_DEVIATION = 40, 8
"""Points per standard deviation: of a line (every second pixel), and with a tooltip."""


def smile(rows: pl.DataFrame) -> theme.Picture:
    """Implied volatility by moneyness, from `iv_smile` of one snapshot; the spread is a band.

    The nearest expiration and up to three later ones are drawn.
    """
    width = pl.col("iv_uncertainty")
    # In a series with quotes, the volatility of a last trade is noise.
    unquoted = width.is_null().all().over("series")
    usable = rows.filter(pl.col("deviations").abs() <= REACH, (width <= WIDEST) | unquoted)
    drawn = usable.filter(pl.col("series").is_in(theme.spaced(usable, SMILES))).sort("years", "deviations")
    if drawn.is_empty():
        return "No smile: no out-of-the-money option of this snapshot has a volatility."
    width, iv = width.fill_null(0.0), pl.col("implied_volatility")
    drawn = drawn.select(
        "deviations",
        implied_volatility=iv,
        low=iv - width,
        high=iv + width,
        name=theme.series_label(pl.col("series")),
        label=pl.format(
            "{} · strike {} · {} % ± {}",
            theme.series_label(pl.col("series")),
            pl.col("strike").round(2),
            (iv * 100).round(1),
            (width * 100).round(2),
        ),
    )
    order = drawn["name"].unique(maintain_order=True).to_list()
    colour = alt.Color("name:N", sort=order, scale=alt.Scale(domain=order), legend=None)
    x = alt.X(
        "deviations:Q",
        scale=alt.Scale(domain=[-REACH, REACH + LABEL_SPACE], nice=False),
        axis=theme.axis(
            "standard deviations from the forward, σ√t",
            values=[-3, -2, -1, 0, 1, 2, 3],
            labelExpr=theme.SIGNED,
        ),
    )
    y = alt.Y(
        "implied_volatility:Q",
        scale=alt.Scale(zero=False, padding=6),
        axis=theme.axis("implied volatility", format="~%", tickCount=6),
    )
    lines = _thinned(drawn, PER_DEVIATION).drop("label")
    dots = _thinned(drawn, DOTS_PER_DEVIATION).drop("low", "high")
    ends = _line_ends(drawn).select("name", "deviations", "place")
    base = alt.Chart(lines).encode(x=x, color=colour)
    return theme.compose(
        [
            theme.rule(0.0, "zero", alt.X, opacity=0.5),
            base.mark_area(opacity=0.15).encode(y=alt.Y("low:Q"), y2=alt.Y2("high:Q")),
            base.mark_line(strokeWidth=1.75).encode(y=y),
            alt.Chart(dots)
            .mark_circle(size=70, opacity=0.001)
            .encode(x=x, y=alt.Y("implied_volatility:Q"), color=colour, **theme.described()),
            alt.Chart(ends)
            .mark_text(align="left", dx=7, fontWeight=600, fontSize=11)
            .encode(x=alt.X("deviations:Q"), y=alt.Y("place:Q"), text=alt.Text("name:N"), color=colour),
        ],
        "Volatility smile",
        "Out-of-the-money options of four expirations; the band is bid to ask"
        if len(order) == SMILES
        else "Out-of-the-money options; the band is bid to ask",
        rows,
    )


def term_structure(rows: pl.DataFrame) -> theme.Picture:
    """At-the-money implied volatility by days to expiration, from `series_metrics` of one snapshot.

    Of several, with a column `moment`, the one that the parameter `against` names is dashed.
    """
    drawn = theme.of_moments(rows).filter(pl.col("atm_iv").is_not_null(), pl.col("years") > 0).sort("years")
    now = pl.col("moment") == "now"
    if drawn.filter(now).is_empty():
        return "No term structure: no series has an ATM IV."
    drawn = drawn.select(
        "moment",
        "atm_iv",
        days=pl.col("years") * 365,
        name=theme.series_label(pl.col("series")),
        label=pl.format(
            "{} · {} days · {} %",
            theme.series_label(pl.col("series")),
            (pl.col("years") * 365).round(1),
            (pl.col("atm_iv") * 100).round(2),
        ),
    )
    x = alt.X(
        "days:Q",
        scale=alt.Scale(type="sqrt", domainMin=0, nice=True),
        axis=theme.axis("days to expiration, square-root scale", tickCount=6, grid=False),
    )
    y = alt.Y(
        "atm_iv:Q",
        scale=alt.Scale(domain=_about(drawn["atm_iv"])),
        axis=theme.axis("ATM implied volatility", format=".1%", tickCount=5),
    )
    current, earlier = drawn.filter(now), drawn.filter(~now)
    first, last = (
        alt.Chart(end).encode(x=x, y=y, text=alt.Text("name:N")) for end in (current.head(1), current.tail(1))
    )
    base = alt.Chart(current).encode(x=x, y=y)
    before = alt.Chart(earlier).transform_filter("datum.moment == against").encode(x=x, y=y)
    return theme.compose(
        [
            before.mark_line(style="ahead", strokeWidth=1.5),
            before.mark_point(style="ring").encode(**theme.described()),
            base.mark_line(style="line"),
            base.mark_point(style="dots").encode(**theme.described()),
            first.mark_text(style="label", align="left", dx=8, dy=-6),
            *([last.mark_text(style="label", align="right", dx=4, dy=14)] if len(current) > 1 else []),
        ],
        "Term structure",
        "ATM implied volatility by expiration; the axis does not start at zero",
        rows,
        params={"against": ""},
    )


def expected_move(rows: pl.DataFrame) -> theme.Picture:
    """The expected move (one standard deviation) to each expiration, by `series_metrics` of one snapshot."""
    move, straddle = pl.col("expected_move_iv"), pl.col("expected_move_straddle")
    drawn = rows.filter(move.is_not_null(), pl.col("years") > 0).sort("years")
    if drawn.is_empty():
        return "No expected move: no series has an ATM IV."
    drawn = drawn.select(
        "environment",
        days=pl.col("years") * 365,
        up=move,
        down=-move,
        straddle_up=straddle,
        straddle_down=-straddle,
        name=theme.series_label(pl.col("series")),
        label=pl.format(
            "{} · {} to {} · ±{} points, {} % · straddle {}",
            theme.series_label(pl.col("series")),
            (pl.col("forward") - move).round(0).cast(pl.Int64),
            (pl.col("forward") + move).round(0).cast(pl.Int64),
            move.round(0).cast(pl.Int64),
            (move / pl.col("forward") * 100).round(2),
            pl.col("expected_move_straddle").round(1).cast(pl.String).fill_null("unknown"),
        ),
    )
    start = pl.DataFrame({"days": [0.0], "up": [0.0], "down": [0.0]})
    cone = pl.concat([start, drawn.select("days", "up", "down")])
    x = alt.X(
        "days:Q", scale=alt.Scale(domainMin=0, nice=True), axis=theme.axis("days to expiration", tickCount=6)
    )
    y = alt.Y("up:Q", axis=theme.axis("points from the forward", labelExpr=theme.SIGNED, tickCount=6))
    end = drawn.tail(1).with_columns(words=pl.lit(f"±{drawn['up'][-1]:,.0f}"))
    base = alt.Chart(drawn).encode(x=x)
    return theme.compose(
        [
            alt.Chart(cone)
            .mark_area(style="band", interpolate="monotone")
            .encode(x=x, y=y, y2=alt.Y2("down:Q")),
            alt.Chart(cone).mark_line(style="line", interpolate="monotone").encode(x=x, y=y),
            alt.Chart(cone).mark_line(style="line", interpolate="monotone").encode(x=x, y=alt.Y("down:Q")),
            theme.rule(0.0, "zero"),
            base.mark_point(style="ring").encode(y=alt.Y("straddle_up:Q"), **theme.described()),
            base.mark_point(style="ring").encode(y=alt.Y("straddle_down:Q"), **theme.described()),
            base.mark_point(style="dots").encode(y=alt.Y("up:Q"), **theme.described()),
            base.mark_point(style="dots").encode(y=alt.Y("down:Q"), **theme.described()),
            alt.Chart(end)
            .mark_text(style="label", dy=-12)
            .encode(x=x, y=alt.Y("up:Q"), text=alt.Text("words:N")),
        ],
        "Expected move",
        "Cone: one standard deviation from ATM IV; rings: the ATM straddle",
        rows,
    )


def _about(volatilities: pl.Series) -> list[float]:
    """Axis limits with space for labels, at least a percentage point apart: a flat curve looks flat."""
    low, high = float(volatilities.min()), float(volatilities.max())  # type: ignore[arg-type]
    margin = max(0.15 * (high - low), 0.005)
    return [max(low - margin, 0.0), high + margin]


def _thinned(drawn: pl.DataFrame, per_deviation: int) -> pl.DataFrame:
    """At most `per_deviation` points of every line per standard deviation."""
    part = (pl.col("deviations") * per_deviation).floor().alias("part")
    return drawn.group_by("name", part, maintain_order=True).first().drop("part")


def _line_ends(drawn: pl.DataFrame) -> pl.DataFrame:
    """The last point of every line, and `place`: the height of its label, such that none overlap."""
    ends = drawn.group_by("name", maintain_order=True).last()
    iv = drawn["implied_volatility"]
    span = float(iv.max()) - float(iv.min())  # type: ignore[arg-type]
    places = theme.spread_labels(ends["implied_volatility"].to_list(), span * 0.085)
    return ends.with_columns(place=pl.Series(places, dtype=pl.Float64), deviations=pl.lit(REACH))
