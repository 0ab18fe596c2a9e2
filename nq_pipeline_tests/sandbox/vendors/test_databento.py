"""Databento's stand-in, used by the official client over a real socket."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import requests
from databento.common.error import BentoClientError, BentoError, BentoServerError

from nq_pipeline.market.listing import expirations
from nq_pipeline.sandbox.synthetic.market import market
from nq_pipeline_tests.testing.vendor_clients import (
    DATABENTO_PARAMS,
    DATABENTO_SPANS,
    NOON,
    databento_client,
    databento_range,
)

Address = Callable[..., str]


def refused(url: str, **more: Any) -> dict[str, Any]:
    with pytest.raises(BentoClientError) as caught:
        databento_range(url, "trades", **more)
    detail: dict[str, Any] = (caught.value.json_body or {})["detail"]
    return {"status": caught.value.http_status, **detail}


def test_metadata_endpoints(at: Address) -> None:
    metadata = databento_client(at("databento")).metadata
    assert metadata.list_datasets() == ["GLBX.MDP3"]
    assert set(metadata.list_schemas("GLBX.MDP3")) >= set(DATABENTO_SPANS)
    assert metadata.list_publishers()[0]["dataset"] == "GLBX.MDP3"
    prices = {one["mode"]: one["unit_prices"] for one in metadata.list_unit_prices("GLBX.MDP3")}
    assert prices["historical"]["trades"] == 28.0
    assert {"name": "raw_symbol", "type": "char"} in metadata.list_fields("definition", "dbn")
    reach = metadata.get_dataset_range("GLBX.MDP3")
    assert reach["end"] == reach["schema"]["bbo-1m"]["end"] == "2025-06-10T15:00:00.000000001Z"
    days = metadata.get_dataset_condition("GLBX.MDP3", "2025-06-06", "2025-06-10")
    assert [day["date"][-2:] for day in days] == ["06", "08", "09", "10"]


@pytest.mark.parametrize("schema", DATABENTO_SPANS)
def test_count_size_and_cost_are_those_of_the_answer(schema: str, at: Address) -> None:
    metadata = databento_client(at("databento")).metadata
    params = {**DATABENTO_PARAMS, **DATABENTO_SPANS[schema], "schema": schema}
    array = databento_range(at("databento"), schema).to_ndarray()
    assert len(array) > 0
    assert metadata.get_record_count(**params) == len(array)
    assert metadata.get_billable_size(**params) == array.nbytes
    price = metadata.list_unit_prices("GLBX.MDP3")[0]["unit_prices"][schema]
    assert metadata.get_cost(**params) == pytest.approx(array.nbytes / 2**30 * price)


@pytest.mark.parametrize("schema", DATABENTO_SPANS)
def test_every_record_has_a_symbol_and_is_within_the_query(schema: str, at: Address) -> None:
    frame = databento_range(at("databento"), schema).to_df()
    assert frame["symbol"].notna().all()
    start = np.datetime64(str(DATABENTO_SPANS[schema]["start"]).removesuffix("Z"))
    received = pd.DatetimeIndex(frame.index).tz_localize(None).to_numpy()
    assert received.min() >= start and received.max() < np.datetime64(NOON[:-1])
    assert frame.index.is_monotonic_increasing


def test_definitions_are_the_listed_contracts_and_spreads(at: Address) -> None:
    frame = databento_range(at("databento"), "definition").to_df()
    options = frame[frame["instrument_class"].isin(["C", "P"])]
    listed = market(7).listed(datetime(2025, 6, 10).date()).filter(pl.col("root") == "Q2B")
    assert sorted(options["raw_symbol"]) == sorted(listed["raw_symbol"])
    assert set(options["unit_of_measure_qty"]) == {20.0}
    assert sorted(frame[frame["instrument_class"] == "F"]["raw_symbol"])[:2] == ["NQH6", "NQM5"]
    spread = frame[frame["instrument_class"] == "T"]
    assert list(spread["leg_index"]) == [0, 1] and set(spread["user_defined_instrument"]) == {"Y"}


def test_all_roots_together_define_ten_thousand_contracts(at: Address) -> None:
    roots = sorted(
        {s.root for s in expirations("NQ", datetime(2025, 6, 10).date(), datetime(2025, 7, 31).date())}
    )
    frame = databento_range(
        at("databento"), "definition", symbols=[f"{root}.OPT" for root in roots]
    ).to_ndarray()
    assert len(frame) >= 10_000


def test_quotes_are_changed_books_up_to_now(at: Address) -> None:
    store = databento_range(
        at("databento"), "bbo-1m", end=int(np.datetime64(NOON[:-1], "ns").astype(int)) + 1
    )
    frame = store.to_df(price_type="float").reset_index()
    stamps = sorted(frame["ts_recv"].unique())
    assert len(stamps) == 11 and str(stamps[-1]) == "2025-06-10 15:00:00+00:00"
    book = ["bid_px_00", "ask_px_00", "bid_sz_00", "ask_sz_00"]
    ordered = frame.sort_values(["symbol", "ts_recv"])
    unchanged = (ordered.groupby("symbol")[book].shift() == ordered[book]).all(axis=1)
    assert not unchanged[ordered["symbol"].str.startswith("Q2B")].any()
    truth = market(7).chain(datetime(2025, 6, 10, 15, tzinfo=UTC)).filter(pl.col("root") == "Q2B")
    last = frame[frame["ts_recv"] == stamps[-1]].set_index("symbol")
    both = truth.filter(pl.col("raw_symbol").is_in(list(last.index)))
    assert both.height > 0.9 * truth["ask"].count()
    shown = last.loc[both["raw_symbol"].to_list(), ["bid_px_00", "ask_px_00"]].to_numpy()
    expected = both.select("bid", "ask").cast(pl.Float64).to_numpy()
    assert np.array_equal(shown, expected, equal_nan=True)


def test_statistics_are_preliminary_then_final(at: Address) -> None:
    frame = databento_range(at("databento"), "statistics").to_df().reset_index()
    settlements = frame[frame["stat_type"] == 3]
    assert sorted(set(settlements["stat_flags"])) == [2, 3]
    assert {str(day.date()) for day in settlements["ts_ref"]} == {"2025-06-09"}
    assert [str(at) for at in sorted(settlements["ts_recv"].unique())] == [
        "2025-06-09 20:30:00+00:00",  # half an hour after they are made
        "2025-06-09 22:30:00+00:00",
    ]
    interest = frame[frame["stat_type"] == 9]
    assert [str(at) for at in sorted(interest["ts_recv"].unique())] == [
        "2025-06-10 01:00:00+00:00",
        "2025-06-10 14:00:00+00:00",
    ]
    assert not frame["stat_type"].isin([14, 15]).any()


def test_an_account_lists_its_requests_and_their_billing(at: Address) -> None:
    vendor = databento_client(at("databento"), "db-another")
    params = {**DATABENTO_PARAMS, **DATABENTO_SPANS["trades"], "schema": "trades"}
    size = vendor.metadata.get_billable_size(**params)
    vendor.timeseries.get_range(**params)
    vendor.batch.submit_job(**params)
    requested = requests.get(f"{at('databento')}/requests", auth=("db-another", "")).json()
    assert [(one["request"], one["metered"], one["billed_bytes"]) for one in requested] == [
        ("metadata.get_billable_size", False, 0),
        ("timeseries.get_range", True, size),
        ("batch.submit_job", True, size),
    ]
    assert requests.get(f"{at('databento')}/requests", auth=("db-nobody", "")).json() == []


def test_limits_and_raw_symbols(at: Address) -> None:
    url = at("databento")
    assert len(databento_range(url, "trades", limit=3).to_ndarray()) == 3
    first = databento_range(url, "definition").to_df().iloc[0]
    by_symbol = databento_range(url, "definition", stype_in="raw_symbol", symbols=first["raw_symbol"]).to_df()
    assert list(by_symbol["instrument_id"]) == [first["instrument_id"]]


def test_resolved_symbols_have_their_status(at: Address) -> None:
    def resolve(symbols: list[str]) -> Any:
        return databento_client(at("databento")).symbology.resolve(
            dataset="GLBX.MDP3", symbols=symbols, stype_in="parent", stype_out="instrument_id",
            start_date="2025-06-10", end_date="2025-06-11",
        )  # fmt: skip

    assert (resolve(["Q2B.OPT"])["status"], resolve(["Q2B.OPT", "XX.OPT"])["status"]) == (0, 1)
    assert resolve(["Q2B.OPT", "XX.OPT"])["result"]["XX.OPT"] == []
    assert databento_range(at("databento"), "trades", symbols=["Q2B.OPT", "XX.OPT"]).metadata.not_found == [
        "XX.OPT"
    ]


@pytest.mark.parametrize(
    ("more", "case"),
    [
        ({"end": "2025-06-10T15:01:00Z"}, "data_end_after_available_end"),
        ({"start": NOON}, "data_time_range_start_on_or_after_end"),
        ({"symbols": ["XX.OPT"]}, "symbology_invalid_request"),
        ({"start": "2025-06-07", "end": "2025-06-08"}, "symbology_invalid_request"),  # a Saturday
        ({"dataset": "XNAS.ITCH"}, "dataset_invalid"),
        ({"start": "soon"}, "data_time_range_invalid"),
    ],
)
def test_an_unanswerable_query_is_refused_with_its_case(more: Any, case: str, at: Address) -> None:
    detail = refused(at("databento"), **more)
    assert (detail["status"], detail["case"]) == (422, case)
    if "available" in case:
        assert detail["payload"]["available_end"] == "2025-06-10T15:00:00.000000001Z"


def test_a_day_of_quotes_times_out(at: Address) -> None:
    with pytest.raises(BentoServerError, match="504"):
        databento_range(at("databento"), "bbo-1m", start="2025-06-10")


def test_requests_need_a_key(at: Address) -> None:
    reply = requests.get(at("databento") + "/v0/metadata.list_datasets", timeout=60)
    assert (reply.status_code, reply.json()) == (401, {"detail": "Authentication failed."})


@pytest.mark.parametrize(
    ("fault", "status", "case"),
    [
        ("blocked", 403, "auth_account_locked"),
        ("challenged", 403, "auth_account_locked"),
        ("rate_limited", 429, "rate_limit_exceeded"),
        ("penalty", 429, "rate_limit_exceeded"),
        ("not_entitled", 422, "dataset_unavailable_range"),
    ],
)
def test_faults_in_the_vendors_own_words(fault: str, status: int, case: str, at: Address) -> None:
    detail = refused(at("databento", fault=fault))
    assert (detail["status"], detail["case"]) == (status, case)


@pytest.mark.parametrize("fault", ["truncated", "wrong_content_type"])
def test_faults_of_the_wire_break_the_download(fault: str, at: Address) -> None:
    with pytest.raises(BentoError):
        databento_range(at("databento", fault=fault), "trades")


def test_an_unavailable_server_is_a_server_error(at: Address) -> None:
    with pytest.raises(BentoServerError):
        databento_range(at("databento", fault="unavailable"), "trades")


def test_empty_stale_and_malformed_answers_are_valid_dbn(at: Address) -> None:
    assert len(databento_range(at("databento", fault="empty"), "trades").to_ndarray()) == 0
    reach = databento_client(at("databento", fault="stale")).metadata.get_dataset_range("GLBX.MDP3")
    assert reach["end"].startswith("2025-05-31T15:00:00")
    good = databento_range(at("databento"), "definition").to_ndarray()
    bad = databento_range(at("databento", fault="malformed"), "definition").to_ndarray()
    assert 0.02 < (good != bad).mean() < 0.08
