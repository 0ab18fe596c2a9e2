"""Databento's chains: the contract every source keeps, what is asked and paid, and how answers join."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qsl

import orjson
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from pydantic import SecretStr

from nq_pipeline.clock import NS_PER_S, to_ns
from nq_pipeline.configuration import load
from nq_pipeline.errors import LedgerError
from nq_pipeline.market.contracts import Series
from nq_pipeline.outcome import Outcome
from nq_pipeline.sandbox.synthetic.market import market
from nq_pipeline.settings import Settings
from nq_pipeline.sources.base import ChainRequest, Source
from nq_pipeline.sources.databento.query import DEFINITION, QUOTES, SCHEMAS, STATISTICS, TRADES
from nq_pipeline.sources.databento.source import Databento
from nq_pipeline.spend.ledger import Ledger, open_ledger
from nq_pipeline.spend.tables import Kind
from nq_pipeline.transport.lifetime import Lifetime
from nq_pipeline.verify.doctor import probe_source
from nq_pipeline_tests.testing import standin
from nq_pipeline_tests.testing.disk_limits import no_file_above
from nq_pipeline_tests.testing.http_server import Answer, Asked, Server, serve
from nq_pipeline_tests.testing.source_contract import MARK, MOMENT, SourceContract

STREAM = "/v0/timeseries.get_range"
COST = "/v0/metadata.get_cost"
SIZE = "/v0/metadata.get_billable_size"


def form(asked: Asked) -> dict[str, str]:
    return dict(parse_qsl(asked.body.decode()))


def refused(case: str, **payload: str) -> Answer:
    detail = {"case": case, "message": "words", "status_code": 422, "docs": "d", "payload": payload}
    return Answer(orjson.dumps({"detail": detail}), 422)


def on(path: str, then: Callable[[Answer], Answer], *schemas: str) -> Callable[..., Answer]:
    """A vendor that is healthy but for one kind of question."""

    def answer(contract: Any, asked: Asked) -> Answer:
        good = standin.relay(asked)
        hit = asked.path == path and (not schemas or form(asked).get("schema") in schemas)
        return then(good) if hit else good

    return answer


class TestDatabentoKeepsTheContract(SourceContract):
    outcomes: ClassVar = {
        "challenge": Outcome.BAD_PAYLOAD,
        "captcha": Outcome.UNAVAILABLE,
        "http_401": Outcome.NOT_CONFIGURED,
        "http_403": Outcome.BLOCKED,
        "http_419": Outcome.UNAVAILABLE,
        "redirect": Outcome.UNAVAILABLE,
        "error_that_is_a_list": Outcome.BAD_PAYLOAD,
        "a_day_without_a_session": Outcome.EMPTY,
        "unlicensed_window": Outcome.NOT_ENTITLED,
        "definitions_cut_off": Outcome.BAD_PAYLOAD,
        "definitions_half": Outcome.BAD_PAYLOAD,
        "quotes_are_html": Outcome.PARTIAL,
        "quotes_not_entitled": Outcome.NOT_ENTITLED,
        "statistics_cut_off": Outcome.PARTIAL,
        "trades_rate_limited": Outcome.PARTIAL,
        "no_trades": Outcome.OK,
        "nothing_quoted_or_traded": Outcome.PARTIAL,
        "ten_days_behind": Outcome.STALE,
        "nonsense_among_the_records": Outcome.PARTIAL,
        "nonsense_among_the_trades": Outcome.PARTIAL,
        "no_records": Outcome.EMPTY,
        "price_unknown": Outcome.BAD_PAYLOAD,
        "price_too_high": Outcome.OVER_BUDGET,
        "broken_before_any_data": Outcome.PARTIAL,
        "impossible_range": Outcome.BAD_PAYLOAD,
    }
    faults: ClassVar = {
        "error_that_is_a_list": lambda self, asked: Answer(b'["a", "b"]', 422),
        "a_day_without_a_session": on(COST, lambda good: refused("symbology_invalid_request")),
        "unlicensed_window": on(STREAM, lambda good: refused("dataset_unavailable_range")),
        "definitions_cut_off": on(STREAM, lambda good: replace(good, cut=True), DEFINITION),
        "definitions_half": on(
            STREAM, lambda good: replace(good, body=good.body[: len(good.body) // 2]), DEFINITION
        ),
        "quotes_are_html": on(STREAM, lambda good: Answer(b"<html>", content_type="text/html"), QUOTES),
        "quotes_not_entitled": on(STREAM, lambda good: refused("license_not_found_unauthorized"), QUOTES),
        "statistics_cut_off": on(STREAM, lambda good: replace(good, cut=True), STATISTICS),
        "trades_rate_limited": on(STREAM, lambda good: Answer(b"", 429), TRADES),
        "no_trades": on(STREAM, lambda good: refused("symbology_invalid_request"), TRADES),
        "nothing_quoted_or_traded": on(
            STREAM, lambda good: refused("symbology_invalid_request"), QUOTES, TRADES
        ),
        "ten_days_behind": lambda self, asked: standin.relay(asked, fault="stale"),
        "nonsense_among_the_records": lambda self, asked: standin.relay(asked, fault="malformed"),
        "nonsense_among_the_trades": lambda self, asked: standin.relay(
            asked, fault="malformed" if form(asked).get("schema") == TRADES else "ok"
        ),
        "no_records": lambda self, asked: standin.relay(asked, fault="empty"),
        "price_unknown": on(COST, lambda good: Answer(b'"a lot"'), TRADES),
        "price_too_high": on(COST, lambda good: Answer(b"0.9"), QUOTES),
        "broken_before_any_data": on(STREAM, lambda good: Answer(b"oops", 503), QUOTES),
        "impossible_range": on(
            "/v0/metadata.get_dataset_range",
            lambda good: Answer(b'{"start":"1999-01-01","end":"1999-12-31T00:00:00Z","schema":{}}'),
        ),
    }

    def settings(self, server: Server) -> Settings:
        return load(
            environment="live",
            databento_url=server.url,
            databento_api_key=MARK,
            budget_daily_usd="0.5",
            http_attempts=1,
        )

    def source(self, settings: Settings) -> Source:
        return Databento(settings)

    def answer(self, asked: Asked) -> Answer:
        return standin.relay(asked)

    # What only this vendor promises.

    def test_the_chain_is_the_market_cell_by_cell(self, tmp_path: Path) -> None:
        with self.vendor() as server:
            answer, _ = self.ask(server, tmp_path)
        truth = market(7).chain(MOMENT).filter(pl.col("series").is_in([s.key for s in self.series]))
        same = ["contract_key", "raw_symbol", "root", "series", "strike", "option_type", "expiration",
                "expiration_date", "settlement_style", "exercise_style", "underlying", "instrument_id",
                "settlement", "settlement_date", "open", "high", "low", "volume",
                "open_interest"]  # fmt: skip
        assert_frame_equal(
            answer.frame.select(same), truth.select(same), check_row_order=False, check_dtypes=False
        )
        both = answer.frame.join(truth, on="contract_key", suffix="_true").filter(
            pl.col("quote_ts") == MOMENT
        )
        assert both.height > 0.9 * truth["ask"].count()
        for name in ("bid", "bid_size", "ask", "ask_size"):
            assert both[name].to_list() == both[f"{name}_true"].to_list()
        traded = both.filter(pl.col("last_true").is_not_null())
        assert traded["last"].to_list() == traded["last_true"].to_list()
        assert traded["last_ts"].to_list() == traded["last_ts_true"].to_list()
        assert answer.frame["multiplier"].unique().to_list() == [20.0]
        future = market(7).futures(MOMENT).row(0, named=True)
        assert answer.frame["underlying_price"].unique().to_list() == [(future["bid"] + future["ask"]) / 2]
        assert answer.frame["as_of"].unique().to_list() == [MOMENT]

    def test_only_requested_roots_within_the_window_are_queried(self, tmp_path: Path) -> None:
        with self.vendor() as server:
            self.ask(server, tmp_path)
            asked = [form(one) for one in server.asked if one.path == STREAM]
        assert [one["schema"] for one in asked] == list(SCHEMAS)
        by = {one["schema"]: one for one in asked}
        assert {one["symbols"] for one in asked} == {"Q2C.OPT,Q2D.OPT", "Q2C.OPT,Q2D.OPT,NQ.FUT"}
        assert "NQ.FUT" in by[QUOTES]["symbols"] and "NQ.FUT" not in by[TRADES]["symbols"]
        end = to_ns(MOMENT) + 1
        assert {int(one["end"]) for one in asked} == {end}
        assert int(by[QUOTES]["start"]) == end - 900 * NS_PER_S
        assert int(by[TRADES]["start"]) == to_ns(datetime(2025, 6, 9, 22, tzinfo=UTC))
        assert int(by[DEFINITION]["start"]) == to_ns(datetime(2025, 6, 10, tzinfo=UTC))

    def test_every_query_is_priced_before_anything_is_bought(self, tmp_path: Path) -> None:
        with self.vendor() as server:
            _, session = self.ask(server, tmp_path)
            paths = [one.path for one in server.asked]
        priced, bought = paths[: paths.index(STREAM)], paths[paths.index(STREAM) :]
        assert Counter(priced) == Counter(
            {"/v0/metadata.get_dataset_range": 1, COST: 4, SIZE: 4, "/v0/metadata.list_unit_prices": 1}
        )
        assert bought == [STREAM] * 4
        costs = {fetch.operation: fetch.cost_usd for fetch in session.fetches}
        assert costs.pop("plan") == 0
        assert set(costs) == set(SCHEMAS) and all(cost > 0 for cost in costs.values())

    def test_received_bytes_are_committed_at_their_price(self, tmp_path: Path) -> None:
        with self.vendor() as server:
            settings = self.settings(server)
            _, session = self.ask(server, tmp_path)
        ledger = open_ledger(settings)
        committed = [line for line in ledger.lines() if line.kind == Kind.COMMITTED]
        assert [line.schema for line in committed] == list(SCHEMAS)
        assert {line.purpose for line in committed} == {"chains"}
        by_request = {line.request_id: line.spent_usd for line in committed}
        assert by_request.keys() == {fetch.request_id for fetch in session.fetches[1:]}
        for line in committed:
            assert line.priced_usd is not None and line.bytes is not None
            assert abs(line.spent_usd - line.priced_usd) < Decimal("1e-8")
        assert ledger.open_reservations() == []

    @pytest.mark.parametrize(
        ("broken", "open_schemas", "attempts"),
        [
            ("quotes_not_entitled", [], 1),  # refused: given back
            ("trades_rate_limited", [], 1),
            ("quotes_are_html", [QUOTES], 1),  # whatever it was, the vendor may bill it
            ("statistics_cut_off", [STATISTICS], 1),
            ("broken_before_any_data", [QUOTES] * 2, 2),  # each attempt has a reservation of its own
        ],
    )
    def test_a_failed_request_stays_reserved_unless_refused(
        self, broken: str, open_schemas: list[str], attempts: int, tmp_path: Path
    ) -> None:
        with self.vendor(broken) as server:
            settings = self.settings(server).with_values(http_attempts=attempts)
            source = self.source(settings)
            session = self.session(source, tmp_path)
            source.ask(self.request(), session)
        held = open_ledger(settings).open_reservations()
        assert [reservation.charge.schema for reservation in held] == open_schemas
        costs = {fetch.operation: fetch.cost_usd for fetch in session.fetches}
        for schema in set(open_schemas):
            assert costs[schema] == sum(one.reserved_usd for one in held if one.charge.schema == schema)

    def test_an_answer_outlives_a_ledger_that_fails_when_it_is_paid(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise LedgerError("the database went away")

        monkeypatch.setattr(Ledger, "commit", fail)
        with self.vendor() as server:
            answer, session = self.ask(server, tmp_path)
            held = open_ledger(self.settings(server)).open_reservations()
        assert answer.outcome is Outcome.OK
        assert len(session.used) == 1 + len(SCHEMAS), "every answer is archived"
        assert [reservation.charge.schema for reservation in held] == list(SCHEMAS)

    def test_without_a_budget_nothing_is_bought(self, tmp_path: Path) -> None:
        with self.vendor() as server:
            settings = self.settings(server).with_values(budget_daily_usd=Decimal(0))
            source = self.source(settings)
            answer = source.ask(self.request(), self.session(source, tmp_path))
            assert STREAM not in {one.path for one in server.asked}
        assert answer.outcome is Outcome.OVER_BUDGET
        assert "NQ_BUDGET_DAILY_USD" in answer.reason and "bbo-1m" in answer.reason
        (refused,) = (line for line in open_ledger(settings).lines() if line.kind == Kind.REFUSED)
        assert refused.reason == answer.reason

    def test_without_room_for_the_answers_nothing_is_bought(self, tmp_path: Path) -> None:
        with self.vendor() as server:
            settings = self.settings(server)
            source, ledger = self.source(settings), open_ledger(settings)
            session = self.session(source, tmp_path)
            with no_file_above(1 << 20):  # a little less than the room for any answer
                answer = source.ask(self.request(), session)
            assert STREAM not in {one.path for one in server.asked}
        assert answer.outcome is Outcome.UNAVAILABLE and "no room" in answer.reason
        assert ledger.open_reservations() == []

    def test_without_a_usable_ledger_nothing_is_bought(self, tmp_path: Path) -> None:
        with self.vendor() as server:
            settings = self.settings(server).with_values(ledger_url=SecretStr("mysql://127.0.0.1/x"))
            source = self.source(settings)
            answer = source.ask(self.request(), self.session(source, tmp_path))
            assert STREAM not in {one.path for one in server.asked}
        assert answer.outcome is Outcome.UNAVAILABLE

    def test_what_is_too_dear_is_not_bought(self, tmp_path: Path) -> None:
        with self.vendor("price_too_high") as server:
            answer, _ = self.ask(server, tmp_path)
            assert STREAM not in {one.path for one in server.asked}
        assert "NQ_BUDGET_DAILY_USD" in answer.reason and "bbo-1m $0.90" in answer.reason

    def test_some_failures_stop_all_further_purchases(self, tmp_path: Path) -> None:
        for fault, bought in {"definitions_half": 1, "quotes_not_entitled": 2, "quotes_are_html": 4}.items():
            with self.vendor(fault) as server:
                self.ask(server, tmp_path / fault)
                assert [one.path for one in server.asked].count(STREAM) == bought

    def test_partial_chains_name_the_missing_answer(self, tmp_path: Path) -> None:
        with self.vendor("trades_rate_limited") as server:
            answer, _ = self.ask(server, tmp_path / "trades")
        assert {one.outcome for one in answer.series.values()} == {Outcome.PARTIAL}
        assert "trades: too many requests" in answer.reason
        assert answer.frame["volume"].null_count() == answer.frame.height
        assert answer.frame["bid"].count() and answer.frame["open_interest"].count()
        with self.vendor("quotes_are_html") as server:
            answer, session = self.ask(server, tmp_path / "quotes")
        assert answer.frame["ask"].count() == 0 and answer.frame["settlement"].count()
        rejected = next(fetch for fetch in session.fetches if fetch.operation == QUOTES)
        assert rejected.outcome is Outcome.BAD_PAYLOAD and rejected.raw_sha256

    def test_a_market_where_nothing_traded_has_volumes_of_zero(self, tmp_path: Path) -> None:
        with self.vendor("no_trades") as server:
            answer, _ = self.ask(server, tmp_path)
        assert answer.frame["volume"].unique().to_list() == [0]

    def test_nonsense_among_the_records_is_dropped_and_counted(self, tmp_path: Path) -> None:
        with self.vendor("nonsense_among_the_records") as server:
            answer, _ = self.ask(server, tmp_path)
        for kind in ("malformed_definition", "unknown_id", "undefined_time", "malformed_trade", "spread"):
            assert answer.dropped[kind] > 0, kind
        assert f"{answer.dropped['malformed_definition']} definitions could not be used" in answer.reason
        assert answer.controls == {"ids_resolve": False, "underlying_by_rule": True}

    def test_lost_trades_make_the_chain_partial(self, tmp_path: Path) -> None:
        with self.vendor("nonsense_among_the_trades") as server:
            answer, _ = self.ask(server, tmp_path)
        lost = sum(answer.dropped[kind] for kind in ("unknown_id", "undefined_time", "malformed_trade"))
        assert re.fullmatch(rf"{lost} of \d+ records of trades could not be used", answer.reason)

    def test_stale_rows_have_no_volume_of_another_session(self, tmp_path: Path) -> None:
        with self.vendor("ten_days_behind") as server:
            answer, _ = self.ask(server, tmp_path)
        assert answer.frame["quote_ts"].max() == datetime(2025, 5, 30, 21, tzinfo=UTC)
        assert answer.frame["volume"].null_count() == answer.frame.height > 0
        assert "Fri 2025-05-30 16:00 CT" in answer.reason

    def test_definitions_are_cached_for_the_trade_date(self, tmp_path: Path) -> None:
        with self.vendor() as server:
            source = self.source(self.settings(server))
            for _ in range(2):
                session = self.session(source, tmp_path)
                session.lifetime = Lifetime(session.clock, open_s=0, closed_s=0)
                source.ask(self.request(), session)
        assert {fetch.operation: fetch.cache for fetch in session.fetches} == {
            "plan": "miss", DEFINITION: "hit", QUOTES: "miss", STATISTICS: "miss", TRADES: "miss",
        }  # fmt: skip
        assert next(fetch.cost_usd for fetch in session.fetches if fetch.operation == DEFINITION) == 0

    def test_empty_definitions_are_not_cached(self, tmp_path: Path) -> None:
        with self.vendor("no_records") as server:
            for _ in range(2):
                _, session = self.ask(server, tmp_path)
        fetch = next(fetch for fetch in session.fetches if fetch.operation == DEFINITION)
        assert (fetch.outcome, fetch.cache) == (Outcome.EMPTY, "miss")

    def test_now_shares_one_cache_entry_for_minutes(self, tmp_path: Path) -> None:
        minute = timedelta(minutes=1)
        with self.vendor() as server:
            source, now = self.source(self.settings(server)), self.request()

            def asked(request: ChainRequest) -> int:
                before = len(server.asked)
                source.ask(request, self.session(source, tmp_path))
                return len(server.asked) - before

            assert asked(now) > 0
            assert asked(replace(now, moment=MOMENT + minute, snapshot_ts=MOMENT + minute)) == 0
            earlier = replace(now, moment=MOMENT - minute)
            assert asked(earlier) > 0
            assert asked(earlier) == 0

    def test_a_query_is_shortened_to_the_available_end(self, tmp_path: Path) -> None:
        until = MOMENT - timedelta(minutes=20)

        def respond(asked: Asked) -> Answer:
            if asked.path in (COST, STREAM) and int(form(asked)["end"]) > to_ns(until):
                return refused("data_end_after_available_end", available_end=f"{until:%Y-%m-%dT%H:%M:%S}Z")
            return standin.relay(asked)

        with serve(respond) as server:
            answer, _ = self.ask(server, tmp_path)
        assert answer.outcome is Outcome.OK, answer.reason
        assert answer.frame["as_of"].unique().to_list() == [until]
        assert answer.frame["quote_ts"].max() == until - timedelta(minutes=1)

    def test_a_limit_found_while_buying_shortens_the_query(self, tmp_path: Path) -> None:
        until = MOMENT - timedelta(minutes=5)

        def respond(asked: Asked) -> Answer:
            if asked.path == STREAM and int(form(asked)["end"]) > to_ns(until):
                return refused("data_end_after_available_end", available_end=f"{until:%Y-%m-%dT%H:%M:%S}Z")
            return standin.relay(asked)

        with serve(respond) as server:
            answer, _ = self.ask(server, tmp_path)
        assert answer.outcome is Outcome.OK, answer.reason
        assert answer.frame["as_of"].unique().to_list() == [until]

    def test_an_undefined_series_is_empty_and_others_are_not(self, tmp_path: Path) -> None:
        unlisted = Series("Q5A", date(2025, 6, 30))  # the last trade date of the month has QNE instead
        with self.vendor() as server:
            source = self.source(self.settings(server))
            request = replace(self.request(), series=(*self.series, unlisted))
            answer = source.ask(request, self.session(source, tmp_path))
        assert answer.outcome is Outcome.OK
        assert answer.series[unlisted.key].outcome is Outcome.EMPTY
        assert {answer.series[one.key].outcome for one in self.series} == {Outcome.OK}

    def test_a_proxy_series_is_not_asked_for(self, tmp_path: Path) -> None:
        with self.vendor() as server:
            source = self.source(self.settings(server))
            request = replace(self.request(), series=(Series("NDX", date(2025, 6, 20)),))
            answer = source.ask(request, self.session(source, tmp_path))
            assert not server.asked
        assert answer.outcome is Outcome.EMPTY

    def test_without_a_key_nobody_is_asked(self, tmp_path: Path) -> None:
        with self.vendor() as server:
            source = Databento(load(environment="live", databento_url=server.url))
            answer = source.ask(self.request(), self.session(source, tmp_path))
            assert not server.asked
            assert not probe_source(source, self.session(source, tmp_path)).configured
        assert answer.outcome is Outcome.NOT_CONFIGURED
        assert "DATABENTO_API_KEY" in answer.reason

    def test_the_probe_tells_accepted_keys_from_refused_ones(self, tmp_path: Path) -> None:
        for fault, entitled in ((None, True), ("http_401", None), ("http_403", None)):
            with self.vendor(fault) as server:
                source = self.source(self.settings(server))
                probe = probe_source(source, self.session(source, tmp_path / str(fault)))
                assert {one.path for one in server.asked} == {"/v0/metadata.get_dataset_range"}
            assert (probe.configured, probe.entitled) == (fault != "http_401", entitled)
            assert MARK not in probe.detail
            assert probe.remedy or fault is None


# Money
