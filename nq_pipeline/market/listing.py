"""The listed expirations of a product by CME's rules, and the future each exercises into.

- **quarterly**: the third Friday of the future's months, or the trade date before it if that Friday
  is not a trade date (2026-06-18, the day before Juneteenth).
- **monthly** (gold): the fourth-last trade date of the month before the one in the code, or the trade
  date before it if it is a Friday or the day before a holiday.
- **end of month**: the last trade date of the month.
- **weekly**: week n is the n-th such weekday of the month. No weekly expires on the day of an
  end-of-month or monthly option, nor on the quarterly option's Friday before
  `Family.on_quarterly_friday_since`.

All products use the trade dates of the equity-index session (`sessions.py`). Gold's may differ on a day
of early close or of mourning; that was not checked.

A day without regular trading hours (Good Friday, even when it trades until 08:15) has no settlement,
so nothing expires on it. We read CME's rules to mean that a weekly on such a day or on a holiday is not
listed at all; CME does not say so. The rules have today's families, not the date on which each began.
Therefore they only decide which series to request: a series that a vendor lists is accepted on any date.
"""

from __future__ import annotations

from calendar import monthcalendar, monthrange
from datetime import date, datetime, timedelta
from functools import lru_cache
from typing import Literal
from zoneinfo import ZoneInfo

from nq_pipeline.market import sessions
from nq_pipeline.market.contracts import MONTH_CODES, ROOTS, Series
from nq_pipeline.market.products import FRIDAY, PRODUCTS, Family, Product

# CME moved the expirations of the national day of mourning to the day before (press release of 2024-12-30).
_MOVED = {date(2025, 1, 9): date(2025, 1, 8)}


def expirations(product_code: str, start: date, end: date) -> list[Series]:
    """All series of a product that expire from `start` to `end`, both included, by expiration.

    Raises KeyError for a product that is not in the product table.
    """
    product = PRODUCTS[product_code]
    months = range(start.year * 12 + start.month - 1, end.year * 12 + end.month)
    found = [s for month in months for s in list_month(product, month // 12, month % 12 + 1)]
    within = (s for s in found if start <= s.expiration_date <= end)
    return sorted(within, key=lambda s: (s.expiration, s.root))


def far_expirations(product_code: str, after: date) -> list[Series]:
    """The next monthly series that expires after a day, and the standard ones up to the first after it.

    Monthly is the end-of-month option of equity indices (the standard one is quarterly) and gold's standard
    option. Together with the expirations of the next two weeks they bracket 30 days on every day.

    Raises KeyError for a product that is not in the product table.
    """
    later = expirations(product_code, after + timedelta(days=1), after + timedelta(days=150))
    monthly = next((s for s in later if s.root_info.family.kind in ("monthly", "end_of_month")), None)
    standard = [s for s in later if s.root_info.family.is_standard]
    if monthly is None:  # a product without monthly options
        return standard[:1]
    last = next((s for s in standard if s.expiration > monthly.expiration), monthly)
    return [s for s in later if s == monthly or (s in standard and s.expiration <= last.expiration)]


def expiration_date(root: str, year: int, month: int) -> date | None:
    """The day on which a root of `ROOTS` expires in the month of its code; None when it is not listed."""
    info = ROOTS[root]
    months = year * 12 + month - 1 - info.family.months_ahead
    series = list_month(info.product, months // 12, months % 12 + 1)
    return next((s.expiration_date for s in series if s.root == root), None)


@lru_cache(maxsize=1024)
def list_month(product: Product, year: int, month: int) -> tuple[Series, ...]:
    """The series of a product that expire in a month, family by family."""
    settled_days = _settlement_days(year, month)
    if not settled_days:
        return ()
    third_friday = _weekdays(year, month, FRIDAY)[2]
    once = {
        family: Series(family.roots[0], day)
        for family in product.families
        if (day := _monthly_day(product, family, settled_days, third_friday)) is not None
    }
    taken = {s.expiration_date for family, s in once.items() if family.kind != "quarterly"}
    series: list[Series] = []
    for family in product.families:
        if family in once:
            series.append(once[family])
        elif family.kind == "weekly" and family.weekday is not None:
            since = family.on_quarterly_friday_since
            for root, day in zip(family.roots, _weekdays(year, month, family.weekday), strict=False):
                on_quarterly_friday = day == third_friday and any(f.kind == "quarterly" for f in once)
                expires = _MOVED.get(day, day)
                if expires not in settled_days or expires in taken:
                    continue
                if on_quarterly_friday and (since is None or day < since):
                    continue
                series.append(Series(root, expires))
    return tuple(series)


def underlying_future(series: Series, year_digits: Literal[1, 2] = 1) -> str:
    """The future a series exercises into: `NQM5`, or `NQM25` with two digits (Barchart's form).

    It is the nearest future whose standard option expires no earlier than the series. The quarterly option
    ends with the future of its month and exercises into it, so a Friday weekly of the same day exercises
    into the next one. Gold's August option ends in July; later options exercise into October or December.
    Barchart may show another (`symbology.barchart_future`). Databento's definitions state the future: its
    rows keep that, and a control of its chain compares it with this one.

    Raises KeyError for a series of a proxy, which has no future.
    """
    info = ROOTS[series.root]
    months = info.family.exercises_into or info.product.future_months
    year, month = series.contract_month
    while month not in months or _last_exercise(info.product, year, month) < series.expiration:
        year, month = year + month // 12, month % 12 + 1
    return f"{info.product.code}{MONTH_CODES[month - 1]}{year % 10**year_digits:0{year_digits}d}"


def front_future(product: Product, day: date, year_digits: Literal[1, 2] = 1) -> str:
    """The future that a weekly expiring on `day` exercises into; most options are on it."""
    return underlying_future(Series(product.families[-1].roots[0], day), year_digits)


def future_expiration(product: Product, year: int, month: int) -> datetime:
    """When trading in the future of a month ends, as an aware datetime in the product's time zone."""
    days = _settlement_days(year, month)
    if product.future_ends == "third_last_trade_date":
        day = days[-3] if len(days) > 2 else date(year, month, 1)
    else:
        day = _last(days, _weekdays(year, month, FRIDAY)[2])
    return datetime.combine(day, product.future_expiry_time, ZoneInfo(product.timezone))


def expiration_of_future(symbol: str, product: Product, day: date) -> datetime:
    """When trading in a future (`NQM5`, `NQM25`) ends that is listed on a day; as `future_expiration`.

    Raises ValueError for a symbol without a month or a year.
    """
    letter, digits = symbol[len(product.code)], symbol[len(product.code) + 1 :]
    year = day.year + (int(digits) - day.year) % 10 ** len(digits)
    return future_expiration(product, year, MONTH_CODES.index(letter) + 1)


def _last_exercise(product: Product, year: int, month: int) -> datetime:
    """When the standard option of a future's month expires."""
    root = product.families[0].roots[0]
    day = expiration_date(root, year, month)
    return Series(root, day).expiration if day else future_expiration(product, year, month)


def _monthly_day(
    product: Product, family: Family, settled_days: tuple[date, ...], third_friday: date
) -> date | None:
    """The day of the month on which a family with one root expires; None if it does not."""
    if family.kind == "quarterly" and third_friday.month in product.future_months:
        return _last(settled_days, third_friday)
    if family.kind == "monthly":
        return _fourth_last(settled_days)
    return settled_days[-1] if family.kind == "end_of_month" else None


# ── days of a month ─────────────────────────────────────────────────────────────────────────────


@lru_cache(maxsize=1024)
def _settlement_days(year: int, month: int) -> tuple[date, ...]:
    """Trade dates of a month that have a settlement."""
    last = date(year, month, monthrange(year, month)[1])
    return tuple(s.trade_date for s in sessions.sessions(last.replace(day=1), last) if s.rth)


def _last(days: tuple[date, ...], limit: date) -> date:
    """The last of the days that is not after the limit."""
    return max((day for day in days if day <= limit), default=limit)


def _fourth_last(days: tuple[date, ...]) -> date:
    """The fourth-last of a month's trade dates, or an earlier one if it is a Friday or before a holiday."""
    # We read CME's rule to apply again to the day before (2025-12-23).
    return next(
        day for day in reversed(days[:-3]) if day.weekday() != FRIDAY and day + timedelta(days=1) in days
    )


def _weekdays(year: int, month: int, weekday: int) -> list[date]:
    weeks = monthcalendar(year, month)
    return [date(year, month, week[weekday]) for week in weeks if week[weekday]]
