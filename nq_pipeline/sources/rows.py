"""Columns that all sources fill in the same way, and the removal of unusable rows."""

from __future__ import annotations

from collections import Counter
from datetime import UTC

import polars as pl

from nq_pipeline.market.contracts import Series
from nq_pipeline.sources.base import ChainRequest


def request_columns(source: str, request: ChainRequest) -> dict[str, pl.Expr]:
    """The columns of `SOURCE_CHAIN` that follow from the request."""
    return {
        "source": pl.lit(source),
        "environment": pl.lit(request.environment),
        "trade_date": pl.lit(request.trade_date),
        "run_id": pl.lit(request.run_id),
    }


def series_columns(series: Series) -> dict[str, object]:
    """The columns of `SOURCE_CHAIN` that follow from the series, by the product table."""
    info = series.root_info
    return {
        "root": series.root,
        "series": series.key,
        "expiration": series.expiration.astimezone(UTC),
        "expiration_date": series.expiration_date,
        "settlement_style": info.family.settlement_style,
        "exercise_style": info.family.exercise_style,
        "multiplier": info.product.multiplier,
    }


def drop_faulty(rows: pl.DataFrame, fault: pl.Expr, dropped: Counter[str]) -> pl.DataFrame:
    """The rows whose `fault` is null; the others are counted by the reason that it names."""
    rows = rows.with_columns(_fault=fault)
    dropped.update(rows["_fault"].drop_nulls().to_list())
    return rows.filter(pl.col("_fault").is_null()).drop("_fault")
