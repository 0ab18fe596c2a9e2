"""Markdown for Dagster's metadata: tables, charts (kilobytes) and sparklines (hundreds of bytes).

The page of an asset shows sparklines in a table, and a chart when you open it there.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import polars as pl

from nq_pipeline.lake.tables import GAMMA_LEVELS, IV_SMILE, SERIES_METRICS, STRIKE_PROFILE
from nq_pipeline.market.contracts import roots_of
from nq_pipeline.market.products import PRODUCTS, PROXIES

if TYPE_CHECKING:
    from nq_pipeline.charts import Picture

MOST_ROWS = 60
"""Maximum of rows of a table; the lake has them all."""
CHART_WIDTH = 640
INLINE = 1000
"""Dagster shows Markdown of this many characters or more as a link."""
POINTS, WIDTH, HEIGHT = 40, 240, 60
"""Points, width and height of a sparkline; the latter in pixels."""


def table(frame: pl.DataFrame) -> str:
    """A frame as a Markdown table. Cells may come from vendors, so markup in them is escaped."""
    shown = frame.head(MOST_ROWS)
    lines = [_row(shown.columns), _row(["---"] * shown.width), *map(_row, shown.iter_rows())]
    if frame.height > MOST_ROWS:
        lines.append(f"\n{frame.height - MOST_ROWS} more rows are in the lake.")
    return "\n".join(lines)


def _row(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.6g}" if abs(value) < 1 else f"{value:,.2f}"
    text = " ".join(str(value).split())
    for mark in "\\`*_[]<>|!#~":
        text = text.replace(mark, "\\" + mark)
    return text


def chart(picture: Picture) -> str:
    """The chart as an inline image, or the sentence that replaces it."""
    from nq_pipeline.charts import render

    if isinstance(picture, str):
        return picture
    svg = render.svg(picture, width=CHART_WIDTH, described=False)
    return _image(picture.title.text, svg)


def sparkline(points: pl.DataFrame, title: str) -> str:
    """The curve of `x` and `y` as an image shorter than `INLINE`; empty for fewer than two points."""
    from nq_pipeline.charts.theme import LIGHT

    known = points.select("x", "y").drop_nulls().sort("x")
    known = known.gather_every(-(-known.height // POINTS) or 1)
    if known.height < 2 or known["x"].n_unique() < 2:
        return ""
    low, high = pl.all().min(), pl.all().max()
    placed = known.select((pl.all() - low) / (high - low)).fill_nan(0.5)  # a flat line
    placed_points = " ".join(f"{x * WIDTH:.0f},{HEIGHT - y * HEIGHT:.0f}" for x, y in placed.iter_rows())
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}">'
        f'<polyline fill="none" stroke-width="2" stroke="{LIGHT["call"]}" points="{placed_points}"/></svg>'
    )
    return _image(title, svg)


def _image(title: str, svg: str) -> str:
    return f"![{title}](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})"


def front_smile(smile: pl.DataFrame) -> str:
    """A sparkline of the first series to expire, from rows of `iv_smile` of one snapshot and product."""
    front = smile.filter(pl.col("years") == pl.col("years").min())
    return sparkline(front.select(x="strike", y="implied_volatility"), "smile of the front series")


def front_open_interest(chain: pl.DataFrame, *, rate: float) -> Picture:
    """Open interest by strike of the first series to expire that has any, from one snapshot.

    `rate` is NQ_RISK_FREE_RATE; it affects only the line at the forward.
    """
    from nq_pipeline import charts
    from nq_pipeline.analytics import metrics
    from nq_pipeline.market.pricing import price_chain

    held = chain.filter(pl.col("open_interest") > 0).sort("expiration", "root")
    if held.is_empty():
        return "No open interest: no vendor sent any."
    series = held.item(0, "series")
    front = chain.filter(pl.col("series") == series)
    priced = metrics.priced_chain(front, price_chain(front, rate=rate))
    return charts.open_interest(metrics.strike_profile(priced), metrics.series_metrics(priced), series)


def metric_charts(measured: Mapping[str, pl.DataFrame], product: str) -> dict[str, Picture]:
    """A chart of each table of a snapshot's metrics, for the options on one product, by the table's name."""
    from nq_pipeline import charts

    smile, profile, series = _of_product(measured, product)
    levels = measured[GAMMA_LEVELS.name].filter(pl.col("product") == product)
    return {
        IV_SMILE.name: charts.smile(smile),
        STRIKE_PROFILE.name: charts.open_interest(profile, series),
        SERIES_METRICS.name: charts.term_structure(series),
        GAMMA_LEVELS.name: charts.gamma_exposure(profile, levels),
    }


def metric_sparklines(measured: Mapping[str, pl.DataFrame], product: str) -> dict[str, str]:
    """A sparkline for each chart of `metric_charts`; the smile is that of the front series."""
    smile, profile, series = _of_product(measured, product)
    held = pl.col("call_open_interest").fill_null(0) + pl.col("put_open_interest").fill_null(0)
    by_strike = profile.group_by(x="strike")
    return {
        IV_SMILE.name: front_smile(smile),
        STRIKE_PROFILE.name: sparkline(by_strike.agg(y=held.sum()), "open interest by strike"),
        SERIES_METRICS.name: sparkline(series.select(x="years", y="atm_iv"), "term structure"),
        GAMMA_LEVELS.name: sparkline(
            by_strike.agg(y=pl.col("gex_per_pct").sum()), "gamma exposure by strike"
        ),
    }


def _of_product(measured: Mapping[str, pl.DataFrame], product: str) -> Iterator[pl.DataFrame]:
    """Smile, strike profile and series of one product."""
    roots = list(roots_of([(PRODUCTS | PROXIES)[product]]))
    for table in (IV_SMILE, STRIKE_PROFILE, SERIES_METRICS):
        yield measured[table.name].filter(pl.col("root").is_in(roots))


def pressure_charts(rows: pl.DataFrame, product: str) -> str:
    """The pressure of calls and of puts on one product, from rows of `trade_pressure`."""
    from nq_pipeline import charts

    own = rows.filter(pl.col("root").is_in(list(roots_of([PRODUCTS[product]]))))
    return "\n\n".join(chart(charts.pressure(own, side, forward=_median_strike(own))) for side in "CP")


def _median_strike(rows: pl.DataFrame) -> float | None:
    """The median strike by contracts traded, as an estimate of the forward."""
    traded = rows.sort("strike").with_columns(size=(pl.col("buy_volume") + pl.col("sell_volume")).cum_sum())
    above = traded.filter(pl.col("size") * 2 >= pl.col("size").max())
    return float(above.item(0, "strike")) if above.height else None
