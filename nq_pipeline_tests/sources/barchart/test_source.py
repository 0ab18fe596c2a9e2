"""Barchart: how it asks, what it makes of answers, what it takes for stale."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from nq_pipeline.clock import PinnedClock, to_ns
from nq_pipeline.configuration import load
from nq_pipeline.errors import BadPayload, SettingsError
from nq_pipeline.market import sessions
from nq_pipeline.market.contracts import Series
from nq_pipeline.outcome import Outcome
from nq_pipeline.sources.barchart.codes import series_of_code
from nq_pipeline.sources.barchart.parse import BarchartChain, parse_chain
from nq_pipeline.sources.barchart.source import FIELDS, QUOTES, Barchart
from nq_pipeline.sources.base import ChainAnswer, ChainRequest
from nq_pipeline.transport.lifetime import Lifetime
from nq_pipeline.transport.vendor_session import Scope, VendorSession
from nq_pipeline.verify.doctor import probe_source
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing import barchart_boards
from nq_pipeline_tests.testing.barchart_boards import chain, quote, settled, traded
from nq_pipeline_tests.testing.barchart_contract import healthy
from nq_pipeline_tests.testing.http_server import FAULTS, Answer, Asked, Server, serve

NOW = datetime(2025, 6, 10, 15, 0, tzinfo=UTC)
TODAY = date(2025, 6, 10)
WEDNESDAY, THURSDAY = Series("Q2C", date(2025, 6, 11)), Series("Q2D", date(2025, 6, 12))
NOT_FOUND = FAULTS["http_404"](Answer())

Respond = Callable[[Asked], Answer]


def ask(
    respond: Respond,
    folder: Path,
    *,
    series: tuple[Series, ...] = (WEDNESDAY, THURSDAY),
    codes: dict[str, str] | None = None,
    moment: datetime = NOW,
    **settings: Any,
) -> tuple[ChainAnswer, Server, VendorSession]:
    """Ask a server once, in live, with the opt-in given unless `settings` says otherwise."""
    with serve(respond) as server:
        given = {"environment": "live", "barchart_enabled": True, "barchart_spacing_s": 0}
        source = Barchart(load(barchart_url=server.url, **(given | settings)))
        request = ChainRequest(TODAY, moment, moment, series, "run-1", "live", codes or {})
        session = open_session(source, folder, moment)
        try:
            return source.ask(request, session), server, session
        finally:
            session.close()


def open_session(source: Barchart, folder: Path, moment: datetime = NOW) -> VendorSession:
    clock = PinnedClock(moment)
    return VendorSession(
        scope=Scope("barchart", "live", "run-1", TODAY, moment, source.base_url),
        policy=replace(source.policy, attempts=1),
        clock=clock,
        archive=Workspace(folder).archive,
        lifetime=Lifetime(clock, open_s=300, closed_s=1800),
        state_dir=folder / "state",
        deadline=time.monotonic() + 20,
    )


def parse(rows: list[barchart_boards.Row], **more: Any) -> BarchartChain:
    return parse_chain(chain(rows, **more), WEDNESDAY, "MC2M5", trade_date=TODAY)


def one(row: barchart_boards.Row) -> dict[str, Any]:
    return parse([row]).rows.row(0, named=True)


# ── how it asks ─────────────────────────────────────────────────────────────────────────────────


def test_a_chain_is_asked_for_as_the_page_asks(tmp_path: Path) -> None:
    _, server, _ = ask(healthy, tmp_path)
    first = server.asked[0]
    assert first.path == QUOTES
    assert first.query == {
        "symbol": "MC2M25",
        "list": "futures.options",
        "fields": FIELDS,
        "groupBy": "optionType",
        "orderBy": "strike",
        "orderDir": "asc",
        "raw": "1",
        "meta": "field.shortName,field.description,field.type",
    }
    assert first.headers["sec-fetch-site"] == "same-origin"
    assert first.headers["accept"] == "application/json"
    assert first.headers["referer"].endswith("/futures/quotes/NQM25/options/MC2M25")
    assert "cookie" not in first.headers


def test_chains_are_requested_first_then_futures_then_pages(tmp_path: Path) -> None:
    _, server, _ = ask(healthy, tmp_path)
    asked = [a.query.get("symbol") or a.query.get("symbols") or a.path for a in server.asked]
    assert asked == [
        "MC2M25",
        "MM7M25",
        "NQM25",
        "/futures/quotes/NQM25/options/MC2M25",
        "/futures/quotes/NQM25/options/MM7M25",
    ]


def test_a_page_is_asked_for_under_the_future_the_site_shows(tmp_path: Path) -> None:
    def respond(asked: Asked) -> Answer:
        if "symbol" in asked.query:
            return Answer(chain(barchart_boards.board("MC8M5")))
        return NOT_FOUND

    _, server, _ = ask(respond, tmp_path, series=(Series("Q3A", date(2025, 6, 16)),))
    assert server.asked[-1].path == "/futures/quotes/NQU25/options/MC8M25"
    assert server.asked[1].query["symbols"] == "NQM25"  # which it exercises into


def test_pages_can_be_left_out(tmp_path: Path) -> None:
    answer, server, _ = ask(healthy, tmp_path, barchart_pages=False)
    assert answer.outcome is Outcome.OK
    assert {asked.path for asked in server.asked} == {QUOTES}


def test_the_quarterly_board_is_asked_for_by_its_future(tmp_path: Path) -> None:
    quarterly = Series("NQ", date(2025, 6, 20))

    def respond(asked: Asked) -> Answer:
        if asked.query.get("symbol") == "NQM25":
            return Answer(chain(barchart_boards.board("NQM5")))
        return NOT_FOUND

    answer, server, _ = ask(respond, tmp_path, series=(quarterly,))
    assert answer.outcome is Outcome.OK
    assert answer.frame["raw_symbol"][0] == "NQM5 C21000"
    assert server.asked[0].headers["referer"].endswith("/futures/quotes/NQM25/options")


def test_a_code_the_user_gave_is_asked_for_as_given(tmp_path: Path) -> None:
    answer, server, _ = ask(healthy_any, tmp_path, series=(WEDNESDAY,), codes={WEDNESDAY.key: "MC2M5"})
    assert server.asked[0].query["symbol"] == "MC2M5"
    assert answer.outcome is Outcome.OK


def healthy_any(asked: Asked) -> Answer:
    if "symbol" in asked.query:
        return Answer(chain(barchart_boards.board("MC2M5")))
    return NOT_FOUND


def test_a_server_that_only_knows_the_chains_gives_whole_chains(tmp_path: Path) -> None:
    def respond(asked: Asked) -> Answer:
        return healthy(asked) if "symbol" in asked.query else NOT_FOUND

    answer, server, session = ask(respond, tmp_path)
    assert answer.outcome is Outcome.OK, answer.reason
    assert answer.frame.height == 12
    assert answer.frame["underlying"].unique().to_list() == ["NQM5"]
    assert answer.frame["underlying_price"].null_count() == 12
    assert [str(fetch.outcome) for fetch in session.fetches] == ["ok", "ok", "unavailable", "unavailable"]
    assert len(server.asked) == 4


def test_a_series_without_a_code_names_the_setting(tmp_path: Path) -> None:
    fifth = Series("Q5A", date(2025, 9, 29))
    answer, server, _ = ask(healthy, tmp_path, series=(fifth,))
    assert answer.outcome is Outcome.NOT_CONFIGURED
    assert "NQ_BARCHART_CODES" in answer.series[fifth.key].reason
    assert not server.asked


def test_a_code_added_in_the_settings_is_used(tmp_path: Path) -> None:
    fifth = Series("Q5A", date(2025, 9, 29))
    _, server, _ = ask(healthy_any, tmp_path, series=(fifth,), barchart_codes=("MC0=Q5A",))
    assert server.asked[0].query["symbol"] == "MC0U25"


@pytest.mark.parametrize("pair", ["MC0", "MC0=", "=Q5A", "MC0=NOPE"])
def test_a_code_setting_that_makes_no_sense_is_refused(pair: str) -> None:
    with pytest.raises(SettingsError, match="NQ_BARCHART_CODES"):
        Barchart(load(barchart_codes=(pair,)))


@pytest.mark.parametrize(("code", "key"), [("MM1N5", "Q1B-2025-07-01"), ("mm1n25", "Q1B-2025-07-01")])
def test_the_sites_own_codes_name_series(code: str, key: str) -> None:
    assert series_of_code(code, date(2025, 6, 27), load()).key == key


def test_a_code_that_is_none_of_the_sites_is_refused() -> None:
    with pytest.raises(SettingsError, match="XX1N5"):
        series_of_code("XX1N5", date(2025, 6, 27), load())


# ── opt-in and sessions ─────────────────────────────────────────────────────────────────────────


def test_in_live_nothing_is_asked_without_the_opt_in(tmp_path: Path) -> None:
    answer, server, _ = ask(healthy, tmp_path, barchart_enabled=False)
    assert answer.outcome is Outcome.NOT_CONFIGURED
    assert "NQ_BARCHART_ENABLED" in answer.reason
    assert not server.asked


def test_requests_are_spaced_in_live_and_not_in_the_sandbox() -> None:
    assert Barchart(load(environment="live")).policy.spacing_s == 1.0
    assert Barchart(load(environment="sandbox")).policy.spacing_s == 0.0


def cookies(token: str) -> dict[str, str]:
    return {"Set-Cookie": f"XSRF-TOKEN={token}%3D; Path=/\nlaravel_session=s-{token}; Path=/; HttpOnly"}


def test_a_cookie_session_sends_the_newest_token(tmp_path: Path) -> None:
    turn = iter(range(100))

    def respond(asked: Asked) -> Answer:
        return replace(healthy(asked), headers=cookies(f"t{next(turn)}"))

    answer, server, _ = ask(respond, tmp_path, barchart_session="cookies", barchart_pages=False)
    assert answer.outcome is Outcome.OK
    visit, first, second, third = server.asked
    assert visit.path == "/futures/quotes/NQM25/options/MC2M25"
    assert "text/html" in visit.headers["accept"]
    assert [a.headers["x-xsrf-token"] for a in (first, second, third)] == ["t0=", "t1=", "t2="]
    assert "laravel_session=s-t0" in first.headers["cookie"]


@pytest.mark.parametrize("status", [401, 419])
def test_a_refused_session_is_renewed_once(tmp_path: Path, status: int) -> None:
    visits: list[int] = []

    def respond(asked: Asked) -> Answer:
        if asked.path != QUOTES:
            visits.append(1)
            return replace(healthy(asked), headers=cookies(f"t{len(visits)}"))
        if asked.headers.get("x-xsrf-token") != "t2=":
            return FAULTS[f"http_{status}"](Answer())
        return healthy(asked)

    answer, _, _ = ask(respond, tmp_path, barchart_session="cookies", barchart_pages=False)
    assert answer.outcome is Outcome.OK, answer.reason
    assert len(visits) == 2


def test_a_session_refused_again_ends_the_asking(tmp_path: Path) -> None:
    def respond(asked: Asked) -> Answer:
        if asked.path != QUOTES:
            return replace(healthy(asked), headers=cookies("t"))
        return FAULTS["http_419"](Answer())

    answer, server, _ = ask(respond, tmp_path, barchart_session="cookies")
    assert answer.outcome is Outcome.BLOCKED
    assert [asked.path == QUOTES for asked in server.asked] == [False, True, False, True]


def test_a_challenged_page_visit_leaves_the_decision_to_the_api(tmp_path: Path) -> None:
    def respond(asked: Asked) -> Answer:
        return healthy(asked) if asked.path == QUOTES else FAULTS["challenge"](Answer())

    answer, _, session = ask(respond, tmp_path, barchart_session="cookies", barchart_pages=False)
    assert answer.outcome is Outcome.OK
    assert (session.fetches[0].operation, session.fetches[0].outcome) == ("session", Outcome.BLOCKED)


def test_the_page_visited_for_a_token_is_not_archived(tmp_path: Path) -> None:
    ask(healthy, tmp_path, barchart_session="cookies", barchart_pages=False)
    kinds = [path.read_bytes() for path in (tmp_path / "raw").rglob("*.json")]
    assert kinds and not [text for text in kinds if b'"operation":"session"' in text]


def test_the_browsers_cookies_go_with_every_request(tmp_path: Path) -> None:
    _, server, _ = ask(
        healthy,
        tmp_path,
        barchart_session="browser",
        barchart_cookies="laravel_session=abc; XSRF-TOKEN=def%3D; aws-waf-token=ghi",
    )
    assert all("laravel_session=abc" in asked.headers["cookie"] for asked in server.asked)
    api = [asked for asked in server.asked if asked.path == QUOTES]
    assert all(asked.headers["x-xsrf-token"] == "def=" for asked in api)


def test_a_browser_session_without_cookies_is_not_configured(tmp_path: Path) -> None:
    answer, server, _ = ask(healthy, tmp_path, barchart_session="browser")
    assert answer.outcome is Outcome.NOT_CONFIGURED
    assert "NQ_BARCHART_COOKIES" in answer.reason
    assert not server.asked


# ── failures of a part ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fault", ["challenge", "captcha", "http_403", "http_401", "http_419", "http_429"])
def test_a_refusal_ends_the_requests_and_keeps_earlier_rows(tmp_path: Path, fault: str) -> None:
    def respond(asked: Asked) -> Answer:
        good = healthy(asked)
        return FAULTS[fault](good) if asked.query.get("symbol") == "MM7M25" else good

    friday = Series("QN2", date(2025, 6, 13))
    answer, server, _ = ask(respond, tmp_path, series=(WEDNESDAY, THURSDAY, friday))
    assert [asked.query.get("symbol") for asked in server.asked] == ["MC2M25", "MM7M25"]
    assert answer.outcome is Outcome.PARTIAL
    assert answer.series[WEDNESDAY.key].outcome is Outcome.OK
    assert answer.series[THURSDAY.key] == answer.series[friday.key]
    assert answer.frame["series"].unique().to_list() == [WEDNESDAY.key]


def test_an_unlisted_series_is_empty_and_no_fault(tmp_path: Path) -> None:
    def respond(asked: Asked) -> Answer:
        return Answer(chain([])) if asked.query.get("symbol") == "MM7M25" else healthy(asked)

    answer, _, _ = ask(respond, tmp_path)
    assert answer.outcome is Outcome.OK
    assert answer.series[THURSDAY.key].outcome is Outcome.EMPTY


def test_a_contradicting_page_fails_a_control_not_the_chain(tmp_path: Path) -> None:
    def respond(asked: Asked) -> Answer:
        if asked.path.endswith("MM7M25"):
            return Answer(barchart_boards.page("MM7M25", "06/13/25", put=1, call=8), content_type="text/html")
        return healthy(asked)

    answer, _, _ = ask(respond, tmp_path)
    assert answer.outcome is Outcome.OK
    assert answer.controls == {
        "rows_equal_total": True,
        "premium_is_last_times_20": True,
        "expiration_equals_page": False,
        "multiplier_equals_page": True,
        "open_interest_equals_page": False,
    }


def test_a_page_of_something_else_ends_the_reading_of_pages(tmp_path: Path) -> None:
    def respond(asked: Asked) -> Answer:
        if asked.path.startswith("/futures"):
            return Answer(barchart_boards.page("MQ1M25", "06/06/25", put=0, call=0), content_type="text/html")
        return healthy(asked)

    answer, server, session = ask(respond, tmp_path)
    assert answer.outcome is Outcome.OK
    assert set(answer.controls) == {"rows_equal_total", "premium_is_last_times_20"}
    assert len(server.asked) == 4
    assert session.fetches[-1].outcome is Outcome.BAD_PAYLOAD


def test_a_page_is_read_once_per_trade_date(tmp_path: Path) -> None:
    with serve(healthy) as server:
        settings = load(
            environment="live", barchart_enabled=True, barchart_url=server.url, barchart_spacing_s=0
        )
        for minutes in (0, 1):
            moment = NOW + timedelta(minutes=minutes)
            source = Barchart(settings)
            session = open_session(source, tmp_path, NOW)
            session.lifetime = Lifetime(session.clock, open_s=0, closed_s=0)
            answer = source.ask(ChainRequest(TODAY, moment, NOW, (WEDNESDAY,), "r", "live"), session)
            session.close()
            assert answer.outcome is Outcome.OK
    paths = [asked.path for asked in server.asked]
    assert paths.count("/futures/quotes/NQM25/options/MC2M25") == 1
    assert paths.count(QUOTES) == 4


# ── stale, quiet, partial ───────────────────────────────────────────────────────────────────────


def respond_with(rows_by_code: dict[str, list[barchart_boards.Row]]) -> Respond:
    def respond(asked: Asked) -> Answer:
        symbol = asked.query.get("symbol")
        return Answer(chain(rows_by_code[symbol])) if symbol else NOT_FOUND

    return respond


def test_a_series_without_trades_is_quiet_while_another_trades(tmp_path: Path) -> None:
    quiet = [settled("MM7M5", 21000, side) for side in "CP"]
    respond = respond_with({"MC2M25": barchart_boards.board("MC2M5"), "MM7M25": quiet})
    answer, _, _ = ask(respond, tmp_path)
    assert answer.series[THURSDAY.key].outcome is Outcome.OK


def test_a_series_is_quiet_when_only_the_future_trades(tmp_path: Path) -> None:
    def respond(asked: Asked) -> Answer:
        if "symbol" in asked.query:
            return Answer(chain([settled("MC2M5", 21000, "C")]))
        return healthy(asked)

    answer, _, _ = ask(respond, tmp_path, series=(WEDNESDAY,))
    assert answer.outcome is Outcome.OK
    assert answer.frame["underlying_price"].to_list() == [21745.25]


def test_nothing_since_yesterday_is_stale_and_keeps_its_rows(tmp_path: Path) -> None:
    respond = respond_with({"MC2M25": [settled("MC2M5", 21000, "C")]})
    answer, _, _ = ask(respond, tmp_path, series=(WEDNESDAY,))
    assert answer.outcome is Outcome.STALE
    assert answer.frame.height == 1
    assert "2025-06-09" in answer.reason


def test_a_series_older_than_the_session_before_is_stale(tmp_path: Path) -> None:
    old = [settled("MM7M5", 21000, "C", at=date(2025, 6, 6))]
    answer, _, _ = ask(respond_with({"MC2M25": barchart_boards.board("MC2M5"), "MM7M25": old}), tmp_path)
    assert answer.series[THURSDAY.key].outcome is Outcome.STALE
    assert answer.outcome is Outcome.PARTIAL


def test_yesterdays_trades_are_stale_beside_a_live_series(tmp_path: Path) -> None:
    yesterday = datetime(2025, 6, 9, 18, 0, tzinfo=UTC)
    frozen = [traded("MM7M5", 21000, "C", at=yesterday)]
    answer, _, _ = ask(respond_with({"MC2M25": barchart_boards.board("MC2M5"), "MM7M25": frozen}), tmp_path)
    assert answer.series[THURSDAY.key].outcome is Outcome.STALE


def test_until_the_sites_delay_has_passed_yesterday_is_not_stale(tmp_path: Path) -> None:
    five_minutes_in = datetime(2025, 6, 9, 22, 5, tzinfo=UTC)
    rows = [settled("MC2M5", 21000, "C", at=date(2025, 6, 9))]
    answer, _, _ = ask(respond_with({"MC2M25": rows}), tmp_path, series=(WEDNESDAY,), moment=five_minutes_in)
    assert answer.outcome is Outcome.OK


def test_fewer_rows_than_the_site_states_are_partial(tmp_path: Path) -> None:
    def respond(asked: Asked) -> Answer:
        return (
            Answer(chain(barchart_boards.board("MC2M5"), total=600)) if "symbol" in asked.query else NOT_FOUND
        )

    answer, _, _ = ask(respond, tmp_path, series=(WEDNESDAY,))
    assert answer.outcome is Outcome.PARTIAL
    assert answer.controls["rows_equal_total"] is False


def test_unreadable_rows_make_a_series_partial(tmp_path: Path) -> None:
    rows = [*barchart_boards.board("MC2M5"), traded("MC2M5", 23000, "C") | {"symbol": "???"}]
    answer, _, _ = ask(respond_with({"MC2M25": rows}), tmp_path, series=(WEDNESDAY,))
    assert answer.outcome is Outcome.PARTIAL
    assert answer.dropped == {"unknown_symbol": 1}
    assert "1 unknown symbol" in answer.reason
    assert answer.frame.height == 6


def test_quotes_speak_of_the_moment_the_sites_delay_ago(tmp_path: Path) -> None:
    answer, _, _ = ask(healthy, tmp_path, barchart_delay_s=900)
    moments = answer.frame.select("snapshot_ts", "as_of").unique().row(0)
    assert moments == (NOW, NOW - timedelta(seconds=900))


# ── what a row means ────────────────────────────────────────────────────────────────────────────


def test_a_trade_of_today_has_last_time_and_volume() -> None:
    got = one(traded("MC2M5", 21350, "P", last=11.0, volume=1069))
    assert (got["last"], got["settlement"], got["is_settlement"], got["volume"]) == (11.0, None, False, 1069)
    assert to_ns(got["last_ts"]) == to_ns(datetime(2025, 6, 10, 14, 38, tzinfo=UTC))
    assert (got["bid"], got["ask"], got["open"], got["change"]) == (5.75, 6.25, 21.0, -20.5)


def test_an_untraded_contract_has_only_a_settlement() -> None:
    got = one(settled("MC2M5", 21400, "C"))
    assert (got["last"], got["settlement"], got["is_settlement"]) == (None, 808.25, True)
    assert (got["last_ts"], got["volume"], got["open_interest"], got["open"]) == (None, None, None, None)
    assert got["change"] == 0.0


@pytest.mark.parametrize(
    ("asked", "at", "expected"),
    [
        ("15:05", date(2025, 6, 9), date(2025, 6, 9)),
        # A quiet row is stamped with its last quote, hours before the day's settlements.
        ("15:05", datetime(2025, 6, 10, 12, 36, tzinfo=UTC), date(2025, 6, 9)),
        ("15:29", date(2025, 6, 10), date(2025, 6, 9)),
        ("15:30", date(2025, 6, 10), date(2025, 6, 10)),
        ("15:30", date(2025, 6, 9), date(2025, 6, 9)),
    ],
)
def test_a_settlement_is_of_its_rows_date_once_that_is_out(
    tmp_path: Path, asked: str, at: date, expected: date
) -> None:
    body = chain([settled("MC2M5", 21400, "C", at=at), traded("MC2M5", 21400, "P")])
    moment = datetime.fromisoformat(f"2025-06-10T{asked}").replace(tzinfo=sessions.CHICAGO)
    answer, _, _ = ask(lambda _: Answer(body), tmp_path, series=(WEDNESDAY,), moment=moment.astimezone(UTC))
    got = answer.frame.sort("option_type").select("settlement", "settlement_date").rows()
    assert got == [(808.25, expected), (None, None)]


def test_the_volume_of_another_session_is_null() -> None:
    got = one(settled("MC2M5", 21350, "C", last=486.75, volume=1))
    assert (got["volume"], got["is_settlement"]) == (None, True)
    assert got["last_ts"] == datetime(2025, 6, 9, tzinfo=UTC)


def test_an_unmarked_quiet_price_is_the_last_without_a_time() -> None:
    got = one(quote("MC2M5", 14000, "C", last=7534.38, at=datetime(2025, 6, 10, 21, 1, tzinfo=UTC)))
    assert (got["settlement"], got["last"], got["last_ts"]) == (None, 7534.38, None)


def test_a_missing_quote_is_null_and_a_real_zero_is_not() -> None:
    assert one(settled("MC2M5", 21000, "C", bid=None))["bid"] is None
    assert one(settled("MC2M5", 21000, "C", bid=0.0))["bid"] == 0.0


@pytest.mark.parametrize("group", ["optionType", "strikePrice", None])
def test_rows_are_the_same_however_they_are_grouped(group: str | None) -> None:
    rows = barchart_boards.board("MC2M5")
    by_key = parse(rows, group=group).rows.sort("contract_key")
    assert by_key.equals(parse(rows).rows.sort("contract_key"))
    assert by_key.height == 6


def test_displayed_and_raw_that_disagree_are_null_and_counted() -> None:
    row = traded("MC2M5", 21000, "C")
    row["raw"]["bidPrice"] = 57.5
    board = parse([row])
    assert board.rows["bid"].to_list() == [None]
    assert board.dropped == {"malformed_cell": 1}


def test_an_unreadable_displayed_number_is_null_and_counted() -> None:
    board = parse([traded("MC2M5", 21000, "C") | {"bidPrice": "bid", "lastPrice": "12,34.5.6s"}])
    assert board.rows.select("bid", "last", "settlement").row(0) == (None, None, None)
    assert board.dropped == {"malformed_cell": 2}


def test_a_value_behind_a_missing_mark_is_not_believed() -> None:
    row = settled("MC2M5", 21000, "C") | {"askPrice": "N/A"}
    board = parse([row])
    assert board.rows["ask"].to_list() == [None]
    assert board.dropped == {"malformed_cell": 1}


def test_without_a_raw_value_the_displayed_number_counts() -> None:
    row = settled("MC2M5", 21000, "C", last=7534.25)
    row["raw"] = None
    board = parse([row])
    assert board.rows["settlement"].to_list() == [7534.25]
    assert board.dropped == {"malformed_cell": 1}  # its time


@pytest.mark.parametrize("size", ["1.5", "-1", "1" + "0" * 30, "many"])
def test_a_count_that_is_none_is_null_and_counted(size: str) -> None:
    row = traded("MC2M5", 21000, "C") | {"volume": size}
    row["raw"]["volume"] = float(size) if size != "many" else size
    board = parse([row])
    assert board.rows["volume"].to_list() == [None]
    assert board.dropped == {"malformed_cell": 1}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"symbol": "???"}, "unknown_symbol"),
        ({"symbol": None}, "unknown_symbol"),
        ({"symbol": "MC1M5|21000C"}, "other_series"),
        ({"raw": {"strike": 21005}}, "malformed_row"),
        ({"optionType": "Put"}, "malformed_row"),
    ],
)
def test_a_row_of_another_contract_is_dropped_and_counted(change: dict[str, Any], reason: str) -> None:
    board = parse([traded("MC2M5", 21000, "C") | change, traded("MC2M5", 22000, "C")])
    assert board.dropped == {reason: 1}
    assert board.rows["strike"].to_list() == [22000.0]


def test_a_contract_that_comes_twice_is_kept_once() -> None:
    board = parse([traded("MC2M5", 21000, "C"), traded("MC2M5", 21000, "C", last=12.0)])
    assert board.dropped == {"duplicate": 1}
    assert board.rows["last"].to_list() == [11.0]


def test_rows_that_are_no_rows_are_counted() -> None:
    body = b'{"total":3,"data":{"Call":[null,"x",7],"Put":[]}}'
    board = parse_chain(body, WEDNESDAY, "MC2M5", trade_date=TODAY)
    assert (board.seen, board.rows.height, board.dropped) == (3, 0, {"unknown_symbol": 3})


def test_premiums_of_another_multiplier_are_another_product() -> None:
    rows = [traded("MC2M5", strike, "C", multiplier=2) for strike in (21000, 22000)]
    with pytest.raises(BadPayload, match="another product"):
        parse(rows)


def test_a_single_odd_premium_only_fails_its_control() -> None:
    rows = [traded("MC2M5", 21000 + 5 * i, "C", multiplier=2 if i == 0 else 20) for i in range(10)]
    board = parse(rows)
    assert board.controls["premium_is_last_times_20"] is False
    assert board.rows.height == 10


@pytest.mark.parametrize("body", [b"{}", b'{"data":"x"}', b'{"data":{"Call":5}}', b'{"error":"no"}', b"[]"])
def test_json_that_is_no_answer_is_a_bad_payload(body: bytes) -> None:
    with pytest.raises(BadPayload):
        parse_chain(body, WEDNESDAY, "MC2M5", trade_date=TODAY)


def test_rows_that_are_stated_and_missing_are_a_bad_payload() -> None:
    with pytest.raises(BadPayload, match="592 rows"):
        parse([], total=592)


# ── doctor ──────────────────────────────────────────────────────────────────────────────────────


def probe(respond: Respond, folder: Path, **settings: Any) -> Any:
    with serve(respond) as server:
        source = Barchart(load(environment="live", barchart_url=server.url, **settings))
        session = open_session(source, folder)
        try:
            return probe_source(source, session)
        finally:
            session.close()


def test_the_doctor_sees_a_site_that_answers(tmp_path: Path) -> None:
    found = probe(healthy, tmp_path, barchart_enabled=True)
    assert (found.configured, found.reachable, found.entitled) == (True, True, True)
    assert "NQM25 at 21,745.25" in found.detail


def test_the_doctor_says_how_to_opt_in_and_what_a_block_needs(tmp_path: Path) -> None:
    closed = probe(healthy, tmp_path)
    assert (closed.configured, closed.reachable) == (False, None)
    assert "NQ_BARCHART_ENABLED" in closed.detail and closed.remedy
    blocked = probe(lambda asked: FAULTS["challenge"](Answer()), tmp_path, barchart_enabled=True)
    assert (blocked.configured, blocked.reachable) == (True, True)
    assert "NQ_BARCHART_SESSION" in blocked.remedy


def test_frames_of_several_series_keep_their_own_provenance(tmp_path: Path) -> None:
    answer, _, session = ask(healthy, tmp_path, barchart_pages=False)
    requests = answer.frame.group_by("series").agg(pl.col("request_id").unique()).sort("series")
    asked = [fetch.request_id for fetch in session.fetches if fetch.operation == "chain"]
    assert requests["request_id"].to_list() == [[request_id] for request_id in asked]
