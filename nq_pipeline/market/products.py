"""The product table: every fact about a product that the rest of the house derives from.

A product whose options follow the rules of `listing.py` joins by adding one `Product` to
`PRODUCTS`; nothing else changes (docs/adding-a-product.md). Where the facts come from:

- E-mini Nasdaq-100: CME contract specifications (weekly and end-of-month options, copy of
  2025-03). Barchart's codes: the drop-down lists of its option pages of June 2025.
- E-mini S&P 500: CME contract specifications and its questions and answers on weekly,
  end-of-month, Tuesday and Thursday options; symbols, multiplier and expirations agree with
  exchange definitions of 2024 and 2026. Barchart's codes of weeklies are not known.
- Gold: CME contract specifications of gold options, its questions and answers on weekly options
  on metals, its fact card on gold options; the roots as Databento lists them. Barchart's codes: a
  third party's table, which its author confirmed by the names the site sends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, time, timedelta
from typing import Literal

from nq_pipeline.errors import SettingsError

SettlementStyle = Literal["AM", "PM"]
ExerciseStyle = Literal["american", "european"]
FamilyKind = Literal["quarterly", "monthly", "end_of_month", "weekly", "vendor"]
FutureEnd = Literal["third_friday", "third_last_trade_date"]
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
        Product codes; one for quarterly, monthly and end-of-month families.
    weekday
        0 is Monday; None where the family has no weekday of its own.
    expiry_time
        Local time in `Product.timezone` at which trading in the series ends.
    barchart
        Barchart's root for each of `roots`; None where it was never seen.
    beside_quarterly_since
        First day on which this weekly expires beside the quarterly option, in the quarterly's
        own week; None: never does. When CME began is uncertain (its page of 2025-03 has it).
    months_ahead
        By how many months the code's month is ahead of the expiration: gold's `OGQ5`, the August
        option, expires in July.
    exercises_into
        Months of the futures it exercises into, where those are not all of the product's.
    """

    kind: FamilyKind
    roots: tuple[str, ...]
    weekday: int | None
    settlement_style: SettlementStyle
    exercise_style: ExerciseStyle
    expiry_time: time
    barchart: tuple[str | None, ...] = ()
    beside_quarterly_since: date | None = None
    months_ahead: int = 0
    exercises_into: tuple[int, ...] = ()

    @property
    def is_standard(self) -> bool:
        """Whether these are the options of the futures' own months, which are always listed."""
        return self.kind in ("quarterly", "monthly")


@dataclass(frozen=True, slots=True)
class DailySettlement:
    """The hours of a product's daily settlement, local to `Product.timezone`.

    Attributes
    ----------
    at
        On a regular day.
    short_day
        On a day whose session closes before `at`; where it closes even earlier, its close holds.
    month_end
        On the last trade date of a month, where that has an hour of its own.
    since
        The first trade date of these hours.
    """

    at: time
    short_day: time
    month_end: time | None = None
    since: date = date.min


@dataclass(frozen=True, slots=True)
class Product:
    """One underlying with all its option families, the standard one first.

    Attributes
    ----------
    multiplier
        Dollars per point of premium.
    ticks
        (upper price bound inclusive, tick) in rising order; the last bound is infinity.
    timezone
        IANA name of the zone of `expiry_time`, `future_expiry_time` and `settlements`.
    settlements
        The hours of the daily settlement, oldest first.
    settlement_delay
        From the hour of the settlement to the first publication of its prices.
    future_months
        Months of the futures that options exercise into.
    future_ends
        Which day of its month is a future's last.
    future_expiry_time
        Local time at which trading in the expiring future ends.
    stands_for
        The product for which a proxy stands in; empty for options on futures.
    """

    code: str
    name: str
    underlying_class: UnderlyingClass
    multiplier: float
    ticks: Ticks
    timezone: str
    settlements: tuple[DailySettlement, ...]
    families: tuple[Family, ...]
    future_months: tuple[int, ...] = (3, 6, 9, 12)
    future_ends: FutureEnd = "third_friday"
    future_expiry_time: time = time(8, 30)
    settlement_delay: timedelta = timedelta(minutes=30)
    stands_for: str = ""


_PM = time(15, 0)
_AM = time(8, 30)
_INF = float("inf")

_EQUITY_SETTLEMENTS = (
    DailySettlement(at=time(15, 15), short_day=time(12, 15), month_end=time(15)),
    DailySettlement(at=time(15), short_day=time(12), since=date(2020, 10, 26)),
)
"""CME's questions and answers on the change of 2020-10-26 have all of these hours but one: the old short
day's is uncertain. It is taken to be as long after the stock market's close as on a regular day. That a day
which closes before 12:00 settles at its close is uncertain too. CME's page of settlement times has the
equities' first publication at 15:30, half an hour after the settlement; that of a short day is uncertain."""

NQ = Product(
    code="NQ",
    name="E-mini Nasdaq-100 futures",
    underlying_class="future",
    multiplier=20.0,
    ticks=((5.0, 0.05), (_INF, 0.25)),
    timezone="America/Chicago",
    settlements=_EQUITY_SETTLEMENTS,
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

# Whether the Friday weekly is listed in the quarterly's own week too, as it is for NQ, is uncertain, and
# so is the quarterly PM option (EYC, 2021) that once filled that place; neither is here.
ES = Product(
    code="ES",
    name="E-mini S&P 500 futures",
    underlying_class="future",
    multiplier=50.0,
    ticks=((5.0, 0.05), (_INF, 0.25)),
    timezone="America/Chicago",
    settlements=_EQUITY_SETTLEMENTS,
    families=(
        Family("quarterly", ("ES",), FRIDAY, "AM", "american", _AM, ("ES",)),
        Family("end_of_month", ("EW",), None, "PM", "european", _PM),
        Family("weekly", ("EW1", "EW2", "EW3", "EW4"), FRIDAY, "PM", "european", _PM),
        Family("weekly", ("E1A", "E2A", "E3A", "E4A", "E5A"), MONDAY, "PM", "european", _PM),
        Family("weekly", ("E1B", "E2B", "E3B", "E4B", "E5B"), TUESDAY, "PM", "european", _PM),
        Family("weekly", ("E1C", "E2C", "E3C", "E4C", "E5C"), WEDNESDAY, "PM", "european", _PM),
        Family("weekly", ("E1D", "E2D", "E3D", "E4D", "E5D"), THURSDAY, "PM", "european", _PM),
    ),
)

_GOLD_FIXING = time(12, 30)
"""Settlement time of the future, at which CME ends its options. A third party's note has 13:30."""
_GOLD_WEEKLY_MONTHS = (2, 4, 6, 8, 12)
"""Weeklies were seen to skip the October future; that they always do is uncertain."""


def _gold_weekly(weekday: int, roots: tuple[str, ...], barchart: tuple[str | None, ...]) -> Family:
    # Exercised automatically and only so (CME), hence taken as European; CME's word for it was not seen.
    return Family(
        kind="weekly",
        roots=roots,
        weekday=weekday,
        settlement_style="PM",
        exercise_style="european",
        expiry_time=_GOLD_FIXING,
        barchart=barchart,
        exercises_into=_GOLD_WEEKLY_MONTHS,
    )


GC = Product(
    code="GC",
    name="COMEX gold futures",
    underlying_class="future",
    multiplier=100.0,
    ticks=((_INF, 0.10),),
    timezone="America/Chicago",
    # CME's page of settlement times: at 13:30 New York, first published at 13:31. Whether a short day has
    # another hour is uncertain.
    settlements=(DailySettlement(at=_GOLD_FIXING, short_day=_GOLD_FIXING),),
    settlement_delay=timedelta(minutes=1),
    families=(
        Family("monthly", ("OG",), None, "PM", "american", _GOLD_FIXING, ("GC",), months_ahead=1),
        _gold_weekly(FRIDAY, ("OG1", "OG2", "OG3", "OG4", "OG5"), ("IG1", "IG2", "IG3", "IG4", "IG5")),
        _gold_weekly(MONDAY, ("G1M", "G2M", "G3M", "G4M", "G5M"), ("IY1", "IY2", "IY3", "IY4", "IY5")),
        _gold_weekly(TUESDAY, ("G1T", "G2T", "G3T", "G4T", "G5T"), ("I0A", "I0B", "I0C", "I0D", "I0E")),
        _gold_weekly(WEDNESDAY, ("G1W", "G2W", "G3W", "G4W", "G5W"), ("IY6", "IY7", "IY8", "IY9", None)),
        _gold_weekly(THURSDAY, ("G1R", "G2R", "G3R", "G4R", "G5R"), ("I0G", "I0H", "I0I", "I0J", "I0K")),
    ),
    future_months=(2, 4, 6, 8, 10, 12),
    future_ends="third_last_trade_date",
    future_expiry_time=_GOLD_FIXING,
)

PRODUCTS: dict[str, Product] = {product.code: product for product in (NQ, ES, GC)}


def select_products(codes: Sequence[str]) -> tuple[Product, ...]:
    """The products of `NQ_PRODUCTS`; SettingsError names the known ones when one is in no table."""
    unknown = [code for code in codes if code not in PRODUCTS]
    if unknown or not codes:
        raise SettingsError(
            f"NQ_PRODUCTS: {', '.join(unknown) or 'nothing'} is not in the product table; "
            f"there are {', '.join(PRODUCTS)}"
        )
    return tuple(PRODUCTS[code] for code in dict.fromkeys(codes))


# Stand-ins for options on the future where a vendor has none. Cboe's specifications: NDX and SPX are
# settled on the opening, NDXP, SPXW and the funds on the close; a vendor's own dates and styles win.
# Gold has none here: the fund that holds it has another size and no fixed ratio to the future.
_OPENING, _CLOSING = time(9, 30), time(16, 0)
_STOCK_CLOSES = (DailySettlement(at=_CLOSING, short_day=time(13)),)

NDX = Product(
    code="NDX",
    name="Nasdaq-100 index",
    underlying_class="index",
    multiplier=100.0,
    ticks=((3.0, 0.05), (_INF, 0.10)),
    timezone="America/New_York",
    settlements=_STOCK_CLOSES,
    families=(
        Family("vendor", ("NDX",), None, "AM", "european", _OPENING),
        Family("vendor", ("NDXP",), None, "PM", "european", _CLOSING),
    ),
    stands_for="NQ",
)
QQQ = Product(
    code="QQQ",
    name="Invesco QQQ Trust",
    underlying_class="etf",
    multiplier=100.0,
    ticks=((_INF, 0.01),),
    timezone="America/New_York",
    settlements=_STOCK_CLOSES,
    families=(Family("vendor", ("QQQ",), None, "PM", "american", _CLOSING),),
    stands_for="NQ",
)
SPX = Product(
    code="SPX",
    name="S&P 500 index",
    underlying_class="index",
    multiplier=100.0,
    ticks=((3.0, 0.05), (_INF, 0.10)),
    timezone="America/New_York",
    settlements=_STOCK_CLOSES,
    families=(
        Family("vendor", ("SPX",), None, "AM", "european", _OPENING),
        Family("vendor", ("SPXW",), None, "PM", "european", _CLOSING),
    ),
    stands_for="ES",
)
SPY = Product(
    code="SPY",
    name="SPDR S&P 500 ETF Trust",
    underlying_class="etf",
    multiplier=100.0,
    ticks=((_INF, 0.01),),
    timezone="America/New_York",
    settlements=_STOCK_CLOSES,
    families=(Family("vendor", ("SPY",), None, "PM", "american", _CLOSING),),
    stands_for="ES",
)

PROXIES: dict[str, Product] = {product.code: product for product in (NDX, QQQ, SPX, SPY)}
