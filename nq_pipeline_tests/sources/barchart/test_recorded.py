"""Recorded Barchart payloads: every cell of every row is accounted for, every null explained."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from nq_pipeline.market import sessions
from nq_pipeline.market.contracts import Series
from nq_pipeline.market.symbology import parse_barchart_code
from nq_pipeline.sources.barchart.page import parse_page
from nq_pipeline.sources.barchart.parse import BarchartChain, parse_chain, parse_futures

BOARDS = [
    # file, code of its rows, series, session asked about
    ("chain_MC2M25_20250610T1449Z.json", "MC2M5", "Q2C-2025-06-11", date(2025, 6, 10)),
    ("chain_MC4M25_20250612T1418Z.json", "MC4M5", "Q4C-2025-06-25", date(2025, 6, 12)),
    ("chain_MC6M25_20250602_after_expiry.json", "MC6M5", "Q1A-2025-06-02", date(2025, 6, 2)),
    ("chain_MC6N5_20250625.json", "MC6N5", "Q1A-2025-07-07", date(2025, 6, 25)),
    ("chain_MC7M25_20250609T0532Z_expiry_eve.json", "MC7M5", "Q2A-2025-06-09", date(2025, 6, 9)),
    ("chain_MQ4M25_20250627T0433Z.json", "MQ4M5", "QN4-2025-06-27", date(2025, 6, 27)),
]
COLUMNS = {
    "openPrice": "open",
    "highPrice": "high",
    "lowPrice": "low",
    "priceChange": "change",
    "bidPrice": "bid",
    "askPrice": "ask",
    "openInterest": "open_interest",
}


def series_of(code: str, on: date | None = None) -> Series:
    series = parse_barchart_code(code, on=on)
    assert isinstance(series, Series), series
    return series


def read(folder: Path, name: str, code: str, day: date) -> tuple[BarchartChain, list[dict[str, Any]]]:
    body = (folder / "barchart" / name).read_bytes()
    series = series_of(code, day)
    data = json.loads(body)["data"]
    return parse_chain(body, series, code, trade_date=day), [*data["Call"], *data["Put"]]


@pytest.mark.parametrize(("name", "code", "key", "day"), BOARDS)
def test_every_cell_of_a_recorded_board_is_accounted_for(
    shared: Path, name: str, code: str, key: str, day: date
) -> None:
    board, sent = read(shared, name, code, day)
    assert board.rows.height == board.seen == len(sent)
    assert not board.dropped
    assert board.controls == {"rows_equal_total": True, "premium_is_last_times_20": True}
    nulls: Counter[str] = Counter()
    for row, got in zip(sent, board.rows.iter_rows(named=True), strict=True):
        raw = row["raw"]
        traded = row["volume"] != "N/A" or row["openPrice"] != "N/A"
        settlement = row["lastPrice"].endswith("s")
        expected = {
            "vendor_symbol": row["symbol"],
            "contract_key": f"{key}-{row['symbol'][-1]}-{raw['strike']}",
            "raw_symbol": f"{key.partition('-')[0]}{code[-2:]} {row['symbol'][-1]}{raw['strike']}",
            "strike": raw["strike"],
            "option_type": row["optionType"][0],
            "is_settlement": settlement,
        }
        for theirs, ours in COLUMNS.items():
            if row[theirs] == "N/A":
                assert raw[theirs] in (0, None)
                nulls[ours] += 1
                expected[ours] = None
            else:
                expected[ours] = raw[theirs]
        expected["last"] = None if settlement else raw["lastPrice"]
        expected["settlement"] = raw["lastPrice"] if settlement else None
        moment = datetime.fromtimestamp(raw["tradeTime"], UTC)
        expected["settlement_date"] = sessions.trade_date(moment) if settlement else None
        for name in ("last",) if settlement else ("settlement", "settlement_date"):
            nulls[name] += 1
        if row["volume"] == "N/A" or sessions.trade_date(moment) != day:
            nulls["volume"] += 1
            expected["volume"] = None
        else:
            expected["volume"] = raw["volume"]
        if traded and (row["volume"] != "N/A" or not settlement):
            expected["last_ts"] = moment
        else:
            nulls["last_ts"] += 1
            expected["last_ts"] = None
        assert got == expected
    assert {name: board.rows[name].null_count() for name in board.rows.columns} == {
        name: nulls[name] for name in board.rows.columns
    }


@pytest.mark.parametrize(("name", "code", "key", "day"), BOARDS)
def test_recorded_trade_times_are_shown_as_their_session(
    shared: Path, name: str, code: str, key: str, day: date
) -> None:
    board, sent = read(shared, name, code, day)
    assert board.newest == day
    for row in sent:
        moment = datetime.fromtimestamp(row["raw"]["tradeTime"], UTC)
        if row["tradeTime"].endswith("CT"):
            assert f"{moment.astimezone(sessions.CHICAGO):%H:%M} CT" == row["tradeTime"]
        elif moment.hour == 0:
            assert f"{sessions.trade_date(moment):%m/%d/%y}" == row["tradeTime"]


def test_a_price_that_lost_its_mark_is_no_trade(shared: Path) -> None:
    board, sent = read(shared, BOARDS[2][0], "MC6M5", date(2025, 6, 2))
    assert sent[0]["lastPrice"] == "7,534.38"
    first = board.rows.row(0, named=True)
    assert (first["settlement"], first["last"], first["last_ts"]) == (None, 7534.38, None)
    assert board.settled
    assert board.rows["bid"].null_count() == board.rows.height


def test_the_recorded_empty_answer_is_an_empty_board(shared: Path) -> None:
    body = (shared / "barchart" / "chain_empty_20250608.json").read_bytes()
    series = series_of("MC7M25")
    board = parse_chain(body, series, "MC7M5", trade_date=date(2025, 6, 6))
    assert (board.seen, board.rows.height, board.dropped) == (0, 0, Counter())


def test_recorded_fractions_are_eighths(shared: Path) -> None:
    body = (shared / "barchart" / "futures_list_ZW_20250602_fractional_unch.json").read_bytes()
    rows = json.loads(body)["data"]
    expected = {r["symbol"]: (r["raw"]["lastPrice"], r["raw"]["tradeTime"] * 10**9) for r in rows}
    assert parse_futures(body, list(expected), trade_date=date(2025, 6, 2)) == expected
    for row in rows:
        del row["raw"]["lastPrice"]
    shown_only = parse_futures(
        json.dumps({"data": rows}).encode(), list(expected), trade_date=date(2025, 6, 2)
    )
    assert shown_only == expected


def test_the_recorded_page_agrees_with_its_rows(shared: Path) -> None:
    page = parse_page((shared / "barchart" / "page_MC6M25_20250602_rendered.html").read_bytes())
    board, _ = read(shared, BOARDS[2][0], "MC6M5", date(2025, 6, 2))
    series = series_of("MC6M25")
    assert (page.code, page.point_value) == ("MC6M25", 20)
    assert page.expiration_date == date(2025, 6, 2)
    assert page.open_interest == {"P": 5176, "C": 4704}
    assert page.controls(series, board.rows, open_interest=True) == {
        "expiration_equals_page": True,
        "multiplier_equals_page": True,
        "open_interest_equals_page": True,
    }


def test_the_recorded_half_page_is_read_as_far_as_it_goes(shared: Path) -> None:
    page = parse_page((shared / "barchart" / "page_MC6M25_server_html_first50kB.html").read_bytes())
    assert page.open_interest == {}


def test_recorded_expiries_of_codes_are_those_of_our_tables(shared: Path) -> None:
    reads = json.loads((shared / "barchart" / "expiry_page_reads_20250627.json").read_text())
    seen = 0
    for case in reads["detailed_results"]:
        if case["result"].get("actualDate"):
            series = series_of(case["test_case"]["symbol"], date(2025, 6, 27))
            assert f"{series.expiration_date:%m/%d/%y}" == case["result"]["actualDate"]
            seen += 1
    assert seen == 4
