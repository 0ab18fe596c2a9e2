"""Barchart keeps the contract of sources, over real sockets."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import ClassVar

from nq_pipeline.clock import to_ns
from nq_pipeline.configuration import load
from nq_pipeline.outcome import Outcome
from nq_pipeline.settings import Settings
from nq_pipeline.sources.barchart.parse import parse_chain, parse_futures
from nq_pipeline.sources.barchart.source import QUOTES, Barchart
from nq_pipeline_tests.testing import barchart_boards
from nq_pipeline_tests.testing.http_server import (
    Answer,
    Asked,
    Server,
    serve,
)
from nq_pipeline_tests.testing.source_contract import MARK, MOMENT, SourceContract

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
                        at=barchart_boards.date(2025, 6, 3),
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

    def test_a_time_to_come_costs_its_cell_and_makes_no_stale_board_fresh(self, tmp_path: Path) -> None:
        ahead = MOMENT + timedelta(days=83)

        def respond(asked: Asked) -> Answer:
            if "symbols" in asked.query:
                return Answer(barchart_boards.futures(NQM25=21745.25).replace(b"1749567000", b"1756738200"))
            if asked.path != QUOTES:
                return healthy(asked)
            code = asked.query["symbol"][:-2] + "5"
            old = [barchart_boards.settled(code, 21000 + n, "C", at=date(2025, 6, 3)) for n in range(3)]
            odd = [
                barchart_boards.traded(code, 22000, "C", at=ahead),
                barchart_boards.settled(code, 23000, "C", at=date(2025, 6, 11)),
            ]
            return Answer(barchart_boards.chain(old + odd))

        with serve(respond) as server:
            answer, _ = self.ask(server, tmp_path)
        assert answer.outcome is Outcome.STALE
        assert answer.dropped == {"future_instant": 4}
        assert answer.frame["last_ts"].count() == 0
        assert answer.frame["bid"].null_count() == answer.frame["underlying_price"].count() == 0

    def test_a_date_stands_for_a_trade_date_though_it_begins_the_evening_before(self, tmp_path: Path) -> None:
        evening = datetime(2025, 6, 9, 22, 30, tzinfo=UTC)  # of the session of the 10th
        body = barchart_boards.chain(
            [barchart_boards.settled("MC2M5", 21000, "C", at=date(2025, 6, 10), volume=3)]
        )
        board = parse_chain(
            body, self.series[0], "MC2M5", trade_date=date(2025, 6, 10), latest=to_ns(evening)
        )
        assert not board.dropped
        assert board.newest == date(2025, 6, 10)

    def test_a_future_that_was_not_asked_for_is_left_out(self) -> None:
        body = barchart_boards.futures(NQM25=21745.25, ESM25=6000.0)
        assert list(parse_futures(body, ["NQM25"], trade_date=date(2025, 6, 10))) == ["NQM25"]

    def series_asked(self, asked: Asked) -> str | None:
        return SERIES.get(asked.query.get("symbol", ""))
