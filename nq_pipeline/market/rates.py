"""Interest rates by time to expiration: a curve in words, or the file that the US Treasury offers.

The Treasury's "Daily Treasury Par Yield Curve Rates" has a column `Date` and one for each tenor (`1 Mo`,
`2 Yr`), in per cent. Its yields are bond-equivalent: compounded twice a year. They become continuously
compounded rates, `r = 2 ln(1 + y / 2)`, and count as zero rates, which is exact for bills only.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

DAYS_PER_YEAR = 365
"""As in `black76`, which is imported late because the settings import this module."""
_TENOR = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(D|W|M|Y)[a-z]*\s*", re.IGNORECASE)
_DAYS = {"D": 1.0, "W": 7.0, "M": DAYS_PER_YEAR / 12, "Y": float(DAYS_PER_YEAR)}
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
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(_curves(csv.DictReader(file)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read ({error}); {_FORM}") from None
    if not rows:
        raise ValueError(f"{path} has no rates; it needs a column Date and columns like `1 Mo`, in per cent")
    known = {at: curve for at, curve in rows if at < trade_date}
    return known[max(known)] if known else None


def _curves(rows: csv.DictReader[str]) -> Iterator[tuple[date, RateCurve]]:
    tenors = {
        name: float(found[1]) * _DAYS[found[2].upper()]
        for name in rows.fieldnames or ()
        if (found := _TENOR.fullmatch(name))
    }
    for row in rows:
        yields = {days: y for name, days in tenors.items() if (y := _percent(row, name)) is not None}
        if yields and (at := _date(row.get("Date") or "")):
            days = sorted(yields)
            yield at, RateCurve(tuple(days), tuple(2 * math.log1p(yields[d] / 200) for d in days))


def _percent(row: Mapping[str, str], name: str) -> float | None:
    """A yield in per cent; None for an empty cell, N/A or a number that is none."""
    try:
        value = float(row[name])
    except (TypeError, ValueError):
        return None
    return value if -5 <= value <= 50 else None


def _date(text: str) -> date | None:
    for form in ("%m/%d/%Y", "%Y-%m-%d"):
        try:
            return datetime.strptime(text.strip(), form).date()
        except ValueError:
            continue
    return None
