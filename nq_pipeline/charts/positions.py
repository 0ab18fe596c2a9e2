"""Open interest, volume and gamma exposure by strike, and the put/call ratio.

The charts by strike group and sum their rows themselves, so that a reader of a page can change what they
show: `shown` (series; none: all of them), `reach` (largest distance of a strike from the future, as a
fraction of it; 0: no limit), `sides` (both, C or P) and `against` (the earlier moment that is outlined).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import altair as alt
import polars as pl

from nq_pipeline.charts import theme

NEAR = 0.05
"""Largest distance of a strike from the future in a chart of trades, as a fraction of the future's price."""
REACHES = (0.02, 0.05, 0.1, 0.2)
"""Distances that a reader can choose, besides all strikes."""
WITHIN = 0.8
"""Share of the contracts that the first view of a chart shows at least."""
BAR = 9
"""Least width of a bar and its gap, pixels; neighbouring strikes are grouped to keep to it."""
WIDTHS = (5, 10, 25, 50, 100, 250, 500, 1000)
"""Possible widths of a group of strikes, points."""
EDGE = 0.55
"""Where the label of a line turns to its other side, as a share of `reach`."""
ROW = 14
"""Height of the label of a line, pixels."""
ROUND_RATIOS = [0.1, 0.25, 0.5, 1, 2, 4, 10]
NAMES = 76
"""Left margin for the names of series, pixels."""


def open_interest(profile: pl.DataFrame, metrics: pl.DataFrame, series: str | None = None) -> theme.Picture:
    """Open contracts by strike, calls up and puts down, with the future, and max pain of a single series.

    Takes rows of `strike_profile` and `series_metrics`, one snapshot, or several with a column `moment`.
    Draws one series, or the sum of all.
    """
    return _calls_up_puts_down(profile, metrics, series, "open_interest", "Open interest", "Open contracts")


def volume(profile: pl.DataFrame, metrics: pl.DataFrame, series: str | None = None) -> theme.Picture:
    """Contracts traded by strike in the session, calls up, puts down; parameters as for `open_interest`."""
    return _calls_up_puts_down(profile, metrics, series, "volume", "Volume", "Contracts traded")


def gamma_exposure(profile: pl.DataFrame, levels: pl.DataFrame) -> theme.Picture:
    """Net gamma exposure by strike; of all series with the zero-gamma level and the walls.

    Takes rows of `strike_profile` and `gamma_levels`, one snapshot and one class of underlying.
    """
    forward = _first(levels, "forward")
    if forward is None:
        return "No gamma exposure: no series has a forward price."
    rows = _sides(profile, "gex_per_pct")
    if rows.is_empty():
        return "No gamma exposure: no contract has both a gamma and open interest."
    names = ("zero gamma", "call wall", "put wall")
    levels_at = {name: _first(levels, name.replace(" ", "_")) for name in names}
    known = [(name, level) for name, level in levels_at.items() if level is not None]
    lines = [_level(name, level, row, "") for row, (name, level) in enumerate(known, start=1)]
    net = "datum.calls + datum.puts"
    height = alt.Y("net:Q", axis=theme.axis(None, format="$.2~s", tickCount=6))
    words = "'net ' + format((datum.all_calls + datum.all_puts) / 1e6, '+,.1f') + ' million dollars per 1 %'"
    return _by_strike(
        rows,
        lines,
        forward,
        [_Bars("call", height, "datum.net > 0"), _Bars("put", height, "datum.net < 0")],
        calculated={"net": net, "head": f"1.3 * max(0, {net})"},
        label=f"{_SPAN} + format(datum.net / 1e6, '+,.2f') + ' million dollars per 1 %'",
        summary=words,
        title="Net gamma exposure",
        subtitle="Dollars of futures per 1 % move; assumes that dealers are long calls and short puts",
        profile=profile,
    )


def put_call(metrics: pl.DataFrame) -> theme.Picture:
    """Put/call ratio of every series by open interest and volume, from `series_metrics` of one snapshot."""
    held, traded = pl.col("put_call_open_interest"), pl.col("put_call_volume")
    drawn = metrics.filter((held > 0) | (traded > 0)).sort("expiration", "series")
    if drawn.is_empty():
        return "No put/call ratio: no series has known calls and puts."
    drawn = drawn.select(
        "environment",
        name=theme.series_label(pl.col("series")),
        open_interest=pl.when(held > 0).then(held),
        volume=pl.when(traded > 0).then(traded),
        label=pl.format(
            "{} · open interest {} · volume {}",
            theme.series_label(pl.col("series")),
            held.round(2).cast(pl.String).fill_null("unknown"),
            traded.round(2).cast(pl.String).fill_null("unknown"),
        ),
    )
    both = [v for name in ("open_interest", "volume") for v in drawn[name].drop_nulls().to_list()]
    reach = max(2.0, *both, *(1 / v for v in both)) * 1.15
    x = alt.X(
        "open_interest:Q",
        scale=alt.Scale(type="log", domain=[1 / reach, reach], nice=False),
        axis=theme.axis(
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
    return theme.compose(
        [
            theme.rule(1.0, "zero", alt.X),
            base.mark_rule(style="zero", opacity=0.35).encode(x=x, x2=alt.X2("volume:Q")),
            base.mark_point(style="ring", size=46).encode(x=alt.X("volume:Q"), **theme.described()),
            base.mark_point(style="dots", size=46).encode(x=x, **theme.described()),
        ],
        "Put/call ratio",
        "Dots: open interest of the day before; rings: this session's volume",
        metrics,
        height=max(84, 8 + 21 * drawn.height),
        left=NAMES,
    )


def open_interest_change(rows: pl.DataFrame, forward: float | None) -> theme.Picture:
    """Contracts opened less those closed by strike: calls in the left half of a bar, puts in the right.

    Takes rows of `open_interest_change`, one trade date and vendor.
    """
    if rows.is_empty() or forward is None:
        return "No open-interest change: it needs the settled figures of two trade dates from one vendor."
    is_call, change = pl.col("option_type") == "C", pl.col("open_interest_change")
    by_strike = rows.group_by("series", "strike", maintain_order=True).agg(
        call_change=change.filter(is_call).sum(), put_change=change.filter(~is_call).sum()
    )
    changed = _sides(by_strike, "change")
    day, source = rows.item(0, "trade_date"), rows.item(0, "source")
    if changed.is_empty():
        return f"No open-interest change: nothing changed on {day}."
    calls, puts = "(sides == 'P' ? 0 : datum.calls)", "(sides == 'C' ? 0 : datum.puts)"
    signed = theme.axis(None, labelExpr=theme.SIGNED, tickCount=6)
    words = [f"format(datum.{name}, '+,') + ' {name}'" for name in ("calls", "puts")]
    return _by_strike(
        changed,
        [],
        forward,
        [
            _Bars("call", alt.Y("up:Q", axis=signed), "datum.up != 0", right="bar"),
            _Bars("put", alt.Y("down:Q", axis=signed), "datum.down != 0", left="bar"),
        ],
        calculated={"up": calls, "down": puts, "head": f"1.25 * max(0, {calls}, {puts})"},
        label=f"{_SPAN} + {words[0]} + ' · ' + {words[1]}",
        summary="format(datum.all_calls, '+,') + ' calls, ' + format(datum.all_puts, '+,') + ' puts'",
        title="Open-interest change",
        subtitle=f"Contracts opened minus closed on {day}, by {source}: calls left, puts right",
        profile=rows,
    )


def first_reach(profile: pl.DataFrame, forward: float | None) -> float:
    """The smallest of `REACHES` that holds most of the open contracts; 0, for all strikes, if none does."""
    return _reach_of(_sides(profile, "open_interest"), forward)


def _reach_of(rows: pl.DataFrame, forward: float | None) -> float:
    held = pl.col("calls").abs() + pl.col("puts").abs()
    away = (pl.col("strike") / (forward or 1.0) - 1).abs()
    total = rows.select(held.sum()).item()
    return next((r for r in REACHES if rows.filter(away <= r).select(held.sum()).item() >= WITHIN * total), 0)


_SPAN = "(datum.step > 5 ? 'around ' : 'strike ') + format(datum.bar, ',') + ' · '"
"""The strikes of a bar, in its label."""


def _calls_up_puts_down(
    profile: pl.DataFrame, metrics: pl.DataFrame, series: str | None, what: str, title: str, unit: str
) -> theme.Picture:
    whose = "all series" if series is None else theme.series_label_text(series)
    rows = _sides(profile, what)
    own = rows if series is None else rows.filter(pl.col("series") == series)
    of = metrics.filter(pl.col("forward").is_not_null()).sort("expiration")
    if series is not None:
        of = of.filter(pl.col("series") == series)
    forward = _first(of, "forward")
    if own.is_empty() or forward is None:
        return f"No {title.lower()} of {whose}: no vendor reports it."
    pains = metrics.drop_nulls("max_pain") if what == "open_interest" else metrics.clear()
    lines = [
        _level("max pain", pain, 1, name) for pain, name in pains.select("max_pain", "series").iter_rows()
    ]
    calls = "(sides == 'P' ? 0 : datum.calls)"
    unsigned = theme.axis(None, labelExpr="format(abs(datum.value), ',')", tickCount=6)
    return _by_strike(
        rows,
        lines,
        forward,
        [
            _Bars("call", alt.Y("up:Q", axis=unsigned), "datum.up > 0"),
            _Bars("put", alt.Y("down:Q", axis=unsigned), "datum.down < 0"),
        ],
        calculated={"up": calls, "down": "(sides == 'C' ? 0 : -datum.puts)", "head": f"1.25 * {calls}"},
        label=f"{_SPAN} + format(datum.calls, ',') + ' calls · ' + format(datum.puts, ',') + ' puts'",
        summary="format(datum.all_calls, ',') + ' calls, ' + format(datum.all_puts, ',') + ' puts' "
        "+ (datum.beyond > 0 ? '; ' + format(datum.beyond, ',') + ' of them outside the chart' : '')",
        title=title if series is None else f"{title}, {whose}",
        subtitle=f"{unit}: calls up, puts down",
        profile=profile,
        shown=[] if series is None else [series],
        reach=_reach_of(own, forward),
    )


_LINE = {"at": pl.Float64, "words": pl.String, "row": pl.Int32, "series": pl.String}


class _Bars(NamedTuple):
    """A kind of bar: its style, height and condition, and the fields of its two sides."""

    style: str
    y: alt.Y
    where: str
    left: str = "low"
    right: str = "high"


def _level(name: str, at: float, row: int, series: str) -> dict[str, Any]:
    """A line at a level, its label in a row of its own.

    It is drawn if `series` is the only one shown; with the empty one, if all are.
    """
    return {"at": at, "words": f"{name} {at:,.0f}", "row": ROW * row, "series": series}


def _sides(profile: pl.DataFrame, what: str) -> pl.DataFrame:
    """The calls and puts of every series and strike that has either."""
    calls, puts = (pl.col(f"{side}_{what}").fill_null(0) for side in ("call", "put"))
    rows = theme.of_moments(profile).select("moment", "series", "strike", calls=calls, puts=puts)
    if what == "gex_per_pct":
        rows = rows.with_columns(pl.col("calls", "puts").round(0).cast(pl.Int64))
    return rows.filter((pl.col("calls") != 0) | (pl.col("puts") != 0))


def _by_strike(
    rows: pl.DataFrame,
    levels: list[dict[str, Any]],
    forward: float,
    kinds: list[_Bars],
    *,
    calculated: dict[
        str, str
    ],  # fields of a bar; `head` is the height below which labels of lines find space
    label: str,
    summary: str,
    title: str,
    subtitle: str,
    profile: pl.DataFrame,
    shown: list[str] | None = None,
    reach: float | None = None,
) -> theme.Picture:
    """Bars by group of strikes, an outline of the earlier moment, and lines with labels."""
    now = "datum.moment == 'now'"
    near = alt.Scale(zero=False, nice=False, padding=4)
    strike = theme.axis("strike", format=",d", tickCount=7)

    def drawn(kind: _Bars, style: str, where: str) -> alt.Chart:
        x = alt.X(f"{kind.left}:Q", scale=near, axis=strike)
        bars: alt.Chart = alt.Chart().mark_rect(style=style).transform_filter(where)
        return bars.encode(
            x=x, x2=alt.X2(f"{kind.right}:Q"), y=kind.y, y2=alt.Y2Datum(0), **theme.described()
        )

    bars = [drawn(kind, kind.style, f"{now} && {kind.where}") for kind in kinds]
    earlier = [drawn(kind, "earlier", f"!({now}) && {kind.where}") for kind in kinds]
    head = (
        alt.Chart()
        .mark_point(style="zero", opacity=0, aria=False)
        .transform_filter(now)
        .encode(y=alt.Y("head:Q"))
    )
    total = (
        alt.Chart()
        .transform_filter(now)
        .transform_aggregate(
            all_calls="max(all_calls)",
            all_puts="max(all_puts)",
            seen="sum(both)",
        )
        .transform_calculate(beyond="datum.all_calls + datum.all_puts - datum.seen")
        .transform_calculate(words=summary)
        .mark_text(style="label", align="right", baseline="bottom", x=alt.ExprRef("width"), y=-8)
        .encode(text=alt.Text("words:N"))
    )
    return theme.compose(
        [*bars, *earlier, theme.rule(0.0, "zero"), head, total, *_lines(levels, forward)],
        title,
        subtitle,
        profile,
        data=rows,
        transform=_grouped(calculated | {"label": label}),
        params={
            "shown": shown or [],
            "reach": _reach_of(rows, forward) if reach is None else reach,
            "sides": "both",
            "against": "",
            "future": forward,
        },
    )


def _grouped(calculated: dict[str, str]) -> list[alt.Transform]:
    """The chosen rows by group of neighbouring strikes: `bar` is its middle, from `low` to `high`."""
    widths = " : ".join(f"datum.least <= {width} ? {width}" for width in WIDTHS[:-1])
    of: list[str | alt.FieldName] = ["moment", "bar", "step", "all_calls", "all_puts"]
    base = (
        alt.Chart()
        .transform_filter("datum.moment == 'now' || datum.moment == against")
        .transform_filter("!length(shown) || indexof(shown, datum.series) >= 0")
        .transform_joinaggregate(all_calls="sum(calls)", all_puts="sum(puts)", groupby=["moment"])
        .transform_filter("!reach || abs(datum.strike / future - 1) <= reach")
        .transform_joinaggregate(first="min(strike)", last="max(strike)")
        .transform_calculate(least=f"(datum.last - datum.first) * {BAR} / width")
        .transform_calculate(step=f"{widths} : {WIDTHS[-1]}")
        .transform_calculate(bar="round(datum.strike / datum.step) * datum.step")
        .transform_aggregate(calls="sum(calls)", puts="sum(puts)", groupby=of)
        .transform_calculate(
            low="datum.bar - 0.42 * datum.step",
            high="datum.bar + 0.42 * datum.step",
            both="datum.calls + datum.puts",
            **calculated,
        )
    )
    return list(base.transform)


def _lines(levels: list[dict[str, Any]], forward: float) -> list[alt.Chart]:
    """Lines at the future and at levels, labelled on the side on which the future is not."""
    future = {"at": forward, "words": f"future {forward:,.2f}", "row": 0, "series": None}
    of_shown = "length(shown) ? length(shown) == 1 && shown[0] == datum.series : datum.series == ''"
    only = f"datum.series == null || ({of_shown})"
    away = "(datum.at / future - 1)"
    right = f"({away} >= 0 ? !(reach && {away} > {EDGE} * reach) : reach && -{away} > {EDGE} * reach)"
    drawn = []
    for style, lines in (("spot", [future]), ("level", levels)):
        base = (
            alt.Chart(pl.DataFrame(lines, _LINE))
            .transform_filter(only)
            .transform_filter(f"!reach || abs{away} <= reach")
            .encode(x=alt.X("at:Q"))
        )
        drawn.append(base.mark_rule(style=style))
        labelled = base.encode(y=alt.Y("row:Q", scale=None), text=alt.Text("words:N"))
        words: dict[str, Any] = {"style": f"label_of_{style}", "baseline": "top"}
        drawn += [
            labelled.transform_filter(right).mark_text(align="left", dx=5, **words),
            labelled.transform_filter(f"!{right}").mark_text(align="right", dx=-5, **words),
        ]
    return drawn


def _first(rows: pl.DataFrame, name: str) -> float | None:
    """The first known value of a column; None without the column."""
    known = rows[name].drop_nulls().to_list() if name in rows.columns else []
    return float(known[0]) if known else None
