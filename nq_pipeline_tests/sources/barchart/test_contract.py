"""Barchart keeps the contract of sources, over real sockets."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from nq_pipeline.clock import to_ns
from nq_pipeline.outcome import Outcome
from nq_pipeline.sources.barchart.parse import parse_chain, parse_futures
from nq_pipeline.sources.barchart.source import QUOTES
from nq_pipeline_tests.testing import barchart_boards
from nq_pipeline_tests.testing.barchart_contract import BarchartContract, healthy
from nq_pipeline_tests.testing.http_server import Answer, Asked, serve
from nq_pipeline_tests.testing.source_contract import MOMENT


class TestBarchartContract(BarchartContract):
    def test_a_future_time_does_not_make_a_stale_series_fresh(self, tmp_path: Path) -> None:
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

    def test_a_date_is_a_trade_date_that_begins_the_evening_before(self, tmp_path: Path) -> None:
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
