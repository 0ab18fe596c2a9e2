"""Types of option values."""

from __future__ import annotations

from contextlib import suppress
from datetime import date, datetime
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


def instant(text: str) -> datetime:
    """Parse an instant in ISO 8601 with a time zone."""
    with suppress(ValueError):
        if (moment := datetime.fromisoformat(text)).tzinfo:
            return moment
    raise click.BadParameter(f"{text}: write an instant like 2025-06-10T15:00:00Z")


def day_or_instant(text: str) -> date:
    """Parse a trade date, or an instant (a `datetime`) in ISO 8601 with a time zone."""
    with suppress(ValueError):
        return date.fromisoformat(text)
    with suppress(click.BadParameter):
        return instant(text)
    raise click.BadParameter(
        f"{text}: write a trade date like 2025-06-10 or an instant like 2025-06-10T15:00:00Z"
    )
