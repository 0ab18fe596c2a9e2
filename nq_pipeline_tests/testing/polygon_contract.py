"""A small Polygon, healthy and with its own faults, for the contract of sources."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from typing import Any, ClassVar

from nq_pipeline.configuration import load
from nq_pipeline.outcome import Outcome
from nq_pipeline.settings import Settings
from nq_pipeline.sources.polygon.source import REFERENCE, SNAPSHOT, Polygon
from nq_pipeline_tests.testing.http_server import Answer, Asked, Server
from nq_pipeline_tests.testing.proxies import NOON, contract, item, page
from nq_pipeline_tests.testing.source_contract import MARK, SourceContract

DAYS = (date(2025, 6, 11), date(2025, 6, 12))
LATER = date(2025, 12, 19)
BOARD = [("NDXP", day, side, 21700.0 + 50 * n) for day in DAYS for side in "CP" for n in range(4)]
FORBIDDEN = Answer(
    status=403, body=b'{"status":"NOT_AUTHORIZED","message":"You are not entitled to this data."}'
)
MISSING = Answer(status=404, body=b'{"status":"NOT_FOUND","message":"Ticker not found."}')


def healthy(asked: Asked, *, per_page: int = 5) -> Answer:
    """The chain in pages of five; the cursor is the row to go on at, the host in `next_url` is dead."""
    if not asked.path.startswith(SNAPSHOT.path):
        return MISSING
    start = int(asked.query.get("cursor", "0"))
    rows = [item(*terms) for terms in BOARD[start : start + per_page]]
    more = start + per_page < len(BOARD)
    following = f"https://127.0.0.1:9{asked.path}?cursor={start + per_page}" if more else None
    return Answer(page(rows, next_url=following))


def listed(asked: Asked) -> Answer:
    """A plan without snapshots: contracts only."""
    if asked.path != REFERENCE.path:
        return FORBIDDEN
    return Answer(page([contract(*terms) for terms in BOARD]))


def changed(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Answer:
    return Answer(page([change(item(*terms)) for terms in BOARD]))


class PolygonContract(SourceContract):
    """The contract of sources for Polygon."""

    outcomes: ClassVar = {
        "http_401": Outcome.NOT_CONFIGURED,
        "http_403": Outcome.NOT_ENTITLED,
        "firewall": Outcome.BLOCKED,
        "no_contracts": Outcome.EMPTY,
        "no_results": Outcome.BAD_PAYLOAD,
        "last_week": Outcome.STALE,
        "no_snapshots": Outcome.PARTIAL,
        "no_quotes": Outcome.PARTIAL,
        "empty_quotes": Outcome.PARTIAL,
        "broken_rows": Outcome.PARTIAL,
        "only_broken_rows": Outcome.BAD_PAYLOAD,
        "only_other_days": Outcome.EMPTY,
        "circle": Outcome.PARTIAL,
        "dies_after_a_page": Outcome.PARTIAL,
    }
    faults: ClassVar = {
        "firewall": lambda self, asked: Answer(status=403, body=b"<html>", content_type="text/html"),
        "no_contracts": lambda self, asked: Answer(page([])),
        "no_results": lambda self, asked: Answer(b'{"status":"OK"}'),
        "last_week": lambda self, asked: Answer(
            page([item(*terms, at=NOON - timedelta(days=7)) for terms in BOARD])
        ),
        "no_snapshots": lambda self, asked: listed(asked),
        "no_quotes": lambda self, asked: changed(lambda row: row | {"last_quote": None}),
        "empty_quotes": lambda self, asked: changed(lambda row: row | {"last_quote": {}}),
        "broken_rows": lambda self, asked: Answer(
            page([*(item(*terms) for terms in BOARD), 7, {"details": 1}])
        ),
        "only_broken_rows": lambda self, asked: changed(lambda row: row | {"details": {"ticker": "?"}}),
        "only_other_days": lambda self, asked: Answer(page([item("NDXP", LATER, "C", 21700.0)])),
        "circle": lambda self, asked: Answer(page([item(*BOARD[0])], next_url="/v3/again?cursor=0")),
        "dies_after_a_page": lambda self, asked: (
            Answer(status=500) if asked.query.get("cursor") else healthy(asked)
        ),
    }

    def settings(self, server: Server) -> Settings:
        return load(environment="live", polygon_url=server.url, polygon_api_key=MARK)

    def source(self, settings: Settings) -> Polygon:
        return Polygon(settings)

    def answer(self, asked: Asked) -> Answer:
        return healthy(asked)
