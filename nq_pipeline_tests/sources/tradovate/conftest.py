"""Fixtures of Tradovate's tests."""

from __future__ import annotations

import pytest

from nq_pipeline.sources.tradovate import websocket


@pytest.fixture(autouse=True)
def _short_quiet_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A feed that is quoted in full is left after 50 ms without a frame."""
    monkeypatch.setattr(websocket, "QUIET_S", 0.05)
