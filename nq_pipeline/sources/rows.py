"""Rows of `source_chain` for all sources: columns they fill in the same way, and limits of what they keep.

An instant in the future would move `as_of` and the freshness of all rows. A row that nobody requested would
count in the open interest. A count near the end of 64 bits would overflow its sum.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, date, timedelta

import polars as pl

from nq_pipeline.clock import NS_PER_S
from nq_pipeline.lake.tables import INSTANT
from nq_pipeline.market.contracts import Series
from nq_pipeline.sources.base import ChainRequest

SKEW = timedelta(minutes=5)
"""Largest difference between a vendor's clock and ours."""
SKEW_NS = int(SKEW.total_seconds()) * NS_PER_S

MOST_CONTRACTS = 2**40
"""More than any market trades or holds. Sums of counts up to here are exact in 64 bits and in a float64."""

FUTURE = "future_instant"
"""Reason of a cell that is null because its instant is later than the request."""
OTHER = "other_series"
"""Reason of a row that is dropped because nobody requested it."""
LONGEST_PAUSE = timedelta(days=4)
"""A weekend and two holidays: the most days between two daily expirations."""


def null_future_instants(
    frame: pl.DataFrame, names: Iterable[str], latest: int, dropped: Counter[str]
) -> pl.DataFrame:
    """The frame with null in place of every instant later than `latest`; each is counted.

    `latest` is the moment of the request, or the end of the requested span where there is one, plus `SKEW`;
    nanoseconds UTC.
    """
    late = {name: pl.col(name) > pl.lit(latest).cast(INSTANT) for name in names}
    found = sum(frame.select(flag.sum() for flag in late.values()).row(0))
    if not found:
        return frame
    dropped[FUTURE] += found
    return frame.with_columns(pl.when(~flag).then(name).alias(name) for name, flag in late.items())


def keep_requested(frame: pl.DataFrame, requested: pl.Expr, dropped: Counter[str]) -> pl.DataFrame:
    """The rows for which `requested` holds; the others are counted."""
    rows = frame.filter(requested)
    if rows.height < frame.height:
        dropped[OTHER] += frame.height - rows.height
    return rows


def expiration_spans(series: Sequence[Series]) -> list[tuple[date, date]]:
    """The spans of the requested expirations, which are what a proxy is asked for, the nearest first.

    Expirations more than `LONGEST_PAUSE` apart are in two spans, so that the weeks between are not requested.
    """
    spans: list[tuple[date, date]] = []
    for day in sorted(one.expiration_date for one in series):
        if spans and day - spans[-1][1] <= LONGEST_PAUSE:
            spans[-1] = (spans[-1][0], day)
        else:
            spans.append((day, day))
    return spans


def within_expirations(series: Sequence[Series]) -> pl.Expr:
    """Whether a row expires within one of the `expiration_spans` of the requested series."""
    return pl.any_horizontal(
        pl.col("expiration_date").is_between(first, last) for first, last in expiration_spans(series)
    )


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
