"""Tape, prices and volumes by strike, compared with plain loops over the trades."""

from __future__ import annotations

import random
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest

from nq_pipeline.board.trades import (
    SPANS,
    FuturePrices,
    StrikeVolumes,
    board_rows,
    group_width,
    tape_columns,
)
from nq_pipeline.lake.tables import TRADES

OPENS = datetime(2025, 6, 10, 13, 30, tzinfo=UTC)


def trade(at: datetime, *, price: float, size: int = 1, side: str = "B", **more: Any) -> dict[str, Any]:
    """A trade in the future, with other values as given."""
    return {
        "ts_event": at,
        "ts_recv": at,
        "trade_date": at.date(),
        "raw_symbol": "NQM5",
        "instrument_kind": "future",
        "root": "NQ",
        "side": side,
        "price": price,
        "size": size,
        "source_schema": "trades",
        **more,
    }


def option(at: datetime, strike: float, kind: str, **more: Any) -> dict[str, Any]:
    own = {
        "instrument_kind": "option",
        "root": "Q1B",
        "series": "Q1B-2025-07-01",
        "strike": strike,
        "option_type": kind,
        "raw_symbol": f"Q1BN5 {kind}{strike:.0f}",
    }
    return trade(at, price=10.0, **{**own, **more})


def rows_of(*trades: dict[str, Any]) -> pl.DataFrame:
    return board_rows(pl.DataFrame(list(trades), schema=TRADES.schema))


def random_trades(count: int) -> list[dict[str, Any]]:
    chance, trades = random.Random(1), []
    for number in range(count):
        at = OPENS + timedelta(milliseconds=number * 700)
        side, size = chance.choice("BAN"), chance.randint(1, 9)
        if chance.random() < 0.5:
            price = 21_000 + chance.randint(-40, 40) / 4
            trades.append(trade(at, price=price, size=size, side=side))
        else:
            strike = 21_000.0 + 10 * chance.randint(-150, 150)
            trades.append(option(at, strike, chance.choice("CP"), size=size, side=side))
    return trades


def test_the_tape_shows_contract_side_and_time() -> None:
    at = datetime(2025, 6, 10, 14, 0, 0, 123_000, tzinfo=UTC)
    misdated = option(at + timedelta(hours=1), 21_330.0, "P", side="N", ts_recv=at)
    spread = trade(at, price=-1.5, instrument_kind="spread", raw_symbol="UD:1N: VT", root=None, side="A")
    columns = tape_columns(rows_of(trade(at, price=21_000.25, size=3), misdated, spread))
    assert columns == {
        "time": [1_749_564_000_123] * 3,
        "name": ["NQM5", "Q1B 1 Jul", "UD:1N: VT"],
        "type": [None, "P", None],
        "strike": [None, 21_330.0, None],
        "price": [21_000.25, 10.0, -1.5],
        "size": [3, 1, 1],
        "side": "BNA",
    }


def test_a_trade_of_size_zero_or_without_a_price_is_none() -> None:
    assert rows_of(trade(OPENS, price=1.0, size=0), trade(OPENS, price=None)).is_empty()  # type: ignore[arg-type]


def test_the_price_of_the_most_traded_future_whatever_the_batches() -> None:
    trades = random_trades(3_000)
    trades += [{**t, "raw_symbol": "NQU5", "size": 1} for t in trades if t["instrument_kind"] == "future"][
        :200
    ]
    whole, parts = FuturePrices(), FuturePrices()
    whole.add(rows_of(*trades))
    for start in range(0, len(trades), 170):
        parts.add(rows_of(*trades[start : start + 170]))
    own = [t for t in trades if t["raw_symbol"] == "NQM5"]
    (latest,) = whole.latest()
    assert latest["symbol"] == "NQM5"
    assert latest["last"] == own[-1]["price"] and latest["change"] == own[-1]["price"] - own[0]["price"]
    assert (latest["low"], latest["high"]) == (min(t["price"] for t in own), max(t["price"] for t in own))
    assert latest["volume"] == sum(t["size"] for t in own)
    last_of = {int(t["ts_event"].timestamp()) // 10 * 10_000: t["price"] for t in own}
    line = whole.lines()["NQ"]
    assert dict(zip(line["time"], line["price"], strict=True)) == last_of
    assert parts.latest() == whole.latest() and parts.lines() == whole.lines()


def test_volumes_by_strike_agree_with_a_count_whatever_the_batches() -> None:
    trades = random_trades(3_000)
    whole, parts = StrikeVolumes(), StrikeVolumes()
    whole.add(rows_of(*trades))
    for start in range(0, len(trades), 170):
        parts.add(rows_of(*trades[start : start + 170]))
    now = OPENS + timedelta(minutes=31)
    now_ms = int(now.timestamp() * 1e3)
    spans = whole.spans(now_ms, {"NQ": 21_003.0})["NQ"]
    assert parts.spans(now_ms, {"NQ": 21_003.0})["NQ"] == spans
    minutes = {"5 minutes": 0, "the 5 minutes before": -5, "30 minutes": -25, "session": -30}
    begins = {name: now.replace(minute=0) + timedelta(minutes=first) for name, first in minutes.items()}
    for name, since in begins.items():
        until = now.replace(minute=0) if name == "the 5 minutes before" else now + timedelta(days=1)
        span, expected = spans[name], defaultdict[tuple[str, float], list[int]](lambda: [0, 0, 0])
        beyond = 0
        for each in trades:
            if each["instrument_kind"] != "option" or not since <= each["ts_event"] < until:
                continue
            if abs(each["strike"] / 21_003 - 1) > 0.05:
                beyond += each["size"]
                continue
            group = float(round(each["strike"] / span["width"]) * span["width"])
            expected[each["option_type"], group]["BAN".index(each["side"])] += each["size"]
        names = ("option_type", "strike", "bought", "sold", "undefined")
        found = {row[:2]: list(row[2:]) for row in zip(*(span[n] for n in names), strict=True)}
        assert found == dict(expected), name
        assert span["beyond"] == beyond and span["width"] == 100
    assert list(spans) == list(SPANS) == list(begins)


@pytest.mark.parametrize(
    ("strikes", "price", "width"),
    [
        ([], 0.0, 5),
        ([21_000.0], 21_000.0, 25),
        ([20_000.0, 22_000.0], 21_000.0, 100),
        ([1.0, 9e9], 5.0, 1000),
    ],
)
def test_strikes_are_grouped_into_few_bars(strikes: list[float], price: float, width: int) -> None:
    assert group_width(pl.Series(strikes, dtype=pl.Float64), price) == width
