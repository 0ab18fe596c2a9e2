"""Ledgers on every database that the ledger supports; the fixture `fresh` makes them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from nq_pipeline.settings import Settings
from nq_pipeline.spend.ledger import Charge

PASSWORD = "marked-secret-9c41"
FreshLedger = Callable[..., Settings]
"""Makes settings of a new, empty ledger; takes further settings by name."""


def charge_of_a_day(**more: Any) -> Charge:
    """A charge of one dollar for a day of trades, with other values by name."""
    given = {
        "vendor": "databento",
        "purpose": "backfill",
        "dataset": "GLBX.MDP3",
        "schema": "trades",
        "mode": "historical-streaming",
        "description": "a day",
        "run_id": "r",
        "cost_usd": Decimal(1),
        "unit_price_usd": None,
        "billable_bytes": None,
        "priced_at": datetime.now(UTC),
    }
    return Charge(**{**given, **more})
