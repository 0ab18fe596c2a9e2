"""Interest rates by time to expiration: a curve as text, or the file that the US Treasury offers.

The Treasury's "Daily Treasury Par Yield Curve Rates" has a column `Date` and one for each tenor (`1 Mo`,
`2 Yr`), in per cent. Its yields are bond-equivalent: compounded twice a year. They become continuously
compounded rates, `r = 2 ln(1 + y / 2)`, and stand for zero rates, which is exact for bills only.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

DAYS_PER_YEAR = 365
"""As in `black76`, which is imported late because the settings import this module."""
_TENOR = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(D|W|M|Y)[a-z]*\s*", re.IGNORECASE)
_DAYS = {"D": 1.0, "W": 7.0, "M": DAYS_PER_YEAR / 12, "Y": float(DAYS_PER_YEAR)}
_BEGIN = date(1990, 1, 1)
"""The first day of the Treasury's rates: the year of `06/09/25` would be 25."""
_FORM = "write DAYS=RATE pairs like 30=0.043,90=0.0425, or the path of the Treasury's file"


@dataclass(frozen=True, slots=True)
class RateCurve:
    """Rates per year, continuously compounded, by calendar days; `days` ascend."""

    days: tuple[float, ...]
    rates: tuple[float, ...]

    def at(self, years: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """The rate until each time, in years of 365 days: linear between tenors, level beyond the ends."""
        import numpy as np

        return np.interp(np.asarray(years, np.float64) * DAYS_PER_YEAR, self.days, self.rates)


def parse_curve(text: str) -> RateCurve:
    """The curve of `30=0.043,90=0.0425`: days, and rates as fractions, continuously compounded.

    Raises ValueError for anything else.
    """
    try:
        pairs = [tuple(map(float, pair.split("="))) for pair in text.split(",")]
        curve = RateCurve(*zip(*((days, rate) for days, rate in pairs), strict=True))
    except (ValueError, TypeError):
        raise ValueError(_FORM) from None
    ascending = all(a < b for a, b in zip((0.0, *curve.days), curve.days, strict=False))
    if not ascending or not all(-0.05 <= rate <= 0.5 for rate in curve.rates):
        raise ValueError("days must be above 0 and ascend, rates lie between -0.05 and 0.5 (4.3 % is 0.043)")
    return curve


def read_curve(path: Path, trade_date: date) -> RateCurve | None:
    """The newest curve of the Treasury's file before a trade date; None if there is none.

    The Treasury takes prices at about 15:30 in New York and publishes the row of the day by about 18:00, when
    the session of the next trade date opens.

    Raises ValueError for a file that cannot be read or has another form.
    """
    import polars as pl

    try:
        rows = pl.read_csv(path.read_bytes(), infer_schema=False, truncate_ragged_lines=True)
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} cannot be read ({reason}); {_FORM}") from None
    found = {name: tenor for name in rows.columns if (tenor := _TENOR.fullmatch(name))}
    no_rates = f"{path} has no rates; it needs a column Date and columns like `1 Mo`, in per cent"
    if not found or "Date" not in rows.columns:
        raise ValueError(no_rates)
    tenors = {name: float(tenor[1]) * _DAYS[tenor[2].upper()] for name, tenor in found.items()}
    text, value = pl.col("Date").str.strip_chars(), pl.col("value").str.strip_chars()
    yields = rows.unpivot(list(tenors), index="Date").select(
        day=pl.coalesce(text.str.to_date(form, strict=False) for form in ("%m/%d/%Y", "%Y-%m-%d")),
        days=pl.col("variable").replace_strict(tenors, return_dtype=pl.Float64),
        per_cent=value.cast(pl.Float64, strict=False),
    )
    yields = yields.filter(pl.col("day") >= _BEGIN, pl.col("per_cent").is_between(-5, 50))
    if yields.is_empty():
        raise ValueError(no_rates)
    known = yields.filter(pl.col("day") < trade_date)
    newest = known.filter(pl.col("day") == pl.col("day").max())
    newest = newest.unique("days", keep="last", maintain_order=True).sort("days")
    rates = tuple(2 * math.log1p(per_cent / 200) for per_cent in newest["per_cent"])
    return RateCurve(tuple(newest["days"]), rates) if rates else None
