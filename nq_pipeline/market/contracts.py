"""Roots, series and contracts: the names by which everything in the lake is joined.

A **series** is one expiration of one root, written `Q1B-2025-07-01`. A **contract** is one
strike and side of a series, written `Q1B-2025-07-01-C-21330`. Both are ours and stable;
vendors' own codes map to them in `symbology.py`. The underlying future is not part of a key.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from functools import cached_property
from typing import Literal
from zoneinfo import ZoneInfo

from nq_pipeline.market.products import PRODUCTS, Family, Product

OptionType = Literal["C", "P"]
MONTH_CODES = "FGHJKMNQUVXZ"
QUARTERLY_MONTHS = (3, 6, 9, 12)


@dataclass(frozen=True, slots=True)
class Root:
    """One Globex option root, e.g. `Q1B`: Tuesday of week 1 of E-mini NQ."""

    code: str
    product: Product
    family: Family
    week: int | None


@dataclass(frozen=True, order=True)
class Series:
    """One expiration of one root. `Series.parse("Q1B-2025-07-01")` is the inverse of `key`.

    The root of a proxy series (`NDX`, `NDXP`, `QQQ`) is not in the product table; its
    `root_info` raises KeyError, so ask the `underlying_class` of a row first.
    """

    root: str
    expiration_date: date

    @classmethod
    def parse(cls, key: str) -> Series:
        """Parse `ROOT-YYYY-MM-DD`; ValueError with one sentence when it is not that."""
        root, dash, day = key.partition("-")
        try:
            if not (root and dash):
                raise ValueError
            return cls(root.upper(), date.fromisoformat(day))
        except ValueError:
            raise ValueError(
                f"{key!r} is not a series; write ROOT-YYYY-MM-DD, e.g. Q1B-2025-07-01"
            ) from None

    @property
    def key(self) -> str:
        return f"{self.root}-{self.expiration_date.isoformat()}"

    def __str__(self) -> str:
        return self.key

    @cached_property
    def root_info(self) -> Root:
        return ROOTS[self.root]

    @property
    def expiration(self) -> datetime:
        """The instant trading ends, aware, in the exchange's time zone (convert to UTC to store)."""
        info = self.root_info
        zone = ZoneInfo(info.product.timezone)
        return datetime.combine(self.expiration_date, info.family.expiry_time, tzinfo=zone)

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


def format_strike(strike: float) -> str:
    """A strike without separator or trailing zeros: `21330`, `21330.5`."""
    return f"{strike:.4f}".rstrip("0").rstrip(".")


def _roots() -> dict[str, Root]:
    return {
        code: Root(code, product, family, week if family.kind == "weekly" else None)
        for product in PRODUCTS.values()
        for family in product.families
        for week, code in enumerate(family.roots, start=1)
    }


ROOTS: dict[str, Root] = _roots()
