"""Barchart keeps the contract of sources, over real sockets."""

from __future__ import annotations

from typing import ClassVar

from nq_pipeline.outcome import Outcome
from nq_pipeline.settings import Settings, load
from nq_pipeline.sources.barchart import QUOTES, Barchart
from nq_pipeline_tests.sources import boards
from nq_pipeline_tests.sources.contract import MARK, SourceContract
from nq_pipeline_tests.sources.server import Answer, Asked, Server

EXPIRY = {"MC2M25": "06/11/25", "MM7M25": "06/12/25"}
SERIES = {"MC2M25": "Q2C-2025-06-11", "MM7M25": "Q2D-2025-06-12"}


def healthy(asked: Asked) -> Answer:
    """The site as it should be: boards, futures, pages."""
    if asked.path == QUOTES and "symbols" in asked.query:
        return Answer(boards.futures(NQM25=21745.25))
    if asked.path == QUOTES:
        code = asked.query["symbol"]
        return Answer(boards.chain(boards.board(code[:-2] + code[-1])))
    code = asked.path.rpartition("/")[2]
    return Answer(boards.page(code, EXPIRY[code], put=8, call=8), content_type="text/html")


class TestBarchartKeepsTheContract(SourceContract):
    outcomes: ClassVar = {
        "challenge": Outcome.BLOCKED,
        "captcha": Outcome.BLOCKED,
        "http_401": Outcome.NOT_ENTITLED,
        "http_403": Outcome.BLOCKED,
        "http_404": Outcome.UNAVAILABLE,
        "http_419": Outcome.BLOCKED,
        "http_429": Outcome.RATE_LIMITED,
        "http_500": Outcome.UNAVAILABLE,
        "redirect": Outcome.BAD_PAYLOAD,
        "hang_up": Outcome.UNAVAILABLE,
        "truncated": Outcome.BAD_PAYLOAD,
        "html": Outcome.BAD_PAYLOAD,
        "empty_body": Outcome.BAD_PAYLOAD,
        "half_json": Outcome.BAD_PAYLOAD,
        "json_number": Outcome.BAD_PAYLOAD,
        "json_list_of_numbers": Outcome.BAD_PAYLOAD,
        "json_null": Outcome.BAD_PAYLOAD,
        "not_utf8": Outcome.BAD_PAYLOAD,
        "no_contracts": Outcome.EMPTY,
        "another_product": Outcome.BAD_PAYLOAD,
        "last_week": Outcome.STALE,
    }
    faults: ClassVar = {
        "no_contracts": lambda self, asked: Answer(boards.chain([])),
        "another_product": lambda self, asked: Answer(
            boards.chain(
                [boards.traded(asked.query.get("symbol", "NQM25")[:-2] + "5", 21000, "C", multiplier=2)]
            )
        ),
        "last_week": lambda self, asked: Answer(
            boards.chain(
                [
                    boards.settled(
                        asked.query.get("symbol", "NQM25")[:-2] + "5", 21000, "C", at=boards.date(2025, 6, 3)
                    )
                ]
            )
        ),
    }

    def settings(self, server: Server) -> Settings:
        return load(
            environment="live",
            barchart_enabled=True,
            barchart_url=server.url,
            barchart_session="browser",
            barchart_cookies=f"laravel_session={MARK}; XSRF-TOKEN={MARK}%3D",
        )

    def source(self, settings: Settings) -> Barchart:
        return Barchart(settings)

    def answer(self, asked: Asked) -> Answer:
        return healthy(asked)

    def series_asked(self, asked: Asked) -> str | None:
        return SERIES.get(asked.query.get("symbol", ""))
