"""Tradovate keeps the contract of sources, over real sockets, and promises of its own."""

from __future__ import annotations

import json
import time
from datetime import timedelta
from pathlib import Path

import pytest
from websockets.sync.server import ServerConnection

from nq_pipeline.outcome import Outcome
from nq_pipeline.sources.tradovate import websocket
from nq_pipeline.sources.tradovate.source import Tradovate
from nq_pipeline.verify.doctor import probe_source
from nq_pipeline_tests.testing import tradovate_server
from nq_pipeline_tests.testing.http_server import Answer, Asked, serve
from nq_pipeline_tests.testing.served import free_port
from nq_pipeline_tests.testing.source_contract import MARK
from nq_pipeline_tests.testing.tradovate_contract import AHEAD, TICKET, TradovateContract, says_nothing
from nq_pipeline_tests.testing.tradovate_server import QUOTED_AT, as_json, quote, send


class TestTradovateContract(TradovateContract):
    # Quotes

    def test_rows_hold_what_the_feed_said(self, tmp_path: Path) -> None:
        with self.vendor() as server:
            answer, _ = self.ask(server, tmp_path)
        row = answer.frame.row(0, named=True)
        assert (row["contract_key"], row["raw_symbol"]) == ("Q2C-2025-06-11-C-21600", "Q2CM5 C21600")
        assert (row["underlying"], row["underlying_price"], row["multiplier"]) == ("NQM5", 21710.25, 20.0)
        assert (row["bid"], row["bid_size"], row["ask"], row["ask_size"]) == (99.5, 3, 100.5, 4)
        assert (row["last"], row["settlement"], row["is_settlement"]) == (100.25, 98.0, False)
        assert row["settlement_date"] is None, "the feed does not say"
        assert (row["volume"], row["open_interest"]) == (12, 345)
        assert row["quote_ts"] == row["as_of"] == QUOTED_AT
        assert answer.controls == {"value_per_point_is_multiplier": True, "maturity_is_expiration": True}

    def test_subscriptions_start_at_the_money_of_every_series(self, tmp_path: Path) -> None:
        with self.both() as (server, feed):
            answer, _ = self.asked_with(server, tmp_path, tradovate_max_quotes=9)
        future, *options = feed.subscribed
        assert future == 900
        assert len(options) == 8
        quoted = answer.frame.filter(answer.frame["bid"].is_not_null())
        assert sorted(quoted["strike"].unique()) == [21700, 21750]
        assert quoted.group_by("series").len()["len"].to_list() == [4, 4]
        assert answer.frame.height == 20
        assert {one.outcome for one in answer.series.values()} == {Outcome.PARTIAL}
        assert "4 of 10 contracts" in answer.reason

    def test_a_feed_that_goes_away_costs_what_was_not_quoted_yet(self, tmp_path: Path) -> None:
        with self.vendor("feed_goes_away") as server:
            answer, session = self.ask(server, tmp_path)
        assert 0 < answer.frame["bid"].count() < answer.frame.height == 20
        assert "cut short" in answer.reason
        assert session.fetches[-1].outcome is not Outcome.OK

    def test_the_deadline_keeps_the_quotes_that_came(self, tmp_path: Path) -> None:
        def out_of_time(connection: ServerConnection, endpoint: str, number: int, body: str) -> bool:
            if endpoint == "authorize" or number <= 6:
                return False
            if session.deadline:
                time.sleep(1)  # by now the first six quotes have been read
                session.deadline = 0.0
            return True

        with self.both(out_of_time) as (server, _):
            source = Tradovate(self.settings(server, tradovate_quote_wait_s=8.0, http_timeout_s=600.0))
            session = self.session(source, tmp_path)
            answer = source.ask(self.request(), session)
        assert answer.outcome is Outcome.PARTIAL
        assert 0 < answer.frame["bid"].count() < answer.frame.height
        assert "time allowed" in answer.reason

    def test_a_feed_that_answers_slowly_is_heard_to_the_end(self, tmp_path: Path) -> None:
        def takes_its_time(connection: ServerConnection, endpoint: str, number: int, body: str) -> bool:
            # The first takes longer than quotes are waited for, all of them longer than one may.
            time.sleep(0.6 if number == 2 else 0.09)
            return False

        with self.both(takes_its_time) as (server, _):
            answer, _ = self.asked_with(server, tmp_path, tradovate_quote_wait_s=0.2, http_timeout_s=2.0)
        assert answer.outcome is Outcome.OK, answer.reason
        assert answer.frame["bid"].null_count() == 0

    @pytest.mark.parametrize(
        ("first", "outcome", "rows"), [(6, Outcome.PARTIAL, 20), (1, Outcome.UNAVAILABLE, 0)]
    )
    def test_unanswered_subscriptions_are_reported(
        self, tmp_path: Path, first: int, outcome: Outcome, rows: int
    ) -> None:
        def falls_silent(connection: ServerConnection, endpoint: str, number: int, body: str) -> bool:
            return endpoint != "authorize" and number > first

        with self.both(falls_silent) as (server, _):
            answer, session = self.asked_with(server, tmp_path, http_timeout_s=1.0)
        assert (answer.outcome, answer.frame.height) == (outcome, rows)
        assert "unanswered" in answer.reason
        assert session.fetches[-1].outcome is Outcome.UNAVAILABLE

    @pytest.mark.parametrize(
        ("status", "outcome"),
        [
            (401, Outcome.NOT_ENTITLED),
            (403, Outcome.BLOCKED),
            (423, Outcome.RATE_LIMITED),
            (429, Outcome.RATE_LIMITED),
            (200, Outcome.UNAVAILABLE),
            (503, Outcome.UNAVAILABLE),
        ],
    )
    def test_a_refused_handshake_has_the_outcome_of_its_status(
        self, status: int, outcome: Outcome, tmp_path: Path
    ) -> None:
        with self.vendor() as server, serve(lambda asked: Answer(status=status)) as refusing:
            self.feed_url = refusing.url.replace("http", "ws")
            answer, _ = self.ask(server, tmp_path)
        assert answer.outcome is outcome and f"HTTP {status}" in answer.reason

    def test_an_address_without_a_websocket_names_its_setting(self, tmp_path: Path) -> None:
        with self.vendor() as server:
            self.feed_url = f"ws://127.0.0.1:{free_port()}"
            answer, _ = self.ask(server, tmp_path)
        assert answer.outcome is Outcome.UNAVAILABLE and "NQ_TRADOVATE_MD_URL" in answer.reason

    def test_more_quotes_than_are_kept_are_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(websocket, "MAX_TRANSCRIPT_BYTES", 500)
        with self.vendor() as server:
            answer, _ = self.ask(server, tmp_path)
        assert answer.outcome is Outcome.BAD_PAYLOAD and "were refused" in answer.reason

    def test_one_refused_subscription_is_reported(self, tmp_path: Path) -> None:
        def refuse_one(connection: ServerConnection, endpoint: str, number: int, body: str) -> bool:
            if endpoint == "authorize" or json.loads(body)["symbol"] != 10_000:
                return False
            send(connection, {"s": 200, "i": number, "d": {"errorText": "Symbol is inaccessible"}})
            return True

        with self.both(refuse_one) as (server, _):
            answer, _ = self.ask(server, tmp_path)
        assert answer.series["Q2C-2025-06-11"].outcome is Outcome.PARTIAL
        assert "1 of 10 subscriptions were refused" in answer.series["Q2C-2025-06-11"].reason
        assert answer.series["Q2D-2025-06-12"].outcome is Outcome.OK

    def test_heartbeats_are_sent_while_it_listens(self, tmp_path: Path) -> None:
        with self.both(says_nothing) as (server, feed):
            self.asked_with(server, tmp_path, tradovate_heartbeat_s=0.001)
        assert feed.frames.count("[]") >= 2

    def test_garbage_between_quotes_is_counted_and_harmless(self, tmp_path: Path) -> None:
        with self.vendor("feed_babbles") as server:
            answer, _ = self.ask(server, tmp_path)
        assert answer.frame["bid"].null_count() == 0
        assert answer.dropped == {"malformed_frame": 42, "malformed_message": 42}

    def test_quotes_of_the_future_or_other_contracts_are_counted(self, tmp_path: Path) -> None:
        def odd(connection: ServerConnection, endpoint: str, number: int, body: str) -> bool:
            if number == 3:
                contract_id = json.loads(body)["symbol"]
                send(connection, quote(contract_id), quote(contract_id, at=AHEAD), quote(77, at=AHEAD))
            return False

        with self.both(odd) as (server, _):
            answer, _ = self.ask(server, tmp_path)
        assert answer.dropped == {"future_instant": 1, "other_series": 1}
        assert set(answer.frame["as_of"]) == set(answer.frame["quote_ts"]) == {QUOTED_AT}
        assert answer.frame["bid"].null_count() == 0

    def test_an_empty_listing_is_not_cached_for_the_day(self, tmp_path: Path) -> None:
        with self.vendor("no_contracts") as server:
            self.ask(server, tmp_path)
            asked = len(server.asked)
            self.ask(server, tmp_path)
            assert [again.path for again in server.asked[asked:]] == ["/contract/deps"] * 2

    # Login

    def test_the_token_stays_in_memory_for_the_next_run(self, tmp_path: Path) -> None:
        with self.vendor() as server:
            self.ask(server, tmp_path / "one")
            self.ask(server, tmp_path / "two")
            assert [asked.path for asked in server.asked if "/auth/" in asked.path] == [
                "/auth/accesstokenrequest"
            ]

    def test_an_expiring_token_is_renewed_or_else_replaced(self, tmp_path: Path) -> None:
        life, renews = timedelta(minutes=5), True

        def respond(asked: Asked) -> Answer:
            if asked.path == "/auth/renewaccesstoken" and not renews:
                return Answer(status=404, body=b"")
            return tradovate_server.rest(asked, life=life, secret=MARK)

        with tradovate_server.feed(secret=MARK) as feed, serve(respond) as server:
            self.feed_url = feed.url
            self.ask(server, tmp_path / "one")
            self.ask(server, tmp_path / "two")
            renews = False
            answer, _ = self.ask(server, tmp_path / "three")
            paths = [asked.path for asked in server.asked if "/auth/" in asked.path]
        login, renewal = "/auth/accesstokenrequest", "/auth/renewaccesstoken"
        assert paths == [login, renewal, renewal, login]
        assert answer.outcome is Outcome.OK

    def test_a_token_that_was_revoked_is_replaced_once(self, tmp_path: Path) -> None:
        secret = f"{MARK}-1"
        with tradovate_server.feed(secret=f"{MARK}-2") as feed:
            self.feed_url = feed.url
            with serve(lambda asked: tradovate_server.rest(asked, secret=secret)) as server:
                self.ask(server, tmp_path / "one")
                secret = f"{MARK}-2"
                answer, _ = self.ask(server, tmp_path / "two")
                logins = sum("/auth/" in asked.path for asked in server.asked)
        assert answer.outcome is Outcome.OK
        assert logins == 2

    def test_a_short_penalty_is_waited_out_and_the_ticket_sent(self, tmp_path: Path) -> None:
        def respond(asked: Asked) -> Answer:
            if "/auth/" in asked.path and b"ticket-1" not in asked.body:
                return as_json(TICKET)
            return self.answer(asked)

        with tradovate_server.feed(secret=MARK) as feed, serve(respond) as server:
            self.feed_url = feed.url
            answer, _ = self.ask(server, tmp_path)
            bodies = [json.loads(asked.body) for asked in server.asked if "/auth/" in asked.path]
        assert answer.outcome is Outcome.OK
        assert [body.get("p-ticket") for body in bodies] == [None, "ticket-1"]
        assert {body["name"] for body in bodies} == {self.user}

    def test_a_failed_login_is_not_tried_again_for_every_series(self, tmp_path: Path) -> None:
        with self.vendor("wrong_password") as server:
            self.ask(server, tmp_path)
        assert len(server.asked) == 1

    @pytest.mark.parametrize("missing", ["username", "password", "cid", "sec"])
    def test_a_missing_credential_is_named_and_nobody_is_asked(self, missing: str, tmp_path: Path) -> None:
        with self.vendor() as server:
            settings = self.settings(server).with_values(**{f"tradovate_{missing}": None})
            source = Tradovate(settings)
            answer = source.ask(self.request(), self.session(source, tmp_path))
            assert not server.asked
        assert answer.outcome is Outcome.NOT_CONFIGURED
        assert f"TRADOVATE_{missing.upper()}" in answer.reason

    # Doctor

    @pytest.mark.parametrize(
        ("trouble", "configured", "reachable", "entitled"),
        [
            (None, True, True, True),
            ("wrong_password", False, None, None),
            ("hang_up", True, False, None),
            ("feed_refuses_login", True, True, False),
            ("captcha_ticket", True, True, None),
        ],
    )
    def test_the_probe_tells_the_states_apart(
        self,
        trouble: str | None,
        configured: bool,
        reachable: bool | None,
        entitled: bool | None,
        tmp_path: Path,
    ) -> None:
        with self.vendor(trouble) as server:
            source = Tradovate(self.settings(server, now="2025-06-10T15:00:00Z"))
            probe = probe_source(source, self.session(source, tmp_path))
        assert (probe.configured, probe.reachable, probe.entitled) == (configured, reachable, entitled)
        assert bool(probe.remedy) != (entitled is True)
