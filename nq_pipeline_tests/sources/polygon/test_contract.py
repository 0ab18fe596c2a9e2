"""Polygon keeps the contract of sources, over real sockets, and promises of its own."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import SecretStr

from nq_pipeline.clock import to_ns
from nq_pipeline.configuration import load
from nq_pipeline.market.contracts import Series
from nq_pipeline.outcome import Outcome
from nq_pipeline.sources.polygon.source import REFERENCE, Polygon
from nq_pipeline.verify.doctor import probe_source
from nq_pipeline_tests.testing.http_server import Answer, Asked, serve
from nq_pipeline_tests.testing.polygon_contract import BOARD, DAYS, LATER, PolygonContract, healthy, listed
from nq_pipeline_tests.testing.proxies import NOON, contract, item, page
from nq_pipeline_tests.testing.source_contract import MARK, MOMENT


class TestPolygonContract(PolygonContract):
    @pytest.mark.parametrize("key", ["two words", "kéy", "key\n"])
    def test_a_key_that_no_header_can_carry_is_not_sent(self, key: str, tmp_path: Path) -> None:
        with self.vendor() as server:
            settings = self.settings(server).with_values(polygon_api_key=SecretStr(key))
            source = self.source(settings)
            answer = source.ask(self.request(), self.session(source, tmp_path))
            assert not server.asked
        assert answer.outcome is Outcome.NOT_CONFIGURED and "is not a key" in answer.reason

    def test_all_pages_are_read_with_the_key_in_the_header_only(self, tmp_path: Path) -> None:
        with self.vendor() as server:
            answer, _ = self.ask(server, tmp_path)
        assert answer.frame.height == len(BOARD)
        assert [asked.query.get("cursor") for asked in server.asked] == [None, "5", "10", "15"]
        for asked in server.asked:
            assert asked.headers["authorization"] == f"Bearer {MARK}"
            assert MARK not in str(asked.query)

    def test_pages_in_a_circle_end_at_the_first_repeated_address(self, tmp_path: Path) -> None:
        with self.vendor("circle") as server:
            answer, _ = self.ask(server, tmp_path)
        assert len(server.asked) == 2
        assert "lead back to an earlier one" in answer.reason

    def test_pages_without_an_end_are_left(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("nq_pipeline.sources.polygon.source.MAX_PAGES", 2)
        with self.vendor() as server:
            answer, _ = self.ask(server, tmp_path)
        assert len(server.asked) == 2 and answer.outcome is Outcome.PARTIAL
        assert "did not end after 2" in answer.reason

    def test_an_unknown_underlying_is_named_and_does_not_cost_the_other(self, tmp_path: Path) -> None:
        with self.vendor() as server:
            source = Polygon(self.settings(server).with_values(polygon_underlyings=("NDX", "VIX")))
            answer = source.ask(self.request(), self.session(source, tmp_path))
        assert answer.frame.height and "'VIX'" in answer.reason

    def test_the_question_spans_the_expirations_of_the_request(self, tmp_path: Path) -> None:
        with self.vendor() as server:
            self.ask(server, tmp_path)
        asked = server.asked[0]
        assert asked.path == "/v3/snapshot/options/I:NDX"
        assert dict(asked.query) == {
            "expiration_date.gte": "2025-06-11",
            "expiration_date.lte": "2025-06-12",
            "sort": "expiration_date",
            "order": "asc",
            "limit": "250",
        }

    def test_the_weeks_before_a_far_expiration_are_not_asked_for(self, tmp_path: Path) -> None:
        far = replace(self.request(), series=(*self.request().series, Series("NQ", date(2025, 9, 19))))
        with self.vendor() as server:
            source = self.source(self.settings(server))
            source.ask(far, self.session(source, tmp_path))
        first = [asked.query for asked in server.asked if "cursor" not in asked.query]
        spans = [(query["expiration_date.gte"], query["expiration_date.lte"]) for query in first]
        assert spans == [("2025-06-11", "2025-06-12"), ("2025-09-19", "2025-09-19")]

    def test_series_are_the_proxys_own(self, tmp_path: Path) -> None:
        with self.vendor() as server:
            answer, _ = self.ask(server, tmp_path)
        assert set(answer.series) == {"NDXP-2025-06-11", "NDXP-2025-06-12"}
        assert set(answer.frame["underlying_class"]) == {"index"}

    def test_a_plan_without_snapshots_still_says_what_is_listed(self, tmp_path: Path) -> None:
        with self.vendor("no_snapshots") as server:
            answer, _ = self.ask(server, tmp_path)
        assert answer.frame.height == len(BOARD)
        assert answer.frame["bid"].null_count() == len(BOARD)
        assert "You are not entitled" in answer.reason
        asked = server.asked[1]
        assert (asked.query["underlying_ticker"], asked.query["as_of"]) == ("NDX", "2025-06-10")
        assert asked.query["limit"] == "1000"

    def test_a_future_instant_costs_its_cell_and_moves_no_row(self, tmp_path: Path) -> None:
        def ahead(row: dict[str, Any], by: timedelta) -> dict[str, Any]:
            return row | {"last_quote": row["last_quote"] | {"last_updated": to_ns(MOMENT + by)}}

        rows = [item(*terms) for terms in BOARD] + [item("NDXP", DAYS[0], "C", 1000.0 + n) for n in range(90)]
        rows[0] = ahead(rows[0], timedelta(days=83))
        rows[1] = ahead(rows[1], timedelta(minutes=4))  # our clock may be late
        with serve(lambda asked: Answer(page(rows))) as server:
            answer, _ = self.ask(server, tmp_path)
        assert answer.outcome is Outcome.OK
        assert answer.dropped == {"future_instant": 1}
        assert answer.frame["quote_ts"].null_count() == 1
        assert set(answer.frame["as_of"]) == {MOMENT + timedelta(minutes=4)}
        assert answer.frame["bid"].null_count() == 0

    def test_rows_that_were_not_asked_for_are_left_out_and_counted(self, tmp_path: Path) -> None:
        def respond(asked: Asked) -> Answer:
            if asked.query.get("cursor") != "5":
                return healthy(asked)
            rows = [item(*terms) for terms in BOARD[5:10]] + [item("NDXP", LATER, "C", 21700.0)]
            return Answer(page(rows, next_url=f"{asked.path}?cursor=10"))

        with serve(respond) as server:
            answer, _ = self.ask(server, tmp_path)
        assert answer.outcome is Outcome.OK
        assert set(answer.series) == {"NDXP-2025-06-11", "NDXP-2025-06-12"}
        assert answer.frame.height == len(BOARD)
        assert answer.dropped == {"other_series": 1}

    def test_an_answer_of_other_contracts_is_empty_and_not_cached(self, tmp_path: Path) -> None:
        with self.vendor("only_other_days") as server:
            answer, _ = self.ask(server, tmp_path)
            self.ask(server, tmp_path)
            assert len(server.asked) == 2
        assert "1 other contracts" in answer.reason

    def test_a_cut_spoils_the_last_expiration_only(self, tmp_path: Path) -> None:
        def respond(asked: Asked) -> Answer:
            return Answer(status=500) if asked.query.get("cursor") == "10" else healthy(asked)

        with serve(respond) as server:
            answer, _ = self.ask(server, tmp_path)
        assert answer.frame.height == 10
        assert answer.series["NDXP-2025-06-11"].outcome is Outcome.OK
        assert answer.series["NDXP-2025-06-12"].outcome is Outcome.PARTIAL

    def test_a_server_of_recorded_contracts_gives_rows(self, shared: Path, tmp_path: Path) -> None:
        body = (shared / "polygon/reference_options_contracts_NDX_20250610.json").read_bytes()

        def respond(asked: Asked) -> Answer:
            return Answer(body) if asked.path == REFERENCE.path else Answer(status=404, body=b"Not Found")

        with serve(respond) as server:
            source = self.source(self.settings(server))
            wanted = replace(self.request(), series=(Series("NQ", date(2029, 12, 21)),))
            answer = source.ask(wanted, self.session(source, tmp_path))
        assert answer.outcome is Outcome.PARTIAL
        assert answer.frame["vendor_symbol"].to_list() == [r["ticker"] for r in orjson.loads(body)["results"]]
        assert set(answer.series) == {"NDX-2029-12-21"}
        assert answer.dropped == {"duplicate": 10}  # its second page is the first again
        assert len(server.asked) == 3

    def test_one_underlying_that_fails_does_not_cost_the_other(self, tmp_path: Path) -> None:
        def respond(asked: Asked) -> Answer:
            if asked.path.endswith("/QQQ"):
                return Answer(page([item("QQQ", DAYS[0], "C", 530.0)]))
            return Answer(b"[]")

        with serve(respond) as server:
            source = Polygon(self.settings(server).with_values(polygon_underlyings=("NDX", "QQQ")))
            answer = source.ask(self.request(), self.session(source, tmp_path))
        assert answer.outcome is Outcome.PARTIAL
        assert set(answer.series) == {"QQQ-2025-06-11"}
        assert set(answer.frame["underlying_class"]) == {"etf"}

    def test_a_control_of_one_underlying_is_not_hidden_by_the_other(self, tmp_path: Path) -> None:
        def respond(asked: Asked) -> Answer:
            if asked.path.endswith("/QQQ"):
                return Answer(page([item("QQQ", DAYS[0], "C", 530.0)]))
            odd = item(*BOARD[0])
            odd = odd | {"details": odd["details"] | {"strike_price": 9}}
            return Answer(page([odd, *(item(*terms) for terms in BOARD)]))

        with serve(respond) as server:
            source = Polygon(self.settings(server).with_values(polygon_underlyings=("NDX", "QQQ")))
            answer = source.ask(self.request(), self.session(source, tmp_path))
        assert answer.dropped == {"contradictory_row": 1}
        assert answer.controls == {"terms_agree_with_ticker": False}

    def test_prices_of_an_underlying_not_requested_are_not_called_refused(self, tmp_path: Path) -> None:
        def respond(asked: Asked) -> Answer:
            return Answer(status=429) if "cursor" in asked.query else listed_in_pages(asked)

        def listed_in_pages(asked: Asked) -> Answer:
            if asked.path != REFERENCE.path:
                return listed(asked)
            return Answer(page([contract(*BOARD[0])], next_url=f"{asked.path}?cursor=1"))

        with serve(respond) as server:
            source = Polygon(self.settings(server).with_values(polygon_underlyings=("NDX", "QQQ")))
            answer = source.ask(self.request(), self.session(source, tmp_path))
        assert answer.outcome is Outcome.PARTIAL
        assert set(answer.refused) == {"NDX"}

    def test_a_refused_key_is_not_sent_for_the_next_underlying(self, tmp_path: Path) -> None:
        with self.vendor("http_401") as server:
            source = Polygon(self.settings(server).with_values(polygon_underlyings=("NDX", "QQQ")))
            source.ask(self.request(), self.session(source, tmp_path))
        assert len(server.asked) == 1

    def test_without_a_key_nobody_is_asked(self, tmp_path: Path) -> None:
        with self.vendor() as server:
            source = Polygon(load(environment="live", polygon_url=server.url))
            answer = source.ask(self.request(), self.session(source, tmp_path))
            assert not server.asked
        assert answer.outcome is Outcome.NOT_CONFIGURED
        assert "POLYGON_API_KEY" in answer.reason

    @pytest.mark.parametrize(
        ("respond", "entitled", "reachable"),
        [
            (healthy, True, True),
            (listed, False, True),
            (lambda asked: Answer(hang_up=True), None, False),
            (lambda asked: Answer(status=429), None, True),
        ],
    )
    def test_the_probe_tells_the_states_apart(
        self, respond: Any, entitled: bool | None, reachable: bool, tmp_path: Path
    ) -> None:
        with serve(respond) as server:
            source = Polygon(self.settings(server))
            probe = probe_source(source, self.session(source, tmp_path))
        assert (probe.configured, probe.reachable, probe.entitled) == (True, reachable, entitled)
        assert bool(probe.remedy) != (entitled is True)

    def test_prices_are_as_of_the_delayed_moment(self, tmp_path: Path) -> None:
        with self.vendor() as server:
            answer, _ = self.ask(server, tmp_path)
        assert set(answer.frame["as_of"]) == {NOON}
        assert set(answer.frame["snapshot_ts"]) == {MOMENT}


def test_the_free_plans_limit_holds_only_in_live() -> None:
    assert Polygon(load(environment="live")).policy.per_minute == 5
    assert Polygon(load(environment="sandbox")).policy.per_minute == 0
    assert Polygon(load(environment="live", polygon_rpm=0)).policy.per_minute == 0
