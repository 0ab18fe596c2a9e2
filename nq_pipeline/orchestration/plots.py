"""Thumbnails that travel inside metadata: a chart as an inline picture of some kilobytes."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import TYPE_CHECKING

import polars as pl

from nq_pipeline.lake.schemas import GAMMA_LEVELS, IV_SMILE, SERIES_METRICS, STRIKE_PROFILE
from nq_pipeline.market.contracts import roots_of
from nq_pipeline.market.products import PRODUCTS, PROXIES

if TYPE_CHECKING:
    from nq_pipeline.charts import Picture

WIDTH = 640


def thumbnail(picture: Picture) -> str:
    """Markdown with the picture as a data URI, or the sentence that stands in its place."""
    from nq_pipeline.charts import draw

    if isinstance(picture, str):
        return picture
    svg = draw.svg(picture, width=WIDTH, spoken=False)
    return f"![{picture.title.text}](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})"


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

    roots = list(roots_of([(PRODUCTS | PROXIES)[product]]))
    smile, profile, series = (
        measured[table.name].filter(pl.col("root").is_in(roots))
        for table in (IV_SMILE, STRIKE_PROFILE, SERIES_METRICS)
    )
    levels = measured[GAMMA_LEVELS.name].filter(pl.col("product") == product)
    return {
        IV_SMILE.name: charts.smile(smile),
        STRIKE_PROFILE.name: charts.open_interest(profile, series),
        SERIES_METRICS.name: charts.term_structure(series),
        GAMMA_LEVELS.name: charts.gamma_exposure(profile, levels),
    }


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
