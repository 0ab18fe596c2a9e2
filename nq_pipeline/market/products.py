"""The product table: every fact about a product that the rest of the house derives from.

A product joins by adding one `Product` to `PRODUCTS`. Facts: CME contract specifications
(weekly and end-of-month E-mini Nasdaq-100 options, copy of 2025-03), the rule that no
weekly is listed on the end-of-month day, and the 2025-03 change that lists the third
Friday weekly in quarterly months too.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import time
from typing import Literal

SettlementStyle = Literal["AM", "PM"]
ExerciseStyle = Literal["american", "european"]
FamilyKind = Literal["quarterly", "end_of_month", "weekly"]
UnderlyingClass = Literal["future", "index", "etf"]

MONDAY, TUESDAY, WEDNESDAY, THURSDAY, FRIDAY = range(5)


@dataclass(frozen=True, slots=True)
class Family:
    """A family of option roots that share weekday and style; week n is `roots[n - 1]`.

    Attributes
    ----------
    roots
        Globex product codes; one for quarterly and end-of-month families.
    weekday
        0 is Monday; None where the family has no weekday of its own.
    expiry_time
        Local time in `Product.timezone` at which trading in the series ends.
    """

    kind: FamilyKind
    roots: tuple[str, ...]
    weekday: int | None
    settlement_style: SettlementStyle
    exercise_style: ExerciseStyle
    expiry_time: time


@dataclass(frozen=True, slots=True)
class Product:
    """One underlying with all its option families.

    Attributes
    ----------
    ticks
        (upper price bound inclusive, tick) in rising order; the last bound is infinity.
    """

    code: str
    name: str
    underlying_class: UnderlyingClass
    multiplier: float
    ticks: tuple[tuple[float, float], ...]
    timezone: str
    families: tuple[Family, ...]


_PM = time(15, 0)
_AM = time(8, 30)
_INF = float("inf")

NQ = Product(
    code="NQ",
    name="E-mini Nasdaq-100 futures",
    underlying_class="future",
    multiplier=20.0,
    ticks=((5.0, 0.05), (_INF, 0.25)),
    timezone="America/Chicago",
    families=(
        Family("quarterly", ("NQ",), FRIDAY, "AM", "american", _AM),
        Family("end_of_month", ("QNE",), None, "PM", "european", _PM),
        Family("weekly", ("QN1", "QN2", "QN3", "QN4"), FRIDAY, "PM", "european", _PM),
        Family("weekly", ("Q1A", "Q2A", "Q3A", "Q4A", "Q5A"), MONDAY, "PM", "european", _PM),
        Family("weekly", ("Q1B", "Q2B", "Q3B", "Q4B", "Q5B"), TUESDAY, "PM", "european", _PM),
        Family("weekly", ("Q1C", "Q2C", "Q3C", "Q4C", "Q5C"), WEDNESDAY, "PM", "european", _PM),
        Family("weekly", ("Q1D", "Q2D", "Q3D", "Q4D", "Q5D"), THURSDAY, "PM", "european", _PM),
    ),
)

PRODUCTS: dict[str, Product] = {product.code: product for product in (NQ,)}
