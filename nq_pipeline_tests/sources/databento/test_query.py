"""Which queries a snapshot sends, and the plan that is archived with their prices."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from nq_pipeline.clock import NS_PER_S, to_ns
from nq_pipeline.errors import BadPayload
from nq_pipeline.sources.databento.query import Price, QueryPlan, plan_queries
from nq_pipeline_tests.testing.source_contract import MOMENT


def plan(**usd: str) -> QueryPlan:
    queries = plan_queries(
        MOMENT, MOMENT, to_ns(MOMENT) + 1, ("Q2C.OPT",), ("NQ.FUT",), dataset="GLBX.MDP3", window_s=900
    )
    return QueryPlan(
        tuple(
            (q, Price(Decimal(usd.get(q.schema.replace("-", "_"), "0")), 48, Decimal(28), MOMENT))
            for q in queries
        )
    )


def test_a_plan_is_the_same_after_it_was_archived() -> None:
    assert QueryPlan.loads(plan(trades="0.12").dumps()) == plan(trades="0.12")
    for body in (b"", b"[]", b"{}", b"[[1]]", plan().dumps().replace(b"trades", b"sleeps")):
        with pytest.raises(BadPayload):
            QueryPlan.loads(body)


@pytest.mark.parametrize(
    ("moment", "available", "trades_from", "day"),
    [
        ("2025-06-10T15:00", "2025-06-10T15:00", "2025-06-09T22:00", "2025-06-10"),
        # In the evening the UTC day is that before the trade date.
        ("2025-06-09T23:30", "2025-06-09T23:30", "2025-06-09T22:00", "2025-06-09"),
        # Friday's close, asked about on a Sunday.
        ("2025-06-13T20:00", "2025-06-15T12:00", "2025-06-12T22:00", "2025-06-13"),
        # A vendor that has nothing newer than a Saturday.
        ("2025-06-10T15:00", "2025-05-31T15:00", "2025-05-29T22:00", "2025-05-30"),
    ],
)
def test_queries_stay_within_one_session(moment: str, available: str, trades_from: str, day: str) -> None:
    at, until = (datetime.fromisoformat(f"{text}:00Z") for text in (moment, available))
    queries = plan_queries(
        at, max(at, until), to_ns(until) + 1, ("Q2C.OPT",), ("NQ.FUT",), dataset="GLBX.MDP3", window_s=900
    )
    definition, quotes, statistics, trades = queries
    assert trades.start == to_ns(datetime.fromisoformat(f"{trades_from}:00Z"))
    assert definition.start == to_ns(datetime.fromisoformat(f"{day}T00:00:00Z"))
    assert quotes.end == trades.end == definition.end <= min(to_ns(at), to_ns(until)) + 1
    assert quotes.end - quotes.start <= 900 * NS_PER_S
    assert quotes.start >= trades.start > statistics.start
    assert all(query.start < query.end for query in queries)


def test_statistics_begin_at_the_previous_settlement() -> None:
    at = datetime(2025, 7, 7, 15, tzinfo=UTC)  # the Monday after a short Thursday and a holiday

    def start(*roots: str) -> int:
        options = tuple(f"{root}.OPT" for root in roots)
        asked = plan_queries(at, at, to_ns(at), options, (), dataset="GLBX.MDP3", window_s=900)
        return asked[2].start

    assert start("Q2C") == to_ns(datetime(2025, 7, 3, 17, tzinfo=UTC))
    assert start("G2W", "Q2C") == start("Q2C") < start("G2W")
