"""A query of the historical API, and its price."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any


@dataclass(frozen=True, slots=True)
class Query:
    """A paid query for parents: `start` and `end` in nanoseconds UTC, `end` excluded."""

    dataset: str
    schema: str
    symbols: tuple[str, ...]
    start: int
    end: int

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the official client's methods."""
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
    """The vendor's price of a query.

    `usd` is 0 where the plan includes it; `size` are the billed bytes, None where it costs nothing;
    `unit_usd` is the list price per GiB, None where the price is not size times that; `at` is when the vendor
    quoted it.
    """

    usd: Decimal
    size: int | None
    unit_usd: Decimal | None
    at: datetime
