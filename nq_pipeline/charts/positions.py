"""Open interest, volume and gamma exposure by strike, and the put/call ratio."""

from __future__ import annotations

import altair as alt
import polars as pl

from nq_pipeline.charts.theme import Picture, axis, compose, described, series_label, series_label_text

NEAR = 0.05
"""Largest distance of a strike from the forward in a chart of all series, as a fraction of the forward."""
DEVIATIONS = 3.0
"""The same in a chart of one series, in standard deviations (expected moves)."""
MOST_BARS = 56
"""Maximum of bars; neighbouring strikes are grouped to stay within it."""
WIDTHS = (5, 10, 25, 50, 100, 250, 500, 1000)
"""Possible widths of a group of strikes, points."""
ROUND_RATIOS = [0.1, 0.25, 0.5, 1, 2, 4, 10]
LABEL_WIDTH = 0.3
"""Fraction of the chart's width that the label of a line needs."""
NAMES = 76
"""Left margin for the names of series, pixels."""


def open_interest(profile: pl.DataFrame, metrics: pl.DataFrame, series: str | None = None) -> Picture:
    """Open contracts by strike, calls up and puts down, with the forward and max pain.

    Takes rows of `strike_profile` and `series_metrics`, one snapshot. Draws one series, or the sum of all,
    which has no max pain.
    """
    return _calls_up_puts_down(profile, metrics, series, "open_interest", "Open interest", "open contracts")


def volume(profile: pl.DataFrame, metrics: pl.DataFrame, series: str | None = None) -> Picture:
    """Contracts traded by strike in the session, calls up, puts down; parameters as for `open_interest`."""
    return _calls_up_puts_down(profile, metrics, series, "volume", "Volume", "contracts traded")


def gamma_exposure(profile: pl.DataFrame, levels: pl.DataFrame) -> Picture:
    """Net gamma exposure of all series by strike, with the forward and the zero-gamma level.

    Takes rows of `strike_profile` and `gamma_levels`, one snapshot and one class of underlying.
    """
    forward = _first(levels, "forward")
    if forward is None:
        return "No gamma exposure: no series has a forward price."
    net = pl.col("gex_per_pct").sum()
    near = profile.filter((pl.col("strike") / forward - 1).abs() <= NEAR, pl.col("gex_per_pct").is_not_null())
    if near.filter(pl.col("gex_per_pct") != 0).is_empty():
        return "No gamma exposure: no contract has both a gamma and open interest."
    bars, width = _bars(near, [net.alias("net")])
    bars = bars.with_columns(
        label=pl.format(
            "{} · {} million dollars per 1 %", _span(width), (pl.col("net") / 1e6).round(2).cast(pl.String)
        )
    )
    y = alt.Y(
        "net:Q",
        scale=_scale_with_headroom(bars["net"]),
        axis=axis("dollars of futures per 1 % move", format="$.2~s", tickCount=6),
    )
    zero = _first(levels, "zero_gamma")
    return compose(
        [
            *(
                alt.Chart(bars.filter(where))
                .mark_rect(style=style)
                .encode(x=_x(), x2=alt.X2("high:Q"), y=y, y2=alt.Y2Datum(0), **described())
                for style, where in (("call", pl.col("net") > 0), ("put", pl.col("net") < 0))
            ),
            *_zero_line(),
            *_levels(bars, spot=forward, words="zero gamma", level=zero),
        ],
        "Net gamma exposure",
        "Assumes that dealers are long every open call and short every open put",
        profile,
    )


def put_call(metrics: pl.DataFrame) -> Picture:
    """Put/call ratio of every series by open interest and volume, from `series_metrics` of one snapshot."""
    held, traded = pl.col("put_call_open_interest"), pl.col("put_call_volume")
    drawn = metrics.filter((held > 0) | (traded > 0)).sort("expiration", "series")
    if drawn.is_empty():
        return "No put/call ratio: no series has known calls and puts."
    drawn = drawn.select(
        "environment",
        name=series_label(pl.col("series")),
        open_interest=pl.when(held > 0).then(held),
        volume=pl.when(traded > 0).then(traded),
        label=pl.format(
            "{} · open interest {} · volume {}",
            series_label(pl.col("series")),
            held.round(2).cast(pl.String).fill_null("unknown"),
            traded.round(2).cast(pl.String).fill_null("unknown"),
        ),
    )
    both = [v for name in ("open_interest", "volume") for v in drawn[name].drop_nulls().to_list()]
    reach = max(2.0, *both, *(1 / v for v in both)) * 1.15
    x = alt.X(
        "open_interest:Q",
        scale=alt.Scale(type="log", domain=[1 / reach, reach], nice=False),
        axis=axis(
            "put/call ratio, log scale",
            values=[v for v in ROUND_RATIOS if 1 / reach <= v <= reach],
            format="~r",
            grid=True,
        ),
    )
    y = alt.Y(
        "name:N",
        sort=drawn["name"].to_list(),
        axis=alt.Axis(title=None, grid=False),
        scale=alt.Scale(paddingOuter=0.4),
    )
    base = alt.Chart(drawn).encode(y=y)
    return compose(
        [
            alt.Chart(pl.DataFrame({"at": [1.0]})).mark_rule(style="zero").encode(x=alt.X("at:Q")),
            base.mark_rule(style="zero", opacity=0.35).encode(x=x, x2=alt.X2("volume:Q")),
            base.mark_point(style="ring", size=46).encode(x=alt.X("volume:Q"), **described()),
            base.mark_point(style="dots", size=46).encode(x=x, **described()),
        ],
        "Put/call ratio",
        "Dots: open interest of the day before; rings: this session's volume",
        metrics,
        height=max(84, 8 + 21 * drawn.height),
        left=NAMES,
    )


def _calls_up_puts_down(
    profile: pl.DataFrame, metrics: pl.DataFrame, series: str | None, what: str, title: str, unit: str
) -> Picture:
    if series is not None:
        profile, metrics = (rows.filter(pl.col("series") == series) for rows in (profile, metrics))
    front = metrics.filter(pl.col("forward").is_not_null()).sort("expiration").head(1)
    forward = _first(front, "forward")
    calls, puts = pl.col(f"call_{what}"), pl.col(f"put_{what}")
    held = profile.filter((calls.fill_null(0) + puts.fill_null(0)) > 0)
    whose = "all series" if series is None else series_label_text(series)
    if held.is_empty() or forward is None:
        return f"No {title.lower()} of {whose}: no vendor reports it."
    reach = NEAR
    if series is not None and (move := _first(front, "expected_move_iv")):
        reach = min(0.25, DEVIATIONS * move / forward)
    near = held.filter((pl.col("strike") / forward - 1).abs() <= reach)
    if near.is_empty():
        return f"No {title.lower()} of {whose} within {reach:.1%} of the future."
    bars, width = _bars(near, [calls.sum().alias("calls"), puts.sum().alias("puts")])
    bars = bars.with_columns(
        below=-pl.col("puts"),
        label=pl.format("{} · {} calls · {} puts", _span(width), pl.col("calls"), pl.col("puts")),
    )
    total = {side: int(held[f"{side}_{what}"].sum()) for side in ("call", "put")}
    shown = {side: int(near[f"{side}_{what}"].sum()) for side in ("call", "put")}
    beyond = sum(total.values()) - sum(shown.values())
    y = alt.Y(
        "calls:Q",
        scale=_scale_with_headroom(bars["calls"]),
        axis=axis(f"{unit}: calls up, puts down", labelExpr="format(abs(datum.value), ',')", tickCount=6),
    )
    sides = (("call", y), ("put", alt.Y("below:Q")))
    pain = _first(metrics, "max_pain") if series is not None and what == "open_interest" else None
    subtitle = [f"{total['call']:,} calls, {total['put']:,} puts"]
    if beyond:
        subtitle.append(f"{beyond:,} of them outside the chart")
    if pain:
        subtitle.append(f"max pain {pain:,.0f}")
    return compose(
        [
            *(
                alt.Chart(bars)
                .mark_rect(style=style)
                .encode(x=_x(), x2=alt.X2("high:Q"), y=side, y2=alt.Y2Datum(0), **described())
                for style, side in sides
            ),
            *_zero_line(),
            *_levels(bars, spot=forward, words="max pain", level=pain),
        ],
        f"{title}, {whose}",
        "; ".join(subtitle),
        profile,
    )


def _bars(near: pl.DataFrame, sums: list[pl.Expr]) -> tuple[pl.DataFrame, float]:
    """The sums by group of neighbouring strikes, and the width of a group in points."""
    strikes = near["strike"]
    span = float(strikes.max()) - float(strikes.min())  # type: ignore[arg-type]
    gaps = strikes.unique().sort().diff().drop_nulls()
    least = float(gaps.min()) if len(gaps) else 1.0  # type: ignore[arg-type]
    width = next((w for w in WIDTHS if w >= least and span / w <= MOST_BARS), max(least, span / MOST_BARS))
    centre = (pl.col("strike") / width).round() * width
    bars = near.group_by(centre.alias("strike")).agg(sums).sort("strike")
    half = 0.42 * width
    return bars.with_columns(low=pl.col("strike") - half, high=pl.col("strike") + half), width


def _span(width: float) -> pl.Expr:
    """The label of a bar's strikes."""
    middle = pl.col("strike").round(2)
    return pl.format("around {}", middle) if width > WIDTHS[0] else pl.format("strike {}", middle)


def _x() -> alt.X:
    return alt.X(
        "low:Q",
        scale=alt.Scale(zero=False, nice=False, padding=4),
        axis=axis("strike", format=",d", tickCount=7),
    )


def _scale_with_headroom(values: pl.Series) -> alt.Scale:
    """Leave space above the highest bar for the labels of the lines."""
    highest = max(values.to_list())
    return alt.Scale(domainMax=highest * 1.15) if highest > 0 else alt.Scale()


def _zero_line() -> list[alt.Chart]:
    return [alt.Chart(pl.DataFrame({"at": [0.0]})).mark_rule(style="zero").encode(y=alt.Y("at:Q"))]


def _levels(bars: pl.DataFrame, *, spot: float, words: str, level: float | None) -> list[alt.Chart]:
    """Lines at the future's price and, if in the chart, at `level`; their labels are on opposite sides."""
    low, high = bars.select(pl.col("low").min(), pl.col("high").max()).row(0)
    lines = [(spot, "spot", f"future {spot:,.2f}")]
    if level is not None and low <= level <= high:
        lines.append((level, "level", f"{words} {level:,.0f}"))
    # By position, not by value, so that the labels of two lines at one strike do not overlap either.
    return [
        layer
        for place, (value, style, name) in enumerate(sorted(lines))
        for layer in _line(value, style, name, to_left=len(lines) > 1 and place == 0, range_=(low, high))
    ]


def _line(
    value: float, style: str, words: str, *, to_left: bool, range_: tuple[float, float]
) -> list[alt.Chart]:
    """A line and its label. A label that would leave the chart moves to the other side, a line lower."""
    low, high = range_
    share = (value - low) / (high - low)
    turned = (share if to_left else 1 - share) < LABEL_WIDTH
    to_left ^= turned
    at = alt.Chart(pl.DataFrame({"at": [value], "words": [words]}))
    return [
        at.mark_rule(style=style).encode(x=alt.X("at:Q")),
        at.mark_text(
            style=f"label_of_{style}",
            align="right" if to_left else "left",
            dx=-5 if to_left else 5,
            baseline="top",
            y=14 if turned else 0,
        ).encode(x=alt.X("at:Q"), text=alt.Text("words:N")),
    ]


def _first(rows: pl.DataFrame, name: str) -> float | None:
    """The first known value of a column."""
    known = rows[name].drop_nulls()
    return float(known[0]) if len(known) else None
