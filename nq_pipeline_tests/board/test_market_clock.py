"""The market clock at opens, closes, halts and holidays; times are Chicago's."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from nq_pipeline.board.market_clock import read_market_clock

CHICAGO = ZoneInfo("America/Chicago")


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=CHICAGO)


@pytest.mark.parametrize(
    ("now", "state", "change", "changes_at", "next_open"),
    [
        ("2025-06-10 10:00", "regular", "regular hours end", "2025-06-10 15:00", "2025-06-10 17:00"),
        ("2025-06-10 15:00", "extended", "closes", "2025-06-10 16:00", "2025-06-10 17:00"),
        ("2025-06-10 16:00", "closed", "opens", "2025-06-10 17:00", "2025-06-10 17:00"),
        ("2025-06-11 02:00", "extended", "regular hours begin", "2025-06-11 08:30", "2025-06-11 17:00"),
        ("2025-06-14 12:00", "closed", "opens", "2025-06-15 17:00", "2025-06-15 17:00"),  # Saturday
        ("2025-07-03 12:00", "regular", "closes", "2025-07-03 12:15", "2025-07-03 17:00"),  # early close
        ("2025-06-19 11:00", "extended", "closes", "2025-06-19 12:00", "2025-06-19 17:00"),  # Juneteenth
        ("2026-04-03 07:30", "extended", "closes", "2026-04-03 08:15", "2026-04-05 17:00"),  # Good Friday
        ("2025-12-25 12:00", "closed", "opens", "2025-12-25 17:00", "2025-12-25 17:00"),
    ],
)
def test_state_and_next_change(now: str, state: str, change: str, changes_at: str, next_open: str) -> None:
    clock = read_market_clock(at(now))
    assert (clock["state"], clock["change"]) == (state, change)
    assert (clock["changes_at"], clock["next_open"]) == (at(changes_at), at(next_open))


def test_the_weekend_belongs_to_its_last_session() -> None:
    assert read_market_clock(at("2025-06-14 12:00"))["trade_date"].isoformat() == "2025-06-13"
