"""Databento's chains: the contract every source keeps, what is asked and paid, and how answers join."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from urllib.parse import parse_qsl

import databento_dbn
import numpy as np
import orjson
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from pydantic import SecretStr

from nq_pipeline.clock import NS_PER_S, to_ns
from nq_pipeline.configuration import load
from nq_pipeline.dbn.layout import RTYPES, UNDEF_PRICE, record_layout
from nq_pipeline.dbn.stream import decode
from nq_pipeline.errors import BadPayload
from nq_pipeline.market import sessions
from nq_pipeline.market.contracts import Series
from nq_pipeline.outcome import Outcome
from nq_pipeline.sandbox.synthetic.market import market
from nq_pipeline.settings import Settings
from nq_pipeline.sources.base import ChainRequest, Source
from nq_pipeline.sources.databento.parse import Parsed, parse_chain
from nq_pipeline.sources.databento.query import Price
from nq_pipeline.sources.databento.query_plan import (
    DEFINITION,
    QUOTES,
    SCHEMAS,
    STATISTICS,
    TRADES,
    QueryPlan,
    plan_queries,
)
from nq_pipeline.sources.databento.source import Databento
from nq_pipeline.spend.ledger import open_ledger
from nq_pipeline.spend.tables import Kind
from nq_pipeline.transport.lifetime import Lifetime
from nq_pipeline_tests.testing import standin
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
        "http_404": Outcome.UNAVAILABLE,
        "http_419": Outcome.UNAVAILABLE,
        "http_429": Outcome.RATE_LIMITED,
        "http_500": Outcome.UNAVAILABLE,
        "redirect": Outcome.UNAVAILABLE,
        "hang_up": Outcome.UNAVAILABLE,
        "truncated": Outcome.BAD_PAYLOAD,
        "html": Outcome.BAD_PAYLOAD,
        "empty_body": Outcome.BAD_PAYLOAD,
        "half_json": Outcome.BAD_PAYLOAD,
        "json_number": Outcome.BAD_PAYLOAD,
        "json_list_of_numbers": Outcome.BAD_PAYLOAD,
        "json_null": Outcome.BAD_PAYLOAD,
        "not_utf8": Outcome.BAD_PAYLOAD,
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

    def test_only_the_roots_asked_about_are_asked_for_and_within_the_window(self, tmp_path: Path) -> None:
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

    def test_every_price_is_asked_before_anything_is_bought_and_recorded_with_it(
        self, tmp_path: Path
    ) -> None:
        with self.vendor() as server:
            _, exchange = self.ask(server, tmp_path)
            paths = [one.path for one in server.asked]
        priced, bought = paths[: paths.index(STREAM)], paths[paths.index(STREAM) :]
        assert Counter(priced) == Counter(
            {"/v0/metadata.get_dataset_range": 1, COST: 4, SIZE: 4, "/v0/metadata.list_unit_prices": 1}
        )
        assert bought == [STREAM] * 4
        costs = {fetch.operation: fetch.cost_usd for fetch in exchange.fetches}
        assert costs.pop("plan") == 0
        assert set(costs) == set(SCHEMAS) and all(cost > 0 for cost in costs.values())

    def test_what_came_is_committed_at_the_price_of_its_bytes_and_nothing_stays_reserved(
        self, tmp_path: Path
    ) -> None:
        with self.vendor() as server:
            settings = self.settings(server)
            _, exchange = self.ask(server, tmp_path)
        ledger = open_ledger(settings)
        committed = [line for line in ledger.lines() if line.kind == Kind.COMMITTED]
        assert [line.schema for line in committed] == list(SCHEMAS)
        assert {line.purpose for line in committed} == {"chains"}
        by_request = {line.request_id: line.spent_usd for line in committed}
        assert by_request.keys() == {fetch.request_id for fetch in exchange.fetches[1:]}
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
    def test_what_failed_stays_reserved_unless_it_was_refused(
        self, broken: str, open_schemas: list[str], attempts: int, tmp_path: Path
    ) -> None:
        with self.vendor(broken) as server:
            settings = self.settings(server).with_values(http_attempts=attempts)
            source = self.source(settings)
            exchange = self.exchange(source, tmp_path)
            source.ask(self.request(), exchange)
        held = open_ledger(settings).open_reservations()
        assert [reservation.charge.schema for reservation in held] == open_schemas
        told = {fetch.operation: fetch.cost_usd for fetch in exchange.fetches}
        for schema in set(open_schemas):
            assert told[schema] == sum(one.reserved_usd for one in held if one.charge.schema == schema)

    def test_with_no_budget_nothing_metered_is_asked_and_the_sentence_says_why(self, tmp_path: Path) -> None:
        with self.vendor() as server:
            settings = self.settings(server).with_values(budget_daily_usd=Decimal(0))
            source = self.source(settings)
            answer = source.ask(self.request(), self.exchange(source, tmp_path))
            assert STREAM not in {one.path for one in server.asked}
        assert answer.outcome is Outcome.OVER_BUDGET
        assert "NQ_BUDGET_DAILY_USD" in answer.reason and "bbo-1m" in answer.reason
        (refused,) = (line for line in open_ledger(settings).lines() if line.kind == Kind.REFUSED)
        assert refused.reason == answer.reason

    def test_a_ledger_that_cannot_be_used_means_that_nothing_metered_is_asked(self, tmp_path: Path) -> None:
        with self.vendor() as server:
            settings = self.settings(server).with_values(ledger_url=SecretStr("mysql://127.0.0.1/x"))
            source = self.source(settings)
            answer = source.ask(self.request(), self.exchange(source, tmp_path))
            assert STREAM not in {one.path for one in server.asked}
        assert answer.outcome is Outcome.UNAVAILABLE

    def test_what_is_too_dear_is_not_bought(self, tmp_path: Path) -> None:
        with self.vendor("price_too_high") as server:
            answer, _ = self.ask(server, tmp_path)
            assert STREAM not in {one.path for one in server.asked}
        assert "NQ_BUDGET_DAILY_USD" in answer.reason and "bbo-1m $0.90" in answer.reason

    def test_a_failed_answer_stops_the_buying_where_nothing_else_would_help(self, tmp_path: Path) -> None:
        for fault, bought in {"definitions_half": 1, "quotes_not_entitled": 2, "quotes_are_html": 4}.items():
            with self.vendor(fault) as server:
                self.ask(server, tmp_path / fault)
                assert [one.path for one in server.asked].count(STREAM) == bought

    def test_rows_already_got_are_kept_and_say_what_is_missing(self, tmp_path: Path) -> None:
        with self.vendor("trades_rate_limited") as server:
            answer, _ = self.ask(server, tmp_path / "trades")
        assert {one.outcome for one in answer.series.values()} == {Outcome.PARTIAL}
        assert "trades: too many requests" in answer.reason
        assert answer.frame["volume"].null_count() == answer.frame.height
        assert answer.frame["bid"].count() and answer.frame["open_interest"].count()
        with self.vendor("quotes_are_html") as server:
            answer, exchange = self.ask(server, tmp_path / "quotes")
        assert answer.frame["ask"].count() == 0 and answer.frame["settlement"].count()
        rejected = next(fetch for fetch in exchange.fetches if fetch.operation == QUOTES)
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
        assert answer.controls == {"ids_resolve": False}

    def test_trades_that_were_lost_make_the_chain_partial_and_are_counted(self, tmp_path: Path) -> None:
        with self.vendor("nonsense_among_the_trades") as server:
            answer, _ = self.ask(server, tmp_path)
        lost = sum(answer.dropped[kind] for kind in ("unknown_id", "undefined_time", "malformed_trade"))
        assert re.fullmatch(rf"{lost} of \d+ records of trades could not be used", answer.reason)

    def test_stale_rows_are_kept_without_the_volume_of_another_session(self, tmp_path: Path) -> None:
        with self.vendor("ten_days_behind") as server:
            answer, _ = self.ask(server, tmp_path)
        assert answer.frame["quote_ts"].max() == datetime(2025, 5, 30, 21, tzinfo=UTC)
        assert answer.frame["volume"].null_count() == answer.frame.height > 0
        assert "Fri 2025-05-30 16:00 CT" in answer.reason

    def test_definitions_are_kept_for_the_trade_date_and_the_rest_for_minutes(self, tmp_path: Path) -> None:
        with self.vendor() as server:
            source = self.source(self.settings(server))
            for _ in range(2):
                exchange = self.exchange(source, tmp_path)
                exchange.lifetime = Lifetime(exchange.clock, open_s=0, closed_s=0)
                source.ask(self.request(), exchange)
        assert {fetch.operation: fetch.cache for fetch in exchange.fetches} == {
            "plan": "miss", DEFINITION: "hit", QUOTES: "miss", STATISTICS: "miss", TRADES: "miss",
        }  # fmt: skip
        assert next(fetch.cost_usd for fetch in exchange.fetches if fetch.operation == DEFINITION) == 0

    def test_definitions_of_nothing_are_asked_again(self, tmp_path: Path) -> None:
        with self.vendor("no_records") as server:
            for _ in range(2):
                _, exchange = self.ask(server, tmp_path)
        fetch = next(fetch for fetch in exchange.fetches if fetch.operation == DEFINITION)
        assert (fetch.outcome, fetch.cache) == (Outcome.EMPTY, "miss")

    def test_now_is_one_question_for_minutes_and_another_moment_is_another(self, tmp_path: Path) -> None:
        minute = timedelta(minutes=1)
        with self.vendor() as server:
            source, now = self.source(self.settings(server)), self.request()

            def asked(request: ChainRequest) -> int:
                before = len(server.asked)
                source.ask(request, self.exchange(source, tmp_path))
                return len(server.asked) - before

            assert asked(now) > 0
            assert asked(replace(now, moment=MOMENT + minute, snapshot_ts=MOMENT + minute)) == 0
            earlier = replace(now, moment=MOMENT - minute)
            assert asked(earlier) > 0
            assert asked(earlier) == 0

    def test_data_that_end_earlier_than_said_are_asked_up_to_there(self, tmp_path: Path) -> None:
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

    def test_a_wall_that_only_the_data_show_shortens_the_question(self, tmp_path: Path) -> None:
        until = MOMENT - timedelta(minutes=5)

        def respond(asked: Asked) -> Answer:
            if asked.path == STREAM and int(form(asked)["end"]) > to_ns(until):
                return refused("data_end_after_available_end", available_end=f"{until:%Y-%m-%dT%H:%M:%S}Z")
            return standin.relay(asked)

        with serve(respond) as server:
            answer, _ = self.ask(server, tmp_path)
        assert answer.outcome is Outcome.OK, answer.reason
        assert answer.frame["as_of"].unique().to_list() == [until]

    def test_a_series_that_is_not_defined_is_empty_and_costs_the_others_nothing(self, tmp_path: Path) -> None:
        unlisted = Series("Q5A", date(2025, 6, 30))  # the last trade date of the month has QNE instead
        with self.vendor() as server:
            source = self.source(self.settings(server))
            request = replace(self.request(), series=(*self.series, unlisted))
            answer = source.ask(request, self.exchange(source, tmp_path))
        assert answer.outcome is Outcome.OK
        assert answer.series[unlisted.key].outcome is Outcome.EMPTY
        assert {answer.series[one.key].outcome for one in self.series} == {Outcome.OK}

    def test_a_proxy_series_is_not_asked_for(self, tmp_path: Path) -> None:
        with self.vendor() as server:
            source = self.source(self.settings(server))
            request = replace(self.request(), series=(Series("NDX", date(2025, 6, 20)),))
            answer = source.ask(request, self.exchange(source, tmp_path))
            assert not server.asked
        assert answer.outcome is Outcome.EMPTY

    def test_without_a_key_nobody_is_asked(self, tmp_path: Path) -> None:
        with self.vendor() as server:
            source = Databento(load(environment="live", databento_url=server.url))
            answer = source.ask(self.request(), self.exchange(source, tmp_path))
            assert not server.asked
            assert not source.probe(self.exchange(source, tmp_path)).configured
        assert answer.outcome is Outcome.NOT_CONFIGURED
        assert "DATABENTO_API_KEY" in answer.reason

    def test_the_probe_tells_an_accepted_key_from_a_refused_one(self, tmp_path: Path) -> None:
        for fault, entitled in ((None, True), ("http_401", None), ("http_403", None)):
            with self.vendor(fault) as server:
                source = self.source(self.settings(server))
                exchange = self.exchange(source, tmp_path / str(fault))
                if fault == "http_403":
                    with pytest.raises(Exception, match="refused"):
                        source.probe(exchange)
                    continue
                probe = source.probe(exchange)
                assert {one.path for one in server.asked} == {"/v0/metadata.get_dataset_range"}
            assert (probe.configured, probe.entitled) == (fault is None, entitled)
            assert MARK not in probe.detail
            assert probe.mend or fault is None


# Money


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
def test_questions_stay_within_one_session_and_one_day_of_definitions(
    moment: str, available: str, trades_from: str, day: str
) -> None:
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


def test_statistics_are_asked_from_the_settlement_of_the_session_before() -> None:
    at = datetime(2025, 7, 7, 15, tzinfo=UTC)  # the Monday after a short Thursday and a holiday

    def start(*roots: str) -> int:
        options = tuple(f"{root}.OPT" for root in roots)
        asked = plan_queries(at, at, to_ns(at), options, (), dataset="GLBX.MDP3", window_s=900)
        return asked[2].start

    assert start("Q2C") == to_ns(datetime(2025, 7, 3, 17, tzinfo=UTC))
    assert start("G2W", "Q2C") == start("Q2C") < start("G2W")


# How answers join


def body(
    schema: str, rows: list[Mapping[str, Any]], mappings: Mapping[str, list[tuple[str, str, int]]]
) -> bytes:
    """DBN of a few records; prices in points, instants as ISO text."""
    dtype = record_layout(schema, 3).dtype
    array = np.zeros(len(rows), dtype)
    array["length"], array["rtype"] = dtype.itemsize // 4, RTYPES[schema]
    for name, (kind, *_) in (dtype.fields or {}).items():
        if kind == np.int64:
            array[name] = UNDEF_PRICE
        elif kind == np.uint64:
            array[name] = 2**64 - 1
    for record, row in zip(array, rows, strict=True):
        for name, value in row.items():
            if isinstance(value, str) and dtype[name].kind == "u":
                value = to_ns(datetime.fromisoformat(value))
            elif dtype[name] == np.int64 and name != "quantity" and value != UNDEF_PRICE:
                value = round(value * 1e9)
            record[name] = value
    named = [
        SimpleNamespace(
            raw_symbol=symbol,
            intervals=[
                SimpleNamespace(
                    start_date=date.fromisoformat(first),
                    end_date=date.fromisoformat(until),
                    symbol=str(number),
                )
                for first, until, number in spans
            ],
        )
        for symbol, spans in mappings.items()
    ]
    parent, number = (databento_dbn.SType.from_str(name) for name in ("parent", "instrument_id"))
    asked = databento_dbn.Schema.from_str(schema)
    head = databento_dbn.Metadata("GLBX.MDP3", 0, parent, number, asked, mappings=named)
    return head.encode() + array.tobytes()


CALL, PUT, FUTURE = "Q2CM5 C21000", "Q2CM5 P21000.5", "NQM5"
DAYS = {CALL: [("2025-06-09", "2025-06-10", 7), ("2025-06-10", "2025-06-11", 11)],
        PUT: [("2025-06-09", "2025-06-10", 11), ("2025-06-10", "2025-06-11", 12)],
        FUTURE: [("2025-06-09", "2025-06-11", 13)]}  # fmt: skip
"""The put of the 9th has the id of the call on the 10th."""

OPTION: Mapping[str, Any] = {
    "asset": b"Q2C", "underlying": b"NQM5", "expiration": "2025-06-11T20:00:00Z", "unit_of_measure_qty": 20,
    "security_update_action": b"A", "user_defined_instrument": b"N", "ts_recv": "2025-06-10T00:00:00Z",
}  # fmt: skip
A_CALL: Mapping[str, Any] = {
    **OPTION,
    "instrument_id": 11,
    "raw_symbol": CALL.encode(),
    "instrument_class": b"C",
    "strike_price": 21000,
}
A_PUT: Mapping[str, Any] = {
    **OPTION,
    "instrument_id": 12,
    "raw_symbol": PUT.encode(),
    "instrument_class": b"P",
    "strike_price": 21000.5,
}
A_FUTURE: Mapping[str, Any] = {
    **OPTION,
    "instrument_id": 13,
    "raw_symbol": b"NQM5",
    "instrument_class": b"F",
    "asset": b"NQ",
}
DEFINED = [A_CALL, A_PUT, A_FUTURE]
SERIES = (Series("Q2C", date(2025, 6, 11)),)


def joined(
    definition: list[Mapping[str, Any]] = DEFINED,
    *,
    moment: datetime = MOMENT,
    **answers: list[Mapping[str, Any]],
) -> Parsed:
    bodies = {DEFINITION: definition} | {name.replace("_", "-"): rows for name, rows in answers.items()}
    records = {schema: decode(body(schema, rows, DAYS), schema) for schema, rows in bodies.items()}
    session = sessions.current_session(moment)
    asked_at = to_ns(moment + timedelta(hours=8))
    return parse_chain(records, SERIES, session=session, until=to_ns(moment) + 1, published=asked_at)


def cell(parsed: Parsed, symbol: str, column: str) -> Any:
    return parsed.frame.filter(pl.col("raw_symbol") == symbol)[column].item()


def test_the_last_word_on_a_contract_counts_and_what_cannot_be_used_is_counted() -> None:
    call, put = A_CALL, A_PUT
    parsed = joined(
        [
            *DEFINED,
            {**call, "unit_of_measure_qty": 10},
            {**put, "security_update_action": b"D"},
            {**call, "instrument_id": 14, "raw_symbol": b"UD:1V: VT 1", "instrument_class": b"T"},
            {
                **call,
                "instrument_id": 14,
                "raw_symbol": b"UD:1V: VT 1",
                "instrument_class": b"T",
                "leg_index": 1,
            },
            {**call, "instrument_id": 15, "raw_symbol": b"UD:1V: C", "user_defined_instrument": b"Y"},
            {**call, "instrument_id": 16, "raw_symbol": b"Q2CM5 C1", "strike_price": UNDEF_PRICE},
            {**call, "instrument_id": 17, "raw_symbol": b"Q2CM5 C2", "strike_price": -1},
            {**call, "instrument_id": 18, "raw_symbol": b"Q2CM5 \xff"},
            {**call, "instrument_id": 19, "raw_symbol": b"Q2CM5 C3", "expiration": "2262-01-01T00:00:00Z"},
            {**call, "instrument_id": 20, "raw_symbol": b"Q2CM5 C4", "instrument_class": b"?"},
            {**call, "instrument_id": 21, "raw_symbol": b"Q2DM5 C21000", "asset": b"Q2D"},
            {**call, "instrument_id": 22, "raw_symbol": b"Q2CM5 C21000 again"},
        ]
    )
    assert parsed.frame["raw_symbol"].to_list() == ["Q2CM5 C21000 again"]
    assert parsed.dropped == Counter(
        spread=2, deleted_definition=1, malformed_definition=5, duplicate_contract=1, other_series=1
    )


def test_a_symbol_of_the_series_with_an_expiration_of_another_is_counted() -> None:
    parsed = joined([A_CALL, A_PUT | {"expiration": "2025-06-18T20:00:00Z"}, A_FUTURE])
    assert parsed.frame["raw_symbol"].to_list() == [CALL]
    assert parsed.dropped == Counter(malformed_definition=1)


def test_an_expiration_stamped_midnight_utc_is_its_date_and_counted() -> None:
    exact = joined().frame
    dated = [one | {"expiration": "2025-06-11T00:00:00Z"} for one in (A_CALL, A_PUT)]
    day_before = A_CALL | {"instrument_id": 20, "raw_symbol": b"Q2BM5 C21000", "asset": b"Q2B"}
    parsed = joined([*dated, A_FUTURE, day_before | {"expiration": "2025-06-11T00:00:00Z"}])
    assert_frame_equal(parsed.frame, exact)
    assert parsed.dropped == Counter(expiration_without_time=2, other_series=1)


def test_definitions_alone_name_contracts_with_everything_else_null() -> None:
    frame = joined().frame
    assert frame["contract_key"].to_list() == ["Q2C-2025-06-11-C-21000", "Q2C-2025-06-11-P-21000.5"]
    for column in ("bid", "ask", "last", "settlement", "volume", "open_interest", "underlying_price"):
        assert frame[column].null_count() == 2, column
    assert frame["is_settlement"].to_list() == [False, False]


def test_a_multiplier_the_vendor_leaves_out_is_the_products() -> None:
    assert joined([{**A_CALL, "unit_of_measure_qty": UNDEF_PRICE}]).frame["multiplier"].item() == 20.0


def quote(number: int, ts_recv: str, bid: float | None, ask: float | None, **more: Any) -> Mapping[str, Any]:
    sides = {"bid_px_00": bid, "ask_px_00": ask}
    return {
        "instrument_id": number, "ts_recv": ts_recv, "bid_sz_00": 3, "ask_sz_00": 4,
        **{name: price for name, price in sides.items() if price is not None}, **more,
    }  # fmt: skip


def test_the_last_book_by_ts_recv_is_the_quote_and_its_ts_event_the_last_trade() -> None:
    older = "2025-06-06T19:00:00Z"
    parsed = joined(
        bbo_1m=[
            quote(11, "2025-06-10T14:59:00Z", 100.25, None, price=99.5, ts_event=older),
            quote(11, "2025-06-10T14:58:00Z", 1.0, 2.0, price=98.0, ts_event="2025-06-10T14:57:59Z"),
            quote(12, "2025-06-10T15:00:00Z", None, 0.05, price=7.0),
            quote(13, "2025-06-10T15:00:00Z", 21_500.25, 21_500.75),
        ]
    )
    assert cell(parsed, CALL, "bid") == 100.25 and cell(parsed, CALL, "bid_size") == 3
    assert cell(parsed, CALL, "ask") is None and cell(parsed, CALL, "ask_size") is None
    assert cell(parsed, CALL, "quote_ts") == datetime(2025, 6, 10, 14, 59, tzinfo=UTC)
    assert cell(parsed, CALL, "last") == 99.5
    assert cell(parsed, CALL, "last_ts") == datetime.fromisoformat(older)
    assert cell(parsed, PUT, "last") is None and cell(parsed, PUT, "last_ts") is None
    assert cell(parsed, PUT, "underlying_price") == 21_500.5


def test_a_future_without_two_sides_is_worth_its_last_trade() -> None:
    parsed = joined(
        bbo_1m=[
            quote(
                13, "2025-06-10T15:00:00Z", 21_500.25, None, price=21_501.0, ts_event="2025-06-10T14:59:59Z"
            )
        ]
    )
    assert cell(parsed, CALL, "underlying_price") == 21_501.0


def test_ids_mean_what_the_answer_says_for_the_day_of_the_record() -> None:
    parsed = joined(
        bbo_1m=[
            quote(11, "2025-06-09T23:59:00Z", 5.0, 6.0),  # the put's, on that day
            quote(11, "2025-06-10T00:01:00Z", 8.0, 9.0),  # the call's
            quote(7, "2025-06-10T00:02:00Z", 1.0, 2.0),  # the call's the day before, nobody's today
            quote(99, "2025-06-10T00:02:00Z", 1.0, 2.0),
            {"instrument_id": 11, "bid_px_00": 1.0},
        ]
    )
    assert (cell(parsed, PUT, "bid"), cell(parsed, CALL, "bid")) == (5.0, 8.0)
    assert parsed.dropped == Counter(unknown_id=2, undefined_time=1)
    assert parsed.controls == {"ids_resolve": False}


def test_what_is_later_than_the_question_neither_quotes_nor_trades() -> None:
    late = "2025-06-10T15:06:00Z"
    now = "2025-06-10T14:59:00Z"
    parsed = joined(
        bbo_1m=[
            quote(11, now, 8.0, 9.0, price=8.5, ts_event=late),
            quote(11, late, 1.0, 2.0),
            quote(12, "2025-09-01T00:00:00Z", 1.0, 2.0),
        ],
        trades=[
            {"instrument_id": 11, "ts_recv": now, "ts_event": now, "price": 8.25, "size": 2},
            {"instrument_id": 11, "ts_recv": now, "ts_event": late, "price": 1.0, "size": 5},
            {"instrument_id": 11, "ts_recv": late, "ts_event": now, "price": 1.0, "size": 5},
        ],
    )
    assert [cell(parsed, CALL, name) for name in ("bid", "last", "volume")] == [8.0, 8.25, 2]
    assert cell(parsed, PUT, "quote_ts") is None
    assert parsed.dropped["future_instant"] == 5


def test_a_statistic_that_cannot_be_is_not_the_newest() -> None:
    parsed = joined(
        statistics=[
            stat(9, "2025-06-10T01:00:00Z", "2025-06-09", quantity=50),
            stat(9, "2025-06-10T01:00:00Z", "2025-06-10", number=12, quantity=51),
            stat(9, "2025-06-10T02:00:00Z", "2025-09-01", quantity=1),
            stat(9, "2025-06-10T23:06:00Z", "2025-06-09", quantity=2),
            stat(6, "2025-06-10T02:00:00Z", "2025-06-10", quantity=2**62),
            stat(6, "2025-06-10T02:00:00Z", "2025-06-10", number=12, quantity=-1),
        ]
    )
    assert (cell(parsed, CALL, "open_interest"), cell(parsed, PUT, "open_interest")) == (50, 51)
    assert parsed.frame["volume"].null_count() == 2
    assert parsed.dropped == Counter(future_instant=2, malformed_cell=2)


def test_an_instrument_listed_since_the_definitions_were_kept_is_counted() -> None:
    parsed = joined([A_CALL, A_FUTURE], bbo_1m=[quote(12, "2025-06-10T15:00:00Z", 1.0, 2.0)])
    assert parsed.frame["raw_symbol"].to_list() == [CALL]
    assert parsed.dropped == Counter(undefined_instrument=1)


def stat(
    stat_type: int, ts_recv: str, ts_ref: str | None, *, number: int = 11, **more: Any
) -> Mapping[str, Any]:
    ref = {"ts_ref": f"{ts_ref}T00:00:00Z"} if ts_ref else {}
    return {
        "instrument_id": number,
        "ts_recv": ts_recv,
        "stat_type": stat_type,
        "update_action": 1,
        **ref,
        **more,
    }


def test_open_interest_is_the_last_word_on_the_newest_trade_date() -> None:
    parsed = joined(
        statistics=[
            stat(9, "2025-06-10T01:00:00Z", "2025-06-09", quantity=50),
            stat(9, "2025-06-10T14:00:00Z", "2025-06-09", quantity=51),
            stat(9, "2025-06-10T14:30:00Z", "2025-06-06", quantity=40),  # a republication
            stat(9, "2025-06-10T14:31:00Z", None, quantity=1),
            stat(9, "2025-06-10T01:00:00Z", "2025-06-09", number=12, quantity=0),
        ]
    )
    assert (cell(parsed, CALL, "open_interest"), cell(parsed, PUT, "open_interest")) == (51, 0)


def test_a_final_settlement_beats_a_later_preliminary_one_and_intraday_ones_are_none() -> None:
    parsed = joined(
        statistics=[
            stat(3, "2025-06-09T22:00:00Z", "2025-06-09", number=7, price=10.5, stat_flags=3),
            stat(3, "2025-06-09T23:00:00Z", "2025-06-09", number=7, price=10.0, stat_flags=2),
            stat(3, "2025-06-10T10:00:00Z", "2025-06-10", price=99.0, stat_flags=8),
            stat(3, "2025-06-10T10:00:00Z", "2025-06-09", number=12, price=3.0, stat_flags=1),
            stat(
                3, "2025-06-10T11:00:00Z", "2025-06-09", number=12, price=4.0, stat_flags=1, update_action=2
            ),
        ]
    )
    assert (cell(parsed, CALL, "settlement"), cell(parsed, CALL, "is_settlement")) == (10.5, True)
    assert (cell(parsed, PUT, "settlement"), cell(parsed, PUT, "is_settlement")) == (None, False)


@pytest.mark.parametrize(
    ("ts_ref", "expected"),
    [("2025-06-09", date(2025, 6, 9)), ("2025-06-10", date(2025, 6, 10)), ("2025-06-08", None), (None, None)],
)
def test_a_settlement_has_the_trade_date_its_statistic_is_of(
    ts_ref: str | None, expected: date | None
) -> None:
    told = stat(3, "2025-06-10T20:30:00Z", ts_ref, number=12, price=10.5, stat_flags=2)
    parsed = joined(statistics=[told])
    assert (cell(parsed, PUT, "settlement"), cell(parsed, PUT, "settlement_date")) == (10.5, expected)
    assert cell(parsed, CALL, "settlement_date") is None


def test_a_settlement_without_flags_is_one_that_is_not_known_to_be_final() -> None:
    told = [
        stat(3, "2025-06-09T22:00:00Z", "2025-06-09", number=7, price=10.5, stat_flags=1),
        stat(3, "2025-06-09T23:00:00Z", "2025-06-09", number=7, price=10.0, stat_flags=255),
        stat(3, "2025-06-10T10:00:00Z", "2025-06-09", number=12, price=3.0, stat_flags=255),
    ]
    parsed = joined(statistics=told)
    assert (cell(parsed, CALL, "settlement"), cell(parsed, PUT, "settlement")) == (10.5, 3.0)


def test_a_settlement_that_is_not_defined_is_null_and_no_number() -> None:
    told = stat(3, "2025-06-09T23:00:00Z", "2025-06-09", number=7, price=UNDEF_PRICE, stat_flags=1)
    parsed = joined(statistics=[told])
    assert (cell(parsed, CALL, "settlement"), cell(parsed, CALL, "is_settlement")) == (None, False)


def trade(number: int, at: str, price: float, size: int) -> Mapping[str, Any]:
    return {
        "instrument_id": number,
        "ts_event": at,
        "ts_recv": at,
        "price": price,
        "size": size,
        "action": b"T",
    }


def test_trades_of_the_session_give_last_range_and_volume_and_beat_an_older_last() -> None:
    parsed = joined(
        bbo_1m=[quote(11, "2025-06-10T14:59:00Z", 1.0, 2.0, price=1.5, ts_event="2025-06-10T13:00:00Z")],
        statistics=[stat(3, "2025-06-09T22:00:00Z", "2025-06-09", number=7, price=10.5, stat_flags=3)],
        trades=[
            trade(7, "2025-06-09T21:59:59Z", 50.0, 9),  # before the open: the session before
            trade(7, "2025-06-09T22:00:00Z", 2.0, 3),
            trade(11, "2025-06-10T14:00:00Z", 4.0, 1),
            trade(11, "2025-06-10T13:00:00Z", 1.0, 2),
            {"instrument_id": 11, "ts_recv": "2025-06-10T14:00:00Z", "size": 5},
            trade(11, "2025-06-10T14:30:00Z", 0.05, 0),
        ],
    )
    row = parsed.frame.filter(pl.col("raw_symbol") == CALL).row(0, named=True)
    assert [row[name] for name in ("last", "open", "high", "low", "volume")] == [4.0, 2.0, 4.0, 1.0, 6]
    assert row["last_ts"] == datetime(2025, 6, 10, 14, tzinfo=UTC)
    assert row["settlement"] == 10.5 and row["is_settlement"] is False
    assert cell(parsed, PUT, "volume") == 0
    assert parsed.dropped == Counter(malformed_trade=2)


def test_cleared_volume_counts_once_it_is_of_the_session_asked_about() -> None:
    trades = [trade(11, "2025-06-10T14:00:00Z", 4.0, 1)]
    before = [stat(6, "2025-06-10T01:00:00Z", "2025-06-09", quantity=70)]
    after = [*before, stat(6, "2025-06-10T22:30:00Z", "2025-06-10", quantity=80)]
    assert cell(joined(trades=trades, statistics=before), CALL, "volume") == 1
    assert cell(joined(trades=trades, statistics=after), CALL, "volume") == 80
    assert cell(joined(statistics=before), CALL, "volume") is None


def test_data_that_end_before_the_session_say_nothing_of_its_volume() -> None:
    records = {
        schema: decode(body(schema, rows, DAYS), schema)
        for schema, rows in {DEFINITION: DEFINED, TRADES: []}.items()
    }
    session = sessions.current_session(MOMENT)
    parsed = parse_chain(records, SERIES, session=session, until=to_ns(session.open))
    assert parsed.frame["volume"].null_count() == 2
