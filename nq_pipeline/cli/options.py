"""Types of option values."""

from __future__ import annotations

from datetime import datetime
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
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise click.BadParameter(f"{text}: write an instant like 2025-06-10T15:00:00Z")
    return moment
