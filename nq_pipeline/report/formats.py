"""How the report writes numbers and times."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from zoneinfo import ZoneInfo

import polars as pl

from nq_pipeline.charts.theme import ZONE

NONE = "–"


def count(value: int | None) -> str:
    return NONE if value is None else f"{value:,}"


def number(value: float | None, digits: int = 2) -> str:
    return NONE if value is None else f"{value:,.{digits}f}"


def share(value: float | None, digits: int = 1) -> str:
    return NONE if value is None else f"{value:.{digits}%}"


def usd(value: float | Decimal | None, digits: int = 2) -> str:
    return NONE if value is None else f"${value:,.{digits}f}"


def signed(value: float, digits: int) -> str:
    return f"{value:+,.{digits}f}".replace("-", "−")


def local(moment: datetime | None, form: str = "%H:%M:%S") -> str:
    """An instant in Chicago time."""
    return NONE if moment is None else moment.astimezone(ZoneInfo(ZONE)).strftime(form)


def known(counts: pl.Series) -> int | None:
    """The sum of the known counts; None when all are unknown."""
    return int(counts.sum()) if counts.count() else None


def ratio(part: int | None, whole: int | None) -> str:
    return NONE if part is None or not whole else number(part / whole)


def total(parts: list[int | None]) -> str:
    known = [part for part in parts if part is not None]
    return count(sum(known)) if known else NONE
