"""Pictures that travel inside metadata: a chart of some kilobytes, and a bare curve of some hundred bytes.

Dagster shows the curve in the table of an asset's page, and the chart when somebody asks for it there.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import polars as pl

from nq_pipeline.lake.tables import GAMMA_LEVELS, IV_SMILE, SERIES_METRICS, STRIKE_PROFILE
from nq_pipeline.market.contracts import roots_of
from nq_pipeline.market.products import PRODUCTS, PROXIES

if TYPE_CHECKING:
    from nq_pipeline.charts import Picture

WIDTH = 640
INLINE = 1000
"""Characters of Markdown from which on Dagster shows a link in its place."""
DOTS, ACROSS, DOWN = 40, 240, 60


def thumbnail(picture: Picture) -> str:
    """Markdown with the picture as a data URI, or the sentence that stands in its place."""
    from nq_pipeline.charts import draw

    if isinstance(picture, str):
        return picture
    svg = draw.svg(picture, width=WIDTH, spoken=False)
    return f"![{picture.title.text}](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})"


def sketch(points: pl.DataFrame, title: str) -> str:
    """Markdown with the bare curve of `x` and `y`, shorter than `INLINE`; empty where there is no curve."""
    from nq_pipeline.charts.theme import LIGHT

    known = points.select("x", "y").drop_nulls().sort("x")
    known = known.gather_every(-(-known.height // DOTS) or 1)
    if known.height < 2 or known["x"].n_unique() < 2:
        return ""
    low, high = pl.all().min(), pl.all().max()
    placed = known.select((pl.all() - low) / (high - low)).fill_nan(0.5)  # a level line
    dots = " ".join(f"{x * ACROSS:.0f},{DOWN - y * DOWN:.0f}" for x, y in placed.iter_rows())
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{ACROSS}" height="{DOWN}">'
        f'<polyline fill="none" stroke-width="2" stroke="{LIGHT.call}" points="{dots}"/></svg>'
    )
    return f"![{title}](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})"


def front_smile(smile: pl.DataFrame) -> str:
    """The bare curve of the first series to expire, of rows of `iv_smile`, one snapshot of one product."""
    front = smile.filter(pl.col("years") == pl.col("years").min())
    return sketch(front.select(x="strike", y="implied_volatility"), "smile of the front series")


def front_open_interest(chain: pl.DataFrame, *, rate: float) -> Picture:
    """Open interest by strike of the first series to expire that has any.

    Parameters
    ----------
    chain
        Rows of `option_chain`, one snapshot.
    rate
        NQ_RISK_FREE_RATE; it only places the forward.
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


def of_metrics(measured: Mapping[str, pl.DataFrame], product: str) -> dict[str, Picture]:
    """A picture of each table of a snapshot's metrics, by the table's name, of the options on one product.

    Parameters
    ----------
    measured
        Rows of `iv_smile`, `strike_profile`, `series_metrics` and `gamma_levels` by these names.
    """
    from nq_pipeline import charts

    smile, profile, series = _of_product(measured, product)
    levels = measured[GAMMA_LEVELS.name].filter(pl.col("product") == product)
    return {
        IV_SMILE.name: charts.smile(smile),
        STRIKE_PROFILE.name: charts.open_interest(profile, series),
        SERIES_METRICS.name: charts.term_structure(series),
        GAMMA_LEVELS.name: charts.gamma_exposure(profile, levels),
    }


def sketches(measured: Mapping[str, pl.DataFrame], product: str) -> dict[str, str]:
    """The curves that stand for the pictures of `of_metrics`; the smile is that of the front series."""
    smile, profile, series = _of_product(measured, product)
    held = pl.col("call_open_interest").fill_null(0) + pl.col("put_open_interest").fill_null(0)
    by_strike = profile.group_by(x="strike")
    return {
        IV_SMILE.name: front_smile(smile),
        STRIKE_PROFILE.name: sketch(by_strike.agg(y=held.sum()), "open interest by strike"),
        SERIES_METRICS.name: sketch(series.select(x="years", y="atm_iv"), "term structure"),
        GAMMA_LEVELS.name: sketch(by_strike.agg(y=pl.col("gex_per_pct").sum()), "gamma exposure by strike"),
    }


def _of_product(measured: Mapping[str, pl.DataFrame], product: str) -> Iterator[pl.DataFrame]:
    """Smile, strike profile and series of one product."""
    roots = list(roots_of([(PRODUCTS | PROXIES)[product]]))
    for table in (IV_SMILE, STRIKE_PROFILE, SERIES_METRICS):
        yield measured[table.name].filter(pl.col("root").is_in(roots))


def of_pressure(rows: pl.DataFrame, product: str) -> str:
    """Markdown with the pressure of calls and of puts on one product, of rows of `trade_pressure`."""
    from nq_pipeline import charts

    own = rows.filter(pl.col("root").is_in(list(roots_of([PRODUCTS[product]]))))
    return "\n\n".join(thumbnail(charts.pressure(own, side, forward=_middle(own))) for side in "CP")


def _middle(rows: pl.DataFrame) -> float | None:
    """The strike that half of the contracts were traded below: where the market is, near enough."""
    traded = rows.sort("strike").with_columns(size=(pl.col("buy_volume") + pl.col("sell_volume")).cum_sum())
    above = traded.filter(pl.col("size") * 2 >= pl.col("size").max())
    return float(above.item(0, "strike")) if above.height else None
