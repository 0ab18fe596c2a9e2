"""Rows and subscribers for tests of the stream."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

from nq_pipeline_tests.testing.lake_samples import DAY, DURING


def gap_row(number: int, *, revision: int = 0, state: str = "open") -> dict[str, Any]:
    """A row of `gaps`."""
    first = DURING + timedelta(seconds=number)
    return {
        "gap_id": f"gap-{number}",
        "revision": revision,
        "changed_at": first,
        "trade_date": DAY,
        "environment": "sandbox",
        "dataset": "GLBX.MDP3",
        "schema": "trades",
        "cause": "reset",
        "first_ts": first,
        "state": state,
        "attempts": 0,
        "cost_usd": Decimal(0),
        "run_id": "run",
    }
