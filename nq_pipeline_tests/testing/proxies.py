"""Small answers in the form of Polygon (Massive), made here."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any

import orjson

from nq_pipeline.clock import to_ns

NOON = datetime(2025, 6, 10, 14, 58, tzinfo=UTC)
TERMS = (
    "ticker",
    "contract_type",
    "exercise_style",
    "expiration_date",
    "shares_per_contract",
    "strike_price",
)


def contract(root: str, expires: date, side: str, strike: float) -> dict[str, Any]:
    """A contract of the reference endpoint."""
    return {
        "cfi": "OCEICS",
        "contract_type": {"C": "call", "P": "put"}[side],
        "exercise_style": "american" if root == "QQQ" else "european",
        "expiration_date": expires.isoformat(),
        "primary_exchange": "GMNI",
        "shares_per_contract": 100,
        "strike_price": strike,
        "ticker": f"O:{root}{expires:%y%m%d}{side}{round(strike * 1000):08d}",
        "underlying_ticker": "QQQ" if root == "QQQ" else "NDX",
    }


def item(
    root: str, expires: date, side: str, strike: float, *, at: datetime = NOON, **blocks: Any
) -> dict[str, Any]:
    """An item of the chain snapshot, all blocks present; `blocks` replaces some (None removes one)."""
    terms = contract(root, expires, side, strike)
    whole = {
        "break_even_price": strike + 101.5,
        "day": {
            "open": 90.0, "high": 110.0, "low": 88.5, "close": 101.0, "change": 3.25, "volume": 42,
            "last_updated": to_ns(at.replace(hour=4, minute=0)),
        },
        "details": {name: terms[name] for name in TERMS},
        "greeks": {"delta": 0.5, "gamma": 0.001, "theta": -12.5, "vega": 8.25},
        "implied_volatility": 0.21,
        "last_quote": {
            "bid": 100.5, "bid_size": 4, "ask": 102.5, "ask_size": 7, "midpoint": 101.5,
            "last_updated": to_ns(at), "timeframe": "DELAYED",
        },
        "last_trade": {"price": 101.25, "sip_timestamp": to_ns(at) - 60_000_000_000, "size": 1},
        "open_interest": 1234,
        "underlying_asset": {
            "ticker": "I:NDX", "value": 21750.5, "last_updated": to_ns(at), "timeframe": "DELAYED"
        },
    }  # fmt: skip
    return {name: block for name, block in {**whole, **blocks}.items() if block is not None}


def page(results: Sequence[Any], *, next_url: str | None = None, status: str = "OK") -> bytes:
    """A whole answer."""
    more = {} if next_url is None else {"next_url": next_url}
    return orjson.dumps({"request_id": "r", "results": results, "status": status, **more})
