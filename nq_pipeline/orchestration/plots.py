"""Thumbnails that travel inside metadata: a chart as an inline picture of some kilobytes."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from nq_pipeline.charts import Picture

WIDTH, HEIGHT = 640, 300


def thumbnail(picture: Picture) -> str:
    """Markdown with the picture as a data URI, or the sentence that stands in its place."""
    from nq_pipeline.charts import draw

    if isinstance(picture, str):
        return picture
    svg = draw.svg(picture, width=WIDTH, height=HEIGHT, spoken=False)
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
