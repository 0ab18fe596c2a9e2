"""When settlements are made and known, against CME's own words where there are some."""

from __future__ import annotations

from datetime import UTC, date, datetime

import pytest

from nq_pipeline.errors import NoSession
from nq_pipeline.market.products import GC, NDX, NQ, Product
from nq_pipeline.market.sessions import CHICAGO
from nq_pipeline.market.settlements import newest_published, published_at, settled_at


@pytest.mark.parametrize(
    ("product", "day", "expected"),
    [
        # CME, questions and answers on the settlement time, 2020-09-22: 15:00 from 2020-10-26, before 15:15,
        # but 15:00 on the last business day of a month; 12:00 on a shortened day.
        (NQ, "2020-10-26", "15:00"),
        (NQ, "2020-10-23", "15:15"),
        (NQ, "2020-09-30", "15:00"),
        (NQ, "2020-02-28", "15:00"),  # a Friday, the last trade date of its month
        (NQ, "2020-11-27", "12:00"),
        (NQ, "2025-07-03", "12:00"),
        (NQ, "2025-06-10", "15:00"),
        (NQ, "2025-01-31", "15:00"),
        (NQ, "2025-09-02", "15:00"),  # Labor Day halts at noon, within this trade date
        # Uncertain: before the change a short day's is taken to be at 12:15, a session that ends before
        # noon to settle at its close.
        (NQ, "2019-11-29", "12:15"),
        (NQ, "2026-04-03", "08:15"),
        (NQ, "2025-01-09", "08:30"),
        # CME's page of settlement times has gold at 13:30 New York.
        (GC, "2025-06-10", "12:30"),
        (NDX, "2025-06-10", "15:00"),
        (NDX, "2025-07-03", "12:00"),
    ],
)
def test_the_hour_of_a_settlement(product: Product, day: str, expected: str) -> None:
    made = settled_at(date.fromisoformat(day), product)
    assert f"{made.astimezone(CHICAGO):%Y-%m-%d %H:%M}" == f"{day} {expected}"


def test_a_day_that_is_no_trade_date_has_no_settlement() -> None:
    with pytest.raises(NoSession):
        settled_at(date(2025, 6, 8), NQ)


@pytest.mark.parametrize(
    ("product", "moment", "newest"),
    [
        (NQ, "2025-06-10 15:29:59", "2025-06-09"),
        (NQ, "2025-06-10 15:30:00", "2025-06-10"),
        (NQ, "2025-06-10 17:30:00", "2025-06-10"),
        (NQ, "2025-06-09 12:00:00", "2025-06-06"),
        (NQ, "2025-06-08 17:30:00", "2025-06-06"),
        (NQ, "2025-07-03 12:29:00", "2025-07-02"),
        (NQ, "2025-07-03 12:30:00", "2025-07-03"),
        (GC, "2025-06-10 12:31:00", "2025-06-10"),
    ],
)
def test_the_newest_settlements_that_are_out(product: Product, moment: str, newest: str) -> None:
    at = datetime.fromisoformat(moment).replace(tzinfo=CHICAGO).astimezone(UTC)
    day = date.fromisoformat(newest)
    assert newest_published(at, product) == day and published_at(day, product) <= at
