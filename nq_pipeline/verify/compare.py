"""Comparing two records of the same span of trades. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from nq_pipeline.dbn.framer import is_near

Array = npt.NDArray[Any]

IDENTITY = (
    "publisher_id", "instrument_id", "ts_event", "ts_recv", "sequence", "price", "size", "side", "action",
)  # fmt: skip
"""The fields that identify a trade in any source. Equal trades are counted, not merged."""
EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Difference:
    """How some trades differ from those taken to be right.

    Attributes
    ----------
    records
        The number of right trades.
    missing, extra
        Trades that are lacking, and trades beyond the right ones, repetitions included.
    examples
        A few differences, e.g. `{"instrument_id": 7, …, "missing": 1}`.
    """

    records: int
    missing: int
    extra: int
    examples: tuple[Mapping[str, Any], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.missing or self.extra)

    def __str__(self) -> str:
        return f"{self.missing:,} missing and {self.extra:,} too many of {self.records:,}"


def select_span(records: Array, field: str, first_ns: np.uint64, last_ns: np.uint64) -> Array:
    """The records with `first_ns <= field < last_ns`, nanoseconds UTC."""
    chosen: Array = records[(records[field] >= first_ns) & (records[field] < last_ns)]
    return chosen


def trade_times(records: Array) -> Array:
    """The plausible instants of trades, nanoseconds UTC; those of receipt if none is plausible."""
    near = is_near(records["ts_event"], records["ts_recv"])
    received: Array = records["ts_recv"]
    return np.minimum(records["ts_event"], received)[near] if near.any() else received


def compare_records(mine: Array, right: Array) -> Difference:
    """Compare trades one by one, in any order."""
    return _difference(_columns(mine), _columns(right), list(IDENTITY))


def compare_instruments(mine: pl.DataFrame, right: Array) -> Difference:
    """Compare the number of trades per instrument; `mine` has a row with `instrument_id` for each trade."""
    own = mine.select(pl.col("instrument_id").cast(pl.UInt32))
    return _difference(own, _columns(right).select("instrument_id"), ["instrument_id"])


def _difference(mine: pl.DataFrame, right: pl.DataFrame, on: list[str]) -> Difference:
    counted = (
        mine.group_by(on)
        .agg(pl.len().cast(pl.Int64).alias("mine"))
        .join(
            right.group_by(on).agg(pl.len().cast(pl.Int64).alias("right")), on=on, how="full", coalesce=True
        )
        .with_columns(lacks=pl.col("right").fill_null(0) - pl.col("mine").fill_null(0))
        .filter(pl.col("lacks") != 0)
        .sort(on)
        .with_columns(
            missing=pl.col("lacks").clip(lower_bound=0), extra=(-pl.col("lacks")).clip(lower_bound=0)
        )
    )
    examples = counted.drop("mine", "right", "lacks").head(EXAMPLES).to_dicts()
    return Difference(
        right.height, int(counted["missing"].sum()), int(counted["extra"].sum()), tuple(examples)
    )


def _columns(records: Array) -> pl.DataFrame:
    return pl.DataFrame({name: _column(records[name]) for name in IDENTITY})


def _column(values: Array) -> Array:
    plain = np.ascontiguousarray(values)
    return plain.view(np.uint8) if plain.dtype.kind == "S" else plain
