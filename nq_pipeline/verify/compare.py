"""Whether two tellings of the same span hold the same records. Pure."""

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
"""What makes a trade the same trade, wherever it is told. Equal trades are counted, not merged."""
EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Difference:
    """How one telling differs from another that is taken to be right.

    Attributes
    ----------
    records
        Of the one that is right.
    missing, extra
        Records that the other lacks, and those it has beyond it, repetitions included.
    examples
        A few of what differs, e.g. `{"instrument_id": 7, …, "missing": 1}`.
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
    """When trades were, as far as it can be believed; by their receipt where no time can."""
    near = is_near(records["ts_event"], records["ts_recv"])
    told: Array = records["ts_recv"]
    return np.minimum(records["ts_event"], told)[near] if near.any() else told


def compare_records(mine: Array, right: Array) -> Difference:
    """Compare trades one by one, in any order."""
    return _difference(_columns(mine), _columns(right), list(IDENTITY))


def compare_instruments(mine: pl.DataFrame, right: Array) -> Difference:
    """Compare how many trades each instrument has; `mine` has a row for each, with `instrument_id`."""
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
