"""One tape behind all schemas: what history says agrees with itself and with what is streamed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import databento
import numpy as np
import pandas as pd
import pytest
from databento.common.error import BentoClientError

from nq_pipeline.clock import to_ns
from nq_pipeline.dbn.columns import is_defined
from nq_pipeline.dbn.layout import RTYPES, Array
from nq_pipeline.dbn.stream import decode
from nq_pipeline.sandbox.synthetic.instruments import universe
from nq_pipeline.sandbox.synthetic.market import market
from nq_pipeline.sandbox.synthetic.tape import filter_instruments, tape
from nq_pipeline_tests.testing.databento_answers import recorded, synthetic
from nq_pipeline_tests.testing.vendor_clients import NOON, databento_client

Address = Callable[..., str]
START, END = datetime(2025, 6, 10, 14, tzinfo=UTC), datetime(2025, 6, 10, 14, 30, tzinfo=UTC)
DATA = "trades", "mbp-1", "tbbo", "mbo", "bbo-1s", "bbo-1m"
"""Schemas that history and the gateway have alike, record by record."""
PARENTS = ["NQ.FUT", "Q2B.OPT"]


def range_params(schema: str, **more: Any) -> dict[str, Any]:
    span = {"start": START, "end": END}
    return {
        "dataset": "GLBX.MDP3",
        "schema": schema,
        "symbols": PARENTS,
        "stype_in": "parent",
        **span,
        **more,
    }


def ask(url: str, schema: str, **more: Any) -> databento.DBNStore:
    store: databento.DBNStore = databento_client(url).timeseries.get_range(**range_params(schema, **more))
    return store


@pytest.mark.parametrize("schema", DATA)
def test_history_has_what_the_gateway_streams(schema: str, at: Address) -> None:
    listed = universe(market(7), START.date())
    ids = listed.filter(listed["parent"].is_in(PARENTS))["instrument_id"].sort()
    # A short span, since the gateway has the quotes of all contracts.
    end = START + timedelta(minutes=2 if schema == "bbo-1m" else 30)
    streamed = tape(market(7)).records(schema, to_ns(START), to_ns(end))
    bought = ask(at("databento"), schema, end=end).to_ndarray()
    assert len(bought) > 50
    assert np.array_equal(bought, filter_instruments(streamed, ids))


@pytest.mark.parametrize("schema", ["mbp-1", "tbbo", "mbo", "bbo-1s", "ohlcv-1s", "ohlcv-1h"])
def test_count_and_size_are_those_of_the_answer(schema: str, at: Address) -> None:
    metadata, array = databento_client(at("databento")).metadata, ask(at("databento"), schema).to_ndarray()
    assert metadata.get_record_count(**range_params(schema)) == len(array) > 0
    assert metadata.get_billable_size(**range_params(schema)) == array.nbytes
    assert set(array["rtype"]) == {RTYPES[schema]}


def test_all_schemas_have_the_same_trades(at: Address) -> None:
    url = at("databento")
    trades = ask(url, "trades").to_ndarray()
    for schema in ("mbp-1", "tbbo", "mbo"):
        among = ask(url, schema).to_ndarray()
        among = among[among["action"] == b"T"]
        for name in ("instrument_id", "ts_event", "ts_recv", "sequence", "price", "size", "side"):
            assert np.array_equal(among[name], trades[name]), (schema, name)


@pytest.mark.parametrize(("schema", "step"), [("ohlcv-1s", "1s"), ("ohlcv-1m", "1min"), ("ohlcv-1h", "1h")])
def test_bars_are_those_that_begin_within_the_query(schema: str, step: str, at: Address) -> None:
    url = at("databento")
    bars = ask(url, schema, end=END).to_df(map_symbols=False)
    trades = ask(url, "trades", end=START + timedelta(hours=1)).to_df(map_symbols=False)
    made = trades.groupby(["instrument_id", pd.DatetimeIndex(trades.index).floor(step)])
    expected = made["price"].agg(["first", "max", "min", "last"]).join(made["size"].sum())
    got = bars.set_index("instrument_id", append=True).swaplevel().sort_index()
    expected = expected[expected.index.get_level_values(1) < END]
    assert np.array_equal(got[["open", "high", "low", "close", "volume"]], expected)
    assert list(got.index) == list(expected.index)


def test_an_unfinished_bar_is_absent(at: Address) -> None:
    hours = ask(at("databento"), "ohlcv-1h", end=NOON, symbols="NQ.FUT").to_df()
    assert {str(stamp) for stamp in hours.index} == {"2025-06-10 14:00:00+00:00"}
    early = at("databento", now="2025-06-10T14:59:59Z")
    assert ask(early, "ohlcv-1h", end=END, symbols="NQ.FUT").to_df().empty
    days = ask(at("databento"), "ohlcv-1d", start="2025-06-09", end=NOON, symbols="NQ.FUT").to_df()
    assert {str(stamp.date()) for stamp in days.index} == {"2025-06-09"}


# ── symbols ─────────────────────────────────────────────────────────────────────────────────────


def test_queries_by_instrument_id(at: Address) -> None:
    url = at("databento")
    by_symbol = ask(url, "tbbo", symbols="NQM5", stype_in="raw_symbol")
    number = int(by_symbol.to_ndarray()["instrument_id"][0])

    by_id = ask(url, "tbbo", symbols=[number], stype_in="instrument_id", stype_out="raw_symbol")

    assert np.array_equal(by_id.to_ndarray(), by_symbol.to_ndarray())
    assert set(by_id.to_df()["symbol"]) == {"NQM5"}


def test_a_continuous_symbol_rolls_to_the_next_future(at: Address) -> None:
    url = at("databento", now="2025-06-25T00:00:00Z")
    vendor = databento_client(url)
    answer = vendor.symbology.resolve(
        dataset="GLBX.MDP3", symbols=["NQ.c.0", "NQ.v.1", "ZZ.c.0"], stype_in="continuous",
        stype_out="instrument_id", start_date="2025-06-20", end_date="2025-06-24",
    )  # fmt: skip
    spans = {symbol: [tuple(run.values()) for run in runs] for symbol, runs in answer["result"].items()}
    assert spans == {
        "NQ.c.0": [("2025-06-20", "2025-06-22", "202506"), ("2025-06-22", "2025-06-24", "202509")],
        "NQ.v.1": [("2025-06-20", "2025-06-22", "202509"), ("2025-06-22", "2025-06-24", "202512")],
        "ZZ.c.0": [],
    }
    assert (answer["status"], answer["not_found"]) == (1, ["ZZ.c.0"])

    span = {"start": "2025-06-20", "end": "2025-06-24"}
    lead = ask(url, "definition", symbols="NQ.c.0", stype_in="continuous", **span).to_df()

    assert set(lead["symbol"]) == {"NQ.c.0"}
    days = [str(stamp.date()) for stamp in lead.index]
    assert list(zip(days, lead["raw_symbol"], strict=True)) == [
        ("2025-06-20", "NQM5"), ("2025-06-22", "NQU5"), ("2025-06-23", "NQU5")
    ]  # fmt: skip


def test_a_continuous_symbol_has_the_trades_of_its_future(at: Address) -> None:
    url = at("databento")
    lead = ask(url, "trades", symbols=["NQ.c.0", "NQ.n.0"], stype_in="continuous")
    assert np.array_equal(
        lead.to_ndarray(), ask(url, "trades", symbols="NQM5", stype_in="raw_symbol").to_ndarray()
    )


def test_symbols_resolve_both_ways(at: Address) -> None:
    def resolve(symbols: Any, stype_in: str, stype_out: str) -> Any:
        return databento_client(at("databento")).symbology.resolve(
            dataset="GLBX.MDP3", symbols=symbols, stype_in=stype_in, stype_out=stype_out,
            start_date="2025-06-10", end_date="2025-06-11",
        )  # fmt: skip

    there = resolve("NQM5", "raw_symbol", "instrument_id")["result"]["NQM5"][0]["s"]
    assert resolve([there], "instrument_id", "raw_symbol")["result"][there][0]["s"] == "NQM5"
    nothing = resolve(["NOPE"], "raw_symbol", "instrument_id")
    assert (nothing["status"], nothing["message"]) == (2, "Not found")
    for pair in (("parent", "raw_symbol"), ("continuous", "raw_symbol"), ("raw_symbol", "continuous")):
        with pytest.raises(BentoClientError, match="symbology_invalid_request"):
            resolve("NQ.FUT", *pair)


@pytest.mark.parametrize("schema", ["mbp-10", "status", "imbalance"])
def test_a_missing_schema_is_refused_and_not_listed(schema: str, at: Address) -> None:
    assert schema not in databento_client(at("databento")).metadata.list_schemas("GLBX.MDP3")
    with pytest.raises(BentoClientError, match="data_schema_not_supported"):
        ask(at("databento"), schema)


def test_an_instant_with_an_offset_is_that_instant(at: Address) -> None:
    there = pd.Timestamp(START).tz_convert("America/Chicago")
    here = ask(at("databento"), "trades", start=there).to_ndarray()
    assert np.array_equal(here, ask(at("databento"), "trades").to_ndarray())


SET_BY_CLASS = (
    "min_price_increment", "min_price_increment_amount", "unit_of_measure_qty", "strike_price",
    "contract_multiplier", "decay_start_date", "maturity_day", "main_fraction", "sub_fraction",
    "price_display_format", "contract_multiplier_unit", "flow_schedule_type",
)  # fmt: skip
"""Fields of a definition that the exchange sets or leaves undefined by the class of the instrument."""


def test_definitions_set_the_fields_that_recorded_ones_set(shared: Path) -> None:
    def which_set(records: Array) -> dict[bytes, dict[str, set[bool]]]:
        return {
            kind: {name: set(is_defined(of_kind[name]).tolist()) for name in SET_BY_CLASS}
            for kind in (b"C", b"P", b"F", b"T")
            if len(of_kind := records[records["instrument_class"] == kind])
        }

    recordings = (decode(body, schema).array for body, schema in recorded(shared, "definition"))
    ours = which_set(decode(synthetic("definition"), "definition").array)
    seen = set()
    for records in recordings:
        for kind, names in which_set(records).items():
            assert ours[kind] == names
            seen.add(kind)
    assert seen == ours.keys()


def test_a_book_has_no_more_orders_than_contracts(at: Address) -> None:
    for schema in ("bbo-1m", "mbp-1"):
        end = START + timedelta(minutes=2)
        books = ask(at("databento"), schema, end=end).to_ndarray()
        for side in ("bid", "ask"):
            orders, size = books[f"{side}_ct_00"], books[f"{side}_sz_00"]
            assert len(size) and np.all(orders <= size) and np.array_equal(orders == 0, size == 0)
