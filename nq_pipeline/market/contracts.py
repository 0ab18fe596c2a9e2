"""Roots, series and contracts: the keys by which everything in the lake is joined.

A **series** is one expiration of one root, written `Q1B-2025-07-01`. A **contract** is one
strike and side of a series, written `Q1B-2025-07-01-C-21330`. Both keys are stable;
`symbology.py` maps vendors' own codes to them. The underlying future is not part of a key.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime
from functools import cached_property
from typing import Literal
from zoneinfo import ZoneInfo

from nq_pipeline.market import sessions
from nq_pipeline.market.products import PRODUCTS, PROXIES, Family, Product

OptionType = Literal["C", "P"]
MONTH_CODES = "FGHJKMNQUVXZ"
"""CME's letters of the months, from January."""


@dataclass(frozen=True, slots=True)
class Root:
    """One option root, e.g. `Q1B`: Tuesday of week 1 of E-mini NQ."""

    code: str
    product: Product
    family: Family
    week: int | None
    """Week of the month of a weekly, from 1; None for other families."""
    barchart: str | None = None
    """Barchart's root of the same options; None where it is unknown."""


@dataclass(frozen=True, order=True)
class Series:
    """One expiration of one root. `Series.parse("Q1B-2025-07-01")` is the inverse of `key`."""

    root: str
    expiration_date: date

    @classmethod
    def parse(cls, key: str) -> Series:
        """Parse `ROOT-YYYY-MM-DD`; ValueError for anything else."""
        root, dash, day = key.partition("-")
        try:
            if not (root and dash):
                raise ValueError
            return cls(root.upper(), date.fromisoformat(day))
        except ValueError:
            raise ValueError(f"{key!r} is not a series; write ROOT-YYYY-MM-DD, e.g. Q1B-2025-07-01") from None

    @property
    def key(self) -> str:
        return f"{self.root}-{self.expiration_date.isoformat()}"

    def __str__(self) -> str:
        return self.key

    @cached_property
    def root_info(self) -> Root:
        """The root; KeyError if it is in neither `ROOTS` nor `PROXY_ROOTS`."""
        return ROOTS.get(self.root) or PROXY_ROOTS[self.root]

    @property
    def contract_month(self) -> tuple[int, int]:
        """Year and month in the exchange's code: August for gold's option that expires in July.

        For an unknown root, the month of its expiration.
        """
        info = ROOTS.get(self.root)
        ahead = info.family.months_ahead if info else 0
        months = self.expiration_date.year * 12 + self.expiration_date.month - 1 + ahead
        return months // 12, months % 12 + 1

    @property
    def expiration(self) -> datetime:
        """When trading ends, as an aware datetime in the product's time zone (convert to UTC to store).

        On a day of early close it is the session's close. Whether trading ends some minutes earlier, with
        the stock market, is uncertain.
        """
        info = self.root_info
        zone = ZoneInfo(info.product.timezone)
        ends = datetime.combine(self.expiration_date, info.family.expiry_time, tzinfo=zone)
        if info.product.underlying_class != "future" or not sessions.is_trade_date(self.expiration_date):
            return ends
        return min(ends, sessions.session(self.expiration_date).close.astimezone(zone))

    def contract_key(self, option_type: OptionType, strike: float) -> str:
        return f"{self.key}-{option_type}-{format_strike(strike)}"


@dataclass(frozen=True, slots=True)
class Contract:
    """One strike and side of one series."""

    series: Series
    option_type: OptionType
    strike: float

    @property
    def key(self) -> str:
        return self.series.contract_key(self.option_type, self.strike)


def format_strike(strike: float, whole_digits: int = 1) -> str:
    """A strike without separator or trailing zeros: `21330`, `21330.5`.

    Rounded to ten-thousandths, the whole part padded with zeros to `whole_digits`.
    `symbology.strike_texts` does the same for columns.
    """
    whole, fraction = divmod(round(strike * 10_000), 10_000)
    return f"{whole:0{whole_digits}d}.{fraction:04d}".rstrip("0").rstrip(".")


def roots_of(products: Iterable[Product]) -> dict[str, Root]:
    """The roots of `products` by code."""
    return {
        code: Root(
            code,
            product,
            family,
            week if family.kind == "weekly" else None,
            family.barchart[week - 1] if family.barchart else None,
        )
        for product in products
        for family in product.families
        for week, code in enumerate(family.roots, start=1)
    }


ROOTS: dict[str, Root] = roots_of(PRODUCTS.values())
"""Every root of options on futures, product by product; E-mini NQ has 26 of them."""

PROXY_ROOTS: dict[str, Root] = roots_of(PROXIES.values())
"""The roots of proxies: NDX, NDXP, QQQ; SPX, SPXW, SPY."""

PRODUCT_OF: dict[str, str] = {code: root.product.code for code, root in (ROOTS | PROXY_ROOTS).items()}
"""The product code of each root: NQ for `Q1B`, ES for `EW`, NDX for `NDXP`."""
