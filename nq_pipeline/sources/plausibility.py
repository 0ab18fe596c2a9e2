"""What of an answer can be so, and belongs to its question: the same rules for every vendor.

No vendor knows a time to come, and none is trusted to send only what was asked for. Both are
checked before anything is derived from an answer: one stray instant would move `as_of` and the
freshness of all rows, one stray board would be counted among the open interest, and one count
near the end of 64 bits would turn its sum around.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import timedelta

import polars as pl

from nq_pipeline.clock import NS_PER_S
from nq_pipeline.lake.tables import INSTANT
from nq_pipeline.market.contracts import Series

SKEW = timedelta(minutes=5)
"""How far a vendor's clock may run ahead of ours, or ours behind."""
SKEW_NS = int(SKEW.total_seconds()) * NS_PER_S

MOST_CONTRACTS = 2**40
"""No market trades or holds as many; sums of counts up to here are exact in 64 bits and in a float64."""

FUTURE = "future_instant"
"""Reason of a cell that is null because its instant lies beyond the moment of asking."""
OTHER = "other_series"
"""Reason of a row that is left out because nobody asked for it."""


def none_to_come(
    frame: pl.DataFrame, names: Iterable[str], latest: int, dropped: Counter[str]
) -> pl.DataFrame:
    """The frame with null for every instant later than `latest`, each counted.

    Parameters
    ----------
    names
        Columns of instants.
    latest
        The moment of asking, or the end of the question where it has one, with `SKEW` added;
        nanoseconds UTC.
    """
    late = {name: pl.col(name) > pl.lit(latest).cast(INSTANT) for name in names}
    found = sum(frame.select(flag.sum() for flag in late.values()).row(0))
    if not found:
        return frame
    dropped[FUTURE] += found
    return frame.with_columns(pl.when(~flag).then(name).alias(name) for name, flag in late.items())


def only_asked(frame: pl.DataFrame, asked: pl.Expr, dropped: Counter[str]) -> pl.DataFrame:
    """The rows for which `asked` holds; the others are counted."""
    kept = frame.filter(asked)
    if kept.height < frame.height:
        dropped[OTHER] += frame.height - kept.height
    return kept


def within_expirations(series: Sequence[Series]) -> pl.Expr:
    """Whether a row expires within the span of the series asked for: what a proxy is asked."""
    days = [one.expiration_date for one in series]
    return pl.col("expiration_date").is_between(min(days), max(days))
