"""A small Barchart, healthy and with its own faults, for the contract of sources."""

from __future__ import annotations

from datetime import date
from typing import ClassVar

from nq_pipeline.configuration import load
from nq_pipeline.outcome import Outcome
from nq_pipeline.settings import Settings
from nq_pipeline.sources.barchart.source import QUOTES, Barchart
from nq_pipeline_tests.testing import barchart_boards
from nq_pipeline_tests.testing.http_server import Answer, Asked, Server
from nq_pipeline_tests.testing.source_contract import MARK, SourceContract

EXPIRY = {"MC2M25": "06/11/25", "MM7M25": "06/12/25"}
SERIES = {"MC2M25": "Q2C-2025-06-11", "MM7M25": "Q2D-2025-06-12"}


def healthy(asked: Asked) -> Answer:
    """The site as it should be: boards, futures, pages."""
    if asked.path == QUOTES and "symbols" in asked.query:
        return Answer(barchart_boards.futures(NQM25=21745.25))
    if asked.path == QUOTES:
        code = asked.query["symbol"]
        return Answer(barchart_boards.chain(barchart_boards.board(code[:-2] + code[-1])))
    code = asked.path.rpartition("/")[2]
    return Answer(barchart_boards.page(code, EXPIRY[code], put=8, call=8), content_type="text/html")


class BarchartContract(SourceContract):
    """The contract of sources for Barchart."""

    outcomes: ClassVar = {
        "challenge": Outcome.BLOCKED,
        "captcha": Outcome.BLOCKED,
        "http_401": Outcome.NOT_ENTITLED,
        "http_403": Outcome.BLOCKED,
        "http_419": Outcome.BLOCKED,
        "no_contracts": Outcome.EMPTY,
        "another_product": Outcome.BAD_PAYLOAD,
        "another_board": Outcome.EMPTY,
        "last_week": Outcome.STALE,
    }
    faults: ClassVar = {
        "no_contracts": lambda self, asked: Answer(barchart_boards.chain([])),
        "another_product": lambda self, asked: Answer(
            barchart_boards.chain(
                [
                    barchart_boards.traded(
                        asked.query.get("symbol", "NQM25")[:-2] + "5", 21000, "C", multiplier=2
                    )
                ]
            )
        ),
        "another_board": lambda self, asked: Answer(barchart_boards.chain(barchart_boards.board("MC6N5"))),
        "last_week": lambda self, asked: Answer(
            barchart_boards.chain(
                [
                    barchart_boards.settled(
                        asked.query.get("symbol", "NQM25")[:-2] + "5",
                        21000,
                        "C",
                        at=date(2025, 6, 3),
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
