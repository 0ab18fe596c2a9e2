"""A query of the historical API, and its price."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any


@dataclass(frozen=True, slots=True)
class Query:
    """One metered question: nanoseconds UTC, `start` included, `end` not; symbols are parents."""

    dataset: str
    schema: str
    symbols: tuple[str, ...]
    start: int
    end: int

    @property
    def arguments(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset,
            "schema": self.schema,
            "symbols": list(self.symbols),
            "stype_in": "parent",
            "start": self.start,
            "end": self.end,
        }


@dataclass(frozen=True, slots=True)
class Price:
    """What the vendor says a query costs.

    Attributes
    ----------
    usd
        0 where the plan includes it.
    size
        Bytes it would bill; None where it costs nothing.
    unit_usd
        The list's price per GiB; None where the price is not simply size times that.
    at
        When it said so.
    """

    usd: Decimal
    size: int | None
    unit_usd: Decimal | None
    at: datetime
