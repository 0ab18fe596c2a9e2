"""The product table: every fact about a product that the rest of the house derives from.

A product whose options follow the rules of `listing.py` joins by adding one `Product` to
`PRODUCTS`; nothing else changes. Facts about E-mini Nasdaq-100 options: CME contract
specifications (weekly and end-of-month options, copy of 2025-03). Barchart's codes: the
drop-down lists of its option pages of June 2025.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, time
from typing import Literal

SettlementStyle = Literal["AM", "PM"]
ExerciseStyle = Literal["american", "european"]
FamilyKind = Literal["quarterly", "end_of_month", "weekly", "vendor"]
UnderlyingClass = Literal["future", "index", "etf"]
Ticks = tuple[tuple[float, float], ...]

MONDAY, TUESDAY, WEDNESDAY, THURSDAY, FRIDAY = range(5)


@dataclass(frozen=True, slots=True)
class Family:
    """A family of option roots that share weekday and style; week n is `roots[n - 1]`.

    Attributes
    ----------
    kind
        The rule that lists its expirations (`listing.py`); `vendor`: known only from a vendor.
    roots
        Product codes; one for quarterly and end-of-month families.
    weekday
        0 is Monday; None where the family has no weekday of its own.
    expiry_time
        Local time in `Product.timezone` at which trading in the series ends.
    barchart
        Barchart's root for each of `roots`; None where it was never seen.
    beside_quarterly_since
        First day on which this weekly expires beside the quarterly option, in the quarterly's
        own week; None: never does. When CME began is uncertain (its page of 2025-03 has it).
    """

    kind: FamilyKind
    roots: tuple[str, ...]
    weekday: int | None
    settlement_style: SettlementStyle
    exercise_style: ExerciseStyle
    expiry_time: time
    barchart: tuple[str | None, ...] = ()
    beside_quarterly_since: date | None = None


@dataclass(frozen=True, slots=True)
class Product:
    """One underlying with all its option families.

    Attributes
    ----------
    multiplier
        Dollars per point of premium.
    ticks
        (upper price bound inclusive, tick) in rising order; the last bound is infinity.
    timezone
        IANA name of the zone of `expiry_time` and `future_expiry_time`.
    future_months
        Months in which a future of the product expires, on the third Friday.
    future_expiry_time
        Local time at which trading in the expiring future ends.
    """

    code: str
    name: str
    underlying_class: UnderlyingClass
    multiplier: float
    ticks: Ticks
    timezone: str
    families: tuple[Family, ...]
    future_months: tuple[int, ...] = (3, 6, 9, 12)
    future_expiry_time: time = time(8, 30)


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
        Family("quarterly", ("NQ",), FRIDAY, "AM", "american", _AM, ("NQ",)),
        Family("end_of_month", ("QNE",), None, "PM", "european", _PM, ("MQ6",)),
        Family(
            kind="weekly",
            roots=("QN1", "QN2", "QN3", "QN4"),
            weekday=FRIDAY,
            settlement_style="PM",
            exercise_style="european",
            expiry_time=_PM,
            barchart=("MQ1", "MQ2", "MQ3", "MQ4"),
            beside_quarterly_since=date(2025, 3, 1),
        ),
        Family(
            kind="weekly",
            roots=("Q1A", "Q2A", "Q3A", "Q4A", "Q5A"),
            weekday=MONDAY,
            settlement_style="PM",
            exercise_style="european",
            expiry_time=_PM,
            barchart=("MC6", "MC7", "MC8", "MC9", None),
        ),
        Family(
            kind="weekly",
            roots=("Q1B", "Q2B", "Q3B", "Q4B", "Q5B"),
            weekday=TUESDAY,
            settlement_style="PM",
            exercise_style="european",
            expiry_time=_PM,
            barchart=("MM1", "MM2", "MM3", "MM4", "MM5"),
        ),
        Family(
            kind="weekly",
            roots=("Q1C", "Q2C", "Q3C", "Q4C", "Q5C"),
            weekday=WEDNESDAY,
            settlement_style="PM",
            exercise_style="european",
            expiry_time=_PM,
            barchart=("MC1", "MC2", "MC3", "MC4", "MC5"),
        ),
        Family(
            kind="weekly",
            roots=("Q1D", "Q2D", "Q3D", "Q4D", "Q5D"),
            weekday=THURSDAY,
            settlement_style="PM",
            exercise_style="european",
            expiry_time=_PM,
            barchart=("MM6", "MM7", "MM8", "MM9", None),
        ),
    ),
)

PRODUCTS: dict[str, Product] = {product.code: product for product in (NQ,)}

# Stand-ins for options on the future where a vendor has none. Cboe's specifications: NDX is
# settled on the opening, NDXP and QQQ on the close; a vendor's own dates and styles win.
_OPENING, _CLOSING = time(9, 30), time(16, 0)

NDX = Product(
    code="NDX",
    name="Nasdaq-100 index",
    underlying_class="index",
    multiplier=100.0,
    ticks=((3.0, 0.05), (_INF, 0.10)),
    timezone="America/New_York",
    families=(
        Family("vendor", ("NDX",), None, "AM", "european", _OPENING),
        Family("vendor", ("NDXP",), None, "PM", "european", _CLOSING),
    ),
)
QQQ = Product(
    code="QQQ",
    name="Invesco QQQ Trust",
    underlying_class="etf",
    multiplier=100.0,
    ticks=((_INF, 0.01),),
    timezone="America/New_York",
    families=(Family("vendor", ("QQQ",), None, "PM", "american", _CLOSING),),
)

PROXIES: dict[str, Product] = {product.code: product for product in (NDX, QQQ)}
