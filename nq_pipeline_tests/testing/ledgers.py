"""Ledgers on every database that the ledger supports; the fixture `fresh` makes them."""

from __future__ import annotations

from collections.abc import Callable

from nq_pipeline.settings import Settings

PASSWORD = "marked-secret-9c41"
FreshLedger = Callable[..., Settings]
"""Makes settings of a new, empty ledger; takes further settings by name."""
