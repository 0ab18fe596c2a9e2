"""Values of options, checked as they are read."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

import click


def usd(words: str) -> Decimal:
    """An amount of money, from its words straight to a decimal."""
    try:
        amount = Decimal(words)
    except InvalidOperation:
        amount = Decimal("NaN")
    if not (amount.is_finite() and amount >= 0):
        raise click.BadParameter(f"{words}: write an amount like 5 or 1.25")
    return amount
