"""The product table: the facts about each product, which the rest of the package reads.

To add a product whose options follow the rules of `listing.py`, add one `Product` to `PRODUCTS`;
nothing else changes (docs/adding-a-product.md). Sources of the facts:

- E-mini Nasdaq-100: CME contract specifications (weekly and end-of-month options, copy of
  2025-03). Barchart's codes: the drop-down lists of its option pages of June 2025; they had most codes, the
  others continue the pattern.
- E-mini S&P 500: CME contract specifications and CME's questions and answers on weekly,
  end-of-month, Tuesday and Thursday options; symbols, multiplier and expirations agree with
  exchange definitions of 2024 and 2026. Barchart's codes of weeklies are not known.
- Gold: CME contract specifications of gold options, CME's questions and answers on weekly options
  on metals, CME's fact card on gold options; roots as Databento lists them. Barchart's codes: a
  third party's table, which its author checked against the names that the site sends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, time, timedelta
from functools import partial
from typing import Any, Literal

from nq_pipeline.errors import SettingsError

SettlementStyle = Literal["AM", "PM"]
ExerciseStyle = Literal["american", "european"]
FamilyKind = Literal["quarterly", "monthly", "end_of_month", "weekly", "vendor"]
FutureEnd = Literal["third_friday", "third_last_trade_date"]
UnderlyingClass = Literal["future", "index", "etf"]
AssetClass = Literal["index", "commodity"]
Ticks = tuple[tuple[float, float], ...]
"""Pairs of (upper price bound, inclusive; tick) in ascending order; the last bound is infinity."""

MONDAY, TUESDAY, WEDNESDAY, THURSDAY, FRIDAY = range(5)


@dataclass(frozen=True, slots=True)
class Family:
    """A family of option roots that share weekday and style; week n is `roots[n - 1]`."""

    kind: FamilyKind  # the rule that lists its expirations (`listing.py`); vendor: only vendors list them
    roots: tuple[str, ...]
    weekday: int | None  # 0 is Monday; None if the family is not tied to a weekday
    settlement_style: SettlementStyle
    exercise_style: ExerciseStyle
    expiry_time: time  # local time in `Product.timezone` at which trading in the series ends
    barchart: tuple[str | None, ...] = ()  # Barchart's root for each of `roots`; None where it is unknown
    # First day on which this weekly also expires on the quarterly option's Friday; None: never. When CME
    # began is uncertain (its page of 2025-03 has it).
    on_quarterly_friday_since: date | None = None
    months_ahead: int = 0  # from expiration to the month in the code: gold's August option expires in July
    exercises_into: tuple[int, ...] = ()  # months of the futures; empty for all of the product's

    @property
    def is_standard(self) -> bool:
        """Whether these are the options of the futures' months, which are always listed."""
        return self.kind in ("quarterly", "monthly")


@dataclass(frozen=True, slots=True)
class DailySettlement:
    """The hours of a product's daily settlement, local to `Product.timezone`."""

    at: time
    short_day: time  # of a day whose session closes before `at`; if it closes even earlier, its close counts
    month_end: time | None = None  # of the last trade date of a month; None: `at`
    since: date = date.min  # the first trade date of the hours


@dataclass(frozen=True, slots=True)
class Product:
    """One underlying with all its option families, the standard one first."""

    code: str
    name: str
    underlying_class: UnderlyingClass
    multiplier: float  # dollars per point of premium
    ticks: Ticks
    timezone: str  # IANA name of the time zone of all times of day
    settlements: tuple[DailySettlement, ...]  # oldest first
    families: tuple[Family, ...]
    future_months: tuple[int, ...] = (3, 6, 9, 12)
    future_ends: FutureEnd = "third_friday"
    future_expiry_time: time = time(8, 30)  # when trading in the expiring future ends
    settlement_delay: timedelta = timedelta(minutes=30)  # from the settlement to its first publication
    stands_for: str = ""  # the product for which a proxy stands in; empty for options on futures
    asset_class: AssetClass = "index"  # what the future is on
    exchange: str = "XCME"  # market identifier code (ISO 10383) of the exchange that lists the future


_PM = time(15, 0)
_AM = time(8, 30)
_INF = float("inf")

_EQUITY_SETTLEMENTS = (
    DailySettlement(at=time(15, 15), short_day=time(12, 15), month_end=time(15)),
    DailySettlement(at=time(15), short_day=time(12), since=date(2020, 10, 26)),
)
"""From CME's questions and answers on the change of 2020-10-26, except for the old short day: we assume the
same delay after the stock market's close as on a regular day. Also uncertain: that a day which closes before
12:00 settles at its close. CME's page of settlement times says that equity settlements are first published at
15:30, half an hour after the settlement; the time on a short day is uncertain."""


def _weekly(
    weekday: int,
    roots: str,
    barchart: tuple[str | None, ...] = (),
    *,
    weeks: int = 5,
    expiry_time: time = _PM,
    **special: Any,
) -> Family:
    """A PM-settled European weekly; `{}` in `roots` is the week of the month."""
    codes = tuple(roots.format(week) for week in range(1, weeks + 1))
    return Family("weekly", codes, weekday, "PM", "european", expiry_time, barchart, **special)


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
        _weekly(
            FRIDAY,
            "QN{}",
            ("MQ1", "MQ2", "MQ3", "MQ4"),
            weeks=4,
            on_quarterly_friday_since=date(2025, 3, 1),
        ),
        _weekly(MONDAY, "Q{}A", ("MC6", "MC7", "MC8", "MC9", None)),
        _weekly(TUESDAY, "Q{}B", ("MM1", "MM2", "MM3", "MM4", "MM5")),
        _weekly(WEDNESDAY, "Q{}C", ("MC1", "MC2", "MC3", "MC4", "MC5")),
        _weekly(THURSDAY, "Q{}D", ("MM6", "MM7", "MM8", "MM9", None)),
    ),
)

# Uncertain, and therefore not here: whether a Friday weekly is listed in the quarterly option's week, as for
# NQ, and the quarterly PM option (EYC, 2021) that was once listed in its place.
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
        _weekly(FRIDAY, "EW{}", weeks=4),
        _weekly(MONDAY, "E{}A"),
        _weekly(TUESDAY, "E{}B"),
        _weekly(WEDNESDAY, "E{}C"),
        _weekly(THURSDAY, "E{}D"),
    ),
)

_GOLD_FIXING = time(12, 30)
"""Settlement time of the future, when trading in its options ends (CME). A third party's note has 13:30."""
_GOLD_WEEKLY_MONTHS = (2, 4, 6, 8, 12)
"""Weeklies that we saw skip the October future; whether they always do is uncertain."""


# CME says that they are only exercised automatically, so they are European; it does not use the word.
_gold_weekly = partial(_weekly, expiry_time=_GOLD_FIXING, exercises_into=_GOLD_WEEKLY_MONTHS)


GC = Product(
    code="GC",
    name="COMEX gold futures",
    underlying_class="future",
    multiplier=100.0,
    ticks=((_INF, 0.10),),
    timezone="America/Chicago",
    # CME's page of settlement times: at 13:30 New York, first published at 13:31. The hour on a short day
    # is uncertain.
    settlements=(DailySettlement(at=_GOLD_FIXING, short_day=_GOLD_FIXING),),
    settlement_delay=timedelta(minutes=1),
    families=(
        Family("monthly", ("OG",), None, "PM", "american", _GOLD_FIXING, ("GC",), months_ahead=1),
        _gold_weekly(FRIDAY, "OG{}", ("IG1", "IG2", "IG3", "IG4", "IG5")),
        _gold_weekly(MONDAY, "G{}M", ("IY1", "IY2", "IY3", "IY4", "IY5")),
        _gold_weekly(TUESDAY, "G{}T", ("I0A", "I0B", "I0C", "I0D", "I0E")),
        _gold_weekly(WEDNESDAY, "G{}W", ("IY6", "IY7", "IY8", "IY9", None)),
        _gold_weekly(THURSDAY, "G{}R", ("I0G", "I0H", "I0I", "I0J", "I0K")),
    ),
    future_months=(2, 4, 6, 8, 10, 12),
    future_ends="third_last_trade_date",
    future_expiry_time=_GOLD_FIXING,
    asset_class="commodity",
    exchange="XCEC",
)

PRODUCTS: dict[str, Product] = {product.code: product for product in (NQ, ES, GC)}


def select_products(codes: Sequence[str]) -> tuple[Product, ...]:
    """The products of `NQ_PRODUCTS`, each once; `SettingsError` for a code that is not in the table."""
    unknown = [code for code in codes if code not in PRODUCTS]
    if unknown or not codes:
        raise SettingsError(
            f"NQ_PRODUCTS: {', '.join(unknown) or 'nothing'} is not in the product table; "
            f"products are {', '.join(PRODUCTS)}"
        )
    return tuple(PRODUCTS[code] for code in dict.fromkeys(codes))


# Proxies stand in for options on the future where a vendor has none. By Cboe's specifications NDX and SPX
# settle at the open; NDXP, SPXW and the funds settle at the close. A vendor's own dates and styles take
# precedence. Gold has no proxy here, because the gold fund has no fixed ratio to the future.
_STOCK_OPEN, _STOCK_CLOSE = time(9, 30), time(16, 0)
_STOCK_SETTLEMENTS = (DailySettlement(at=_STOCK_CLOSE, short_day=time(13)),)


def _index(code: str, pm_root: str, name: str, of: str) -> Product:
    families = (
        Family("vendor", (code,), None, "AM", "european", _STOCK_OPEN),
        Family("vendor", (pm_root,), None, "PM", "european", _STOCK_CLOSE),
    )
    ticks = ((3.0, 0.05), (_INF, 0.10))
    return Product(
        code, name, "index", 100.0, ticks, "America/New_York", _STOCK_SETTLEMENTS, families, stands_for=of
    )


def _fund(code: str, name: str, of: str) -> Product:
    families = (Family("vendor", (code,), None, "PM", "american", _STOCK_CLOSE),)
    ticks = ((_INF, 0.01),)
    return Product(
        code, name, "etf", 100.0, ticks, "America/New_York", _STOCK_SETTLEMENTS, families, stands_for=of
    )


NDX = _index("NDX", "NDXP", "Nasdaq-100 index", "NQ")
QQQ = _fund("QQQ", "Invesco QQQ Trust", "NQ")
SPX = _index("SPX", "SPXW", "S&P 500 index", "ES")
SPY = _fund("SPY", "SPDR S&P 500 ETF Trust", "ES")

PROXIES: dict[str, Product] = {product.code: product for product in (NDX, QQQ, SPX, SPY)}


def list_codes(underlying_class: UnderlyingClass) -> str:
    """The codes of the products and proxies of a class, for texts: `NQ, ES, GC`."""
    products = (*PRODUCTS.values(), *PROXIES.values())
    return ", ".join(p.code for p in products if p.underlying_class == underlying_class)


def list_names() -> str:
    """The products with their names, for texts: `NQ (E-mini Nasdaq-100 futures), …`."""
    return ", ".join(f"{code} ({product.name})" for code, product in PRODUCTS.items())


def list_multipliers() -> str:
    """Dollars per point by product, for texts: `20 for NQ, …`."""
    return ", ".join(f"{product.multiplier:g} for {code}" for code, product in PRODUCTS.items())
