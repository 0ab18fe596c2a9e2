"""Types of option values."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

import click


def usd(text: str) -> Decimal:
    """Parse an amount of US dollars without rounding."""
    try:
        amount = Decimal(text)
    except InvalidOperation:
        amount = Decimal("NaN")
    if not (amount.is_finite() and amount >= 0):
        raise click.BadParameter(f"{text}: write an amount like 5 or 1.25")
    return amount
