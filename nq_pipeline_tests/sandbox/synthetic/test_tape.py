"""The tape: what the synthetic market publishes, whole or in pieces, live or from history."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime
from itertools import pairwise

import databento
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from nq_pipeline.clock import NS_PER_S, from_ns, to_ns
from nq_pipeline.dbn.layout import RTYPES, UNDEF_TIMESTAMP
from nq_pipeline.market import sessions
from nq_pipeline.sandbox.synthetic.instruments import universe
from nq_pipeline.sandbox.synthetic.market import Market, market
from nq_pipeline.sandbox.synthetic.records import SCHEMAS
from nq_pipeline.sandbox.synthetic.tape import (
    INTERVALS_NS,
    Tape,
    filter_instruments,
    publication_times,
    tape,
)
from nq_pipeline.sources.databento.client import official_client
from nq_pipeline_tests.testing.load_tape import LoadTape

DAY = date(2025, 6, 10)
OPEN, CLOSE = (to_ns(edge) for edge in sessions.session(DAY).segments[0])
TAPE = tape(market(7))
LOAD = LoadTape(market(7), 3_000)


@pytest.mark.parametrize("schema", sorted(SCHEMAS))
def test_every_schema_is_in_order_of_publication(schema: str) -> None:
    # The books of all contracts are too many for a whole session.
    records = TAPE.records(schema, OPEN, OPEN + 120 * NS_PER_S if schema == "bbo-1m" else CLOSE)

    assert len(records) > 100
    assert set(records["rtype"]) == {RTYPES[schema]}
    assert set(records["length"]) == {records.dtype.itemsize // 4}
    assert set(records["publisher_id"]) == {1}
    assert (np.diff(publication_times(schema, records).astype(np.int64)) >= 0).all()
    # A day, UTC, begins in the session before, of which some contracts are gone.
    days = (DAY, date(2025, 6, 9)) if schema == "ohlcv-1d" else (DAY,)
    listed = np.concatenate([universe(market(7), day)["instrument_id"].to_numpy() for day in days])
    assert np.isin(records["instrument_id"], listed).all()


@given(cuts=st.lists(st.integers(OPEN - NS_PER_S, CLOSE + NS_PER_S), max_size=4))
@settings(deadline=None, max_examples=12)
def test_pieces_of_a_span_are_the_span(cuts: list[int]) -> None:
    edges = sorted([OPEN, *(min(max(cut, OPEN), CLOSE) for cut in cuts), CLOSE])

    for schema in ("trades", "bbo-1s", "ohlcv-1s"):
        pieces = [TAPE.records(schema, a, b) for a, b in pairwise(edges)]
        assert np.array_equal(np.concatenate(pieces), TAPE.records(schema, OPEN, CLOSE))


@given(start=st.integers(0, 20 * NS_PER_S), length=st.integers(0, 3 * NS_PER_S))
@settings(deadline=None, max_examples=12)
def test_load_is_the_same_at_every_request(start: int, length: int) -> None:
    begin = OPEN + start
    whole = LOAD.records("trades", OPEN, OPEN + 24 * NS_PER_S)
    received = whole["ts_recv"].astype(np.int64)

    piece = LOAD.records("trades", begin, begin + length)

    assert np.array_equal(piece, whole[(received >= begin) & (received < begin + length)])


def test_load_keeps_its_rate_and_numbers_every_record() -> None:
    records = LOAD.records("trades", OPEN, OPEN + 10 * NS_PER_S)

    assert len(records) == 30_000
    assert (np.diff(records["sequence"].astype(np.int64)) == 1).all()
    assert (np.diff(records["ts_event"].astype(np.int64)) >= 0).all()
    assert len(np.unique(records["ts_event"])) < len(records) / 10


def test_records_are_received_in_the_venues_order() -> None:
    records = TAPE.records("trades", OPEN, CLOSE)

    assert (records["ts_recv"] > records["ts_event"]).all()
    for channel in (records["instrument_id"] < 300_000, records["instrument_id"] >= 300_000):
        assert (np.diff(records["ts_event"][channel].astype(np.int64)) >= 0).all()
        assert (np.diff(records["sequence"][channel].astype(np.int64)) >= 0).all()


def test_fills_of_one_aggressor_share_instant_and_sequence() -> None:
    records = TAPE.records("trades", OPEN, CLOSE)

    keys = np.unique(records[["instrument_id", "ts_event", "sequence"]])

    assert len(keys) < 0.8 * len(records)
    assert len(np.unique(records)) < len(records)


def test_option_trades_add_up_to_those_of_the_chains() -> None:
    records = TAPE.records("trades", OPEN, CLOSE)
    options = records[records["instrument_id"] >= 300_000]
    done = market(7).trades(DAY)

    assert options["size"].sum() == done["size"].sum()
    assert len(options) > done.height
    assert set(options["instrument_id"].tolist()) == set(done["instrument_id"].to_list())
    last = {row["instrument_id"]: round(row["price"] * 100) for row in done.iter_rows(named=True)}
    streamed = dict(zip(options["instrument_id"].tolist(), options["price"].tolist(), strict=True))
    assert {key: value // 10_000_000 for key, value in streamed.items()} == last


def test_trades_are_the_trades_of_mbp_1() -> None:
    books = TAPE.records("mbp-1", OPEN, CLOSE)
    trades, tbbo = (TAPE.records(schema, OPEN, CLOSE) for schema in ("trades", "tbbo"))
    among = books[books["action"] == b"T"]

    shared = [name for name in trades.dtype.names or () if name not in ("length", "rtype")]
    assert all(np.array_equal(among[name], trades[name]) for name in shared)
    assert np.array_equal(tbbo, among)
    at_the_touch = np.where(tbbo["side"] == b"B", tbbo["ask_px_00"], tbbo["bid_px_00"]) == tbbo["price"]
    assert at_the_touch.mean() > 0.9


@pytest.mark.parametrize("schema", ["ohlcv-1s", "ohlcv-1m"])
def test_bars_add_up_to_the_trades(schema: str) -> None:
    # The last bar ends, and so is published, with the close itself.
    bars, trades = TAPE.records(schema, OPEN, CLOSE + 1), TAPE.records("trades", OPEN, CLOSE)

    assert bars["volume"].sum() == trades["size"].sum()
    assert (bars["low"] <= np.minimum(bars["open"], bars["close"])).all()
    assert (bars["high"] >= np.maximum(bars["open"], bars["close"])).all()
    bar = bars[len(bars) // 2]
    inside = trades[
        (trades["instrument_id"] == bar["instrument_id"])
        & (trades["ts_recv"] >= bar["ts_event"])
        & (trades["ts_recv"] < bar["ts_event"] + np.uint64(INTERVALS_NS[schema]))
    ]
    prices = inside["price"]
    assert [bar[name] for name in ("open", "close", "high", "low")] == [
        prices[0], prices[-1], prices.max(), prices.min()
    ]  # fmt: skip
    assert bar["volume"] == inside["size"].sum()


def test_a_day_without_trades_has_no_bars() -> None:
    saturday, sunday = (to_ns(datetime(2025, 6, d, tzinfo=UTC)) for d in (14, 15))
    days = TAPE.records("ohlcv-1d", saturday, sunday + 1)
    assert {from_ns(int(ts)).day for ts in days["ts_event"]} == {13}


def test_a_book_without_a_trade_has_no_ts_event() -> None:
    books, trades = TAPE.records("bbo-1s", OPEN, CLOSE), TAPE.records("trades", OPEN, CLOSE)
    untraded = books[books["ts_event"] == UNDEF_TIMESTAMP]

    assert 0 < len(untraded) < len(books)
    for row in books[::2000]:
        same = trades[trades["instrument_id"] == row["instrument_id"]]
        before = same[same["ts_recv"] < row["ts_recv"]]
        assert row["ts_event"] == (before[-1]["ts_event"] if len(before) else UNDEF_TIMESTAMP)


def test_activity_changes_the_futures_trades_only() -> None:
    busy = Tape(Market(7), activity=3.0).records("trades", OPEN, CLOSE)
    usual = TAPE.records("trades", OPEN, CLOSE)

    futures = [records[records["instrument_id"] < 300_000] for records in (usual, busy)]
    assert 2.8 < len(futures[1]) / len(futures[0]) < 3.2
    options = [records[records["instrument_id"] >= 300_000] for records in (usual, busy)]
    assert np.array_equal(options[0], options[1])


def test_monday_defines_everything_and_tuesday_new_listings() -> None:
    monday, tuesday = date(2025, 6, 9), date(2025, 6, 10)
    spans = [(to_ns(s.open), to_ns(s.close)) for s in map(sessions.session, (monday, tuesday))]
    first, second = (TAPE.records("definition", *span) for span in spans)

    assert set(first["instrument_id"].tolist()) == set(universe(market(7), monday)["instrument_id"])
    before, today = (set(universe(market(7), day)["instrument_id"]) for day in (monday, tuesday))
    assert set(second["instrument_id"].tolist()) == today - before


def test_history_and_tape_have_the_same_trades(at: Callable[..., str]) -> None:
    start, end = datetime(2025, 6, 10, 14, tzinfo=UTC), datetime(2025, 6, 10, 15, tzinfo=UTC)
    vendor = official_client(SecretStr("db-any"), at("databento"), timeout_s=20)
    store: databento.DBNStore = vendor.timeseries.get_range(
        dataset="GLBX.MDP3",
        schema="trades",
        symbols=["NQ.FUT", "Q2B.OPT"],
        stype_in="parent",
        start=start,
        end=end,
    )

    listed = universe(market(7), DAY)
    ids = listed.filter(listed["parent"].is_in(["NQ.FUT", "Q2B.OPT"]))["instrument_id"].sort()
    whole = TAPE.records("trades", to_ns(start), to_ns(end))
    assert np.array_equal(store.to_ndarray(), filter_instruments(whole, ids))
