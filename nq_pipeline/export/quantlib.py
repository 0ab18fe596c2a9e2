"""A JSON file of the volatility surface as QuantLib's `BlackVarianceSurface` takes it."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
import polars as pl

from nq_pipeline.errors import ExportError
from nq_pipeline.export import Exported
from nq_pipeline.export.selection import Selection
from nq_pipeline.files import write_atomically
from nq_pipeline.market.black76 import DAYS_PER_YEAR
from nq_pipeline.market.contracts import PRODUCT_OF
from nq_pipeline.market.sessions import CHICAGO
from nq_pipeline.market.surface import VolatilitySurface

STRIKES = 101


class BlackVarianceGrid(NamedTuple):
    """The arguments of `BlackVarianceSurface` with the day count `Actual365Fixed`.

    Attributes
    ----------
    reference_date
        The day of the quotes in Chicago.
    volatilities
        A row per strike, a column per date. QuantLib counts whole days, so these are the volatilities that
        give the surface's total variance over whole days. Beyond the strikes of an expiration they are those
        at its edge.
    quoted
        Whether the strike lies within the quotes of the expiration; of the shape of `volatilities`.
    """

    reference_date: date
    dates: list[date]
    strikes: npt.NDArray[np.float64]
    volatilities: npt.NDArray[np.float64]
    quoted: npt.NDArray[np.bool_]


def variance_grid(surface: VolatilitySurface, strikes: int = STRIKES) -> BlackVarianceGrid | None:
    """A surface at evenly spaced strikes and the dates of its expirations.

    Expirations within the day are left out, and so are all but the last of a date. None when none is left.
    """
    instant, listed = pl.col("expiration"), surface.slices
    valued_at = instant - (pl.col("years") * DAYS_PER_YEAR * 86_400e9).cast(pl.Duration("ns"))
    listed = listed.with_columns(
        date=instant.dt.convert_time_zone(str(CHICAGO)).dt.date(),
        reference=valued_at.max().dt.convert_time_zone(str(CHICAGO)).dt.date(),
    )
    listed = listed.filter(pl.col("date") > pl.col("reference")).unique(
        "date", keep="last", maintain_order=True
    )
    if listed.is_empty():
        return None
    reference, dates = listed["reference"][0], listed["date"].to_list()
    lowest, highest = listed.select(pl.col("strike_min").min(), pl.col("strike_max").max()).row(0)
    span = np.linspace(lowest, highest, strikes)
    columns, quoted = [], []
    for row in listed.iter_rows(named=True):
        within = np.clip(span, row["strike_min"], row["strike_max"])
        volatility = surface.implied_volatility(within, row["expiration"])["implied_volatility"].to_numpy()
        days = (row["date"] - reference) / timedelta(days=1)
        columns.append(volatility * np.sqrt(row["years"] * DAYS_PER_YEAR / days))
        quoted.append(span == within)
    return BlackVarianceGrid(reference, dates, span, np.stack(columns, axis=1), np.stack(quoted, axis=1))


def write(selection: Selection, to: Path) -> Exported:
    """Write the surface of every product of the selected moment to the file `to`."""
    keys = ["trade_date", "source", "snapshot_ts_ns", "series"]
    expirations = pl.concat(selection.read("series_metrics", f"{', '.join(keys)}, expiration"))
    smile = pl.concat(selection.read("iv_smile")).join(expirations, on=keys)
    product = pl.col("root").replace_strict(PRODUCT_OF, default=pl.col("root"))
    found: dict[str, BlackVarianceGrid] = {}
    for (name,), rows in smile.group_by(product, maintain_order=True):
        if grid := variance_grid(VolatilitySurface(rows)):
            found[str(name)] = grid
    if not found:
        raise ExportError("no expiration after the day of the snapshot has enough quotes for a surface")
    as_objects = {name: grid._asdict() for name, grid in found.items()}
    write_atomically(to, orjson.dumps(as_objects, option=orjson.OPT_SERIALIZE_NUMPY))
    dates = {f"{name} expirations": len(grid.dates) for name, grid in found.items()}
    left_out = smile["series"].n_unique() - sum(dates.values())
    reason = "series that expire within the day or before another of their date, or with few quotes"
    return Exported(to, dates, {reason: left_out} if left_out else {})
