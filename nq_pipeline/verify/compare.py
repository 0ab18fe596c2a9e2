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
    """How some trades differ from those taken to be right; repetitions are counted, too."""

    records: int  # the right ones
    missing: int
    extra: int
    examples: tuple[Mapping[str, Any], ...] = ()  # e.g. `{"instrument_id": 7, …, "missing": 1}`

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
    """Compare the number of trades per instrument; `mine` has a row for each trade."""
    own = mine.select(pl.col("instrument_id").cast(pl.UInt32))
    return _difference(own, _columns(right).select("instrument_id"), ["instrument_id"])


def _difference(mine: pl.DataFrame, right: pl.DataFrame, on: list[str]) -> Difference:
    lacks = pl.col("lacks").sum()
    differ = (
        pl.concat([right.select(*on, lacks=1), mine.select(*on, lacks=-1)])
        .group_by(on)
        .agg(missing=lacks.clip(lower_bound=0), extra=(-lacks).clip(lower_bound=0))
        .filter(pl.col("missing") != pl.col("extra"))
        .sort(on)
    )
    missing, extra = int(differ["missing"].sum()), int(differ["extra"].sum())
    return Difference(right.height, missing, extra, tuple(differ.head(EXAMPLES).to_dicts()))


def _columns(records: Array) -> pl.DataFrame:
    plain = {name: np.ascontiguousarray(records[name]) for name in IDENTITY}
    return pl.DataFrame({n: v.view(np.uint8) if v.dtype.kind == "S" else v for n, v in plain.items()})
