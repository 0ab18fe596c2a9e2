"""US dollars as exact decimals, to the billionth: a byte at a dollar per GiB costs about one.

Anything finer is rounded up, so that the ledger never shows less than is owed.
"""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal

GIB = 2**30
"""Bytes of the gigabyte that Databento's unit prices are for."""
NANO = Decimal("1e-9")
ZERO = Decimal(0)
MOST = Decimal(10**9)
"""Every amount is below this: the ledger and the lake hold no more digits."""


def is_amount(usd: Decimal) -> bool:
    """Whether it can be billed: a finite number, not negative, below `MOST`."""
    return usd.is_finite() and ZERO <= usd < MOST


def round_up(usd: Decimal) -> Decimal:
    """The amount rounded up to a billionth of a dollar."""
    return usd.quantize(NANO, rounding=ROUND_CEILING)


def cost_of(size: int, unit_price_usd: Decimal) -> Decimal:
    """The cost of `size` bytes at a price per GiB."""
    return round_up(size * unit_price_usd / GIB)


def format_usd(usd: Decimal) -> str:
    """An amount for people: cents, and more digits where it has them (`$3.21`, `-$0.000012`)."""
    whole, _, part = f"{abs(usd):,.9f}".partition(".")
    sign = "-" if usd < 0 else ""
    return f"{sign}${whole}.{part.rstrip('0'):0<2}"
