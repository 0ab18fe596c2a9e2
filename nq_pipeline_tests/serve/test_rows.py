"""The endpoints of rows, as a client sees them: formats, points in time, parameters, SQL."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import requests

from nq_pipeline.configuration import build_settings
from nq_pipeline.lake import catalog
from nq_pipeline.lake.tables import GAPS, TRADES, conform
from nq_pipeline.serve.queries import METRICS
from nq_pipeline.settings import Settings
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.lake_samples import trade
from nq_pipeline_tests.testing.served import serve
from nq_pipeline_tests.testing.stream_samples import gap_row

ARROW, CSV, JSON = "application/vnd.apache.arrow.stream", "text/csv; charset=utf-8", "application/json"
SNAPSHOT = "2025-06-10T15:00:00Z"
MEASURED = {"gamma_levels", "market_history", "option_pricing", "series_metrics", "smile", "surface_slices"}
"""Some tables and views that one snapshot is enough for."""
Get = Callable[..., requests.Response]


@pytest.fixture
def get(address: str) -> Get:
    def ask(path: str, accept: str = "*/*", **parameters: str) -> requests.Response:
        return requests.get(
            f"http://{address}{path}", params=parameters, headers={"Accept": accept}, timeout=60
        )

    return ask


def rows(answer: requests.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_chain_is_the_same_in_every_format(get: Get, settings: Settings) -> None:
    as_arrow = pl.read_ipc_stream(io.BytesIO(get("/chain", ARROW).content))
    as_csv = pl.read_csv(get("/chain", "text/csv").content, infer_schema_length=None)
    as_json = rows(get("/chain"))
    with catalog.connect(Workspace.of(settings).lake) as connection:
        expected = catalog.chain(connection)
    assert expected.height > 100
    for name in ("contract_key", "strike", "bid", "open_interest"):
        wanted = expected[name].to_list()
        assert as_arrow[name].to_list() == as_csv[name].to_list() == [row[name] for row in as_json] == wanted
    assert as_arrow["snapshot_ts_ns"].to_list() == expected["snapshot_ts"].dt.epoch("ns").to_list()


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        ("*/*", JSON),
        ("application/json", JSON),
        ("text/csv", CSV),
        ("text/html, application/*;q=0.8", JSON),
        (f"text/csv;q=0.2, {ARROW};q=0.9", ARROW),
        ("text/csv;q=0, */*;q=0.1", JSON),
        ("text/csv;q=much, */*;q=0.1", JSON),
    ],
)
def test_the_header_accept_chooses_the_format(get: Get, accept: str, media: str) -> None:
    assert get("/gaps", accept).headers["Content-Type"] == media


def test_the_parameter_format_wins(get: Get) -> None:
    assert get("/gaps", "text/csv", format="arrow").headers["Content-Type"] == ARROW
    assert get("/gaps", format="xml").status_code == 406
    assert get("/gaps", "image/png").status_code == 406


def test_a_chain_has_nothing_later_than_its_moment(get: Get) -> None:
    assert rows(get("/chain", as_of="2025-06-10T14:59:59Z")) == []
    whole = rows(get("/chain", as_of=SNAPSHOT))
    assert len(whole) == len(rows(get("/chain")))
    assert len(rows(get("/chain", as_of=SNAPSHOT, newest_per_contract="true"))) == len(whole)
    series = whole[0]["series"]
    assert {row["series"] for row in rows(get("/chain", series=series))} == {series}
    assert len(rows(get("/chain", limit="3"))) == 3


def test_trades_of_the_newest_day_and_of_a_span(get: Get) -> None:
    assert [row["size"] for row in rows(get("/trades"))] == [5, 2, 1]
    late = rows(get("/trades", **{"from": "2025-06-10T14:41:00Z", "to": "2025-06-10T15:00:00Z"}))
    assert [row["size"] for row in late] == [1]
    assert len(rows(get("/trades", as_of="2025-06-10T14:41:00Z"))) == 2
    assert rows(get("/trades", trade_date="2025-06-09")) == []


def test_gaps_have_their_state_of_a_moment(get: Get) -> None:
    assert [row["state"] for row in rows(get("/gaps"))] == ["verified", "open"]
    assert rows(get("/gaps", as_of="2025-06-30T00:00:00Z")) == []


@pytest.mark.parametrize("name", METRICS)
def test_every_computed_table_is_served(get: Get, name: str) -> None:
    newest = rows(get(f"/metrics/{name}"))
    assert rows(get(f"/metrics/{name}", as_of="2025-06-10T14:59:59Z")) == []
    assert rows(get(f"/metrics/{name}", **{"from": SNAPSHOT, "to": "2025-06-10T15:00:01Z"})) == newest
    assert newest or name not in MEASURED


def test_the_surface_is_the_fitted_slices(get: Get) -> None:
    assert rows(get("/surface")) == rows(get("/metrics/surface_slices")) != []


@pytest.mark.parametrize(
    ("path", "parameters", "word"),
    [
        ("/chain", {"as_of": "yesterday"}, "as_of"),
        ("/chain", {"as_of": "2025-06-10T15:00:00"}, "time zone"),
        ("/chain", {"newest_per_contract": "true"}, "as_of"),
        ("/chain", {"strike": "1"}, "strike"),
        ("/chain", {"limit": "many"}, "limit"),
        ("/chain", {"limit": "-1"}, "limit"),
        ("/chain", {"limit": str(1 << 63)}, "limit"),
        ("/metrics/gamma_levels", {"series": "Q1B-2025-07-01"}, "product, source"),
        ("/surface", {"product": "NQ"}, "series, source"),
        ("/metrics/gamma_levels", {"as_of": SNAPSHOT, "from": SNAPSHOT}, "from"),
        ("/chain", {"series": "x' OR 'a'='a"}, "Q1B-2025-07-01"),
        ("/trades", {"series": "Q1B-2025-7-1"}, "Q1B-2025-07-01"),
    ],
)
def test_a_wrong_parameter_is_named(get: Get, path: str, parameters: dict[str, str], word: str) -> None:
    answer = get(path, **parameters)
    assert answer.status_code == 400 and word in answer.json()["error"]


@pytest.mark.parametrize(
    ("path", "parameters", "near"),
    [
        ("/chain", {"series": "Q2B-2025-06-11"}, "Q2B-2025-06-10"),
        ("/chain", {"series": "Q2B-2025-06-11", "as_of": SNAPSHOT}, "Q2B-2025-06-10"),
        ("/trades", {"series": "ABC-2025-06-10"}, "Q2B-2025-06-10"),
        ("/trades", {"product": "nq"}, "NQ"),
        ("/surface", {"source": "tradovat"}, "tradovate"),
        ("/metrics/gamma_levels", {"product": "NQM5"}, "NQ"),
        ("/chain", {"source": "' OR 'a'='a"}, "leave it out"),
    ],
)
def test_a_name_that_does_not_exist_is_an_error(
    get: Get, path: str, parameters: dict[str, str], near: str
) -> None:
    answer = get(path, **parameters)
    assert answer.status_code == 404, answer.text
    assert near in answer.json()["error"].partition(";")[2]


@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        ("/chain", {"series": "Q1B-2030-07-02"}),
        ("/metrics/smile", {"series": "nq-2030-06-21"}),
        ("/trades", {"product": "ES"}),
        ("/metrics/gamma_levels", {"product": "NDX"}),
        ("/chain", {"source": "databento"}),
    ],
)
def test_a_name_without_rows_is_an_answer_without_rows(
    get: Get, path: str, parameters: dict[str, str]
) -> None:
    assert rows(get(path, **parameters)) == []


def test_a_series_that_only_the_lake_knows_is_known(get: Get, settings: Settings) -> None:
    row = trade(9, "Z", 21_500.0) | {"root": "ZZZ", "series": "ZZZ-2025-06-11"}
    Workspace.of(settings).lake.append(TRADES, conform(TRADES, pl.DataFrame([row])), run_id="run")
    assert rows(get("/trades", series="ZZZ-2025-06-11", trade_date="2025-06-09")) == []
    assert "ZZZ-2025-06-11" in get("/trades", series="ZZZ-2025-06-12").json()["error"]


def test_sql_is_read_only(get: Get, address: str) -> None:
    query = "select count(*) as n from option_chain"
    (row,) = rows(get("/sql", query=query))
    posted = requests.post(f"http://{address}/sql", data=query, headers={"Accept": ARROW}, timeout=60)
    assert pl.read_ipc_stream(io.BytesIO(posted.content))["n"].to_list() == [row["n"]]
    for statement in (
        "drop view option_chain",
        "select * from read_csv('/etc/passwd')",
        "copy (select 1) to '/tmp/x.csv'",
        "select 1; select 2",
        "select nothing",
        "",
    ):
        assert get("/sql", query=statement).status_code == 400, statement
    assert requests.post(f"http://{address}/sql", data="x" * 200_000, timeout=60).status_code == 413
    no_text = requests.post(f"http://{address}/sql", data=b"\xff", timeout=60)
    assert no_text.status_code == 400 and "UTF-8" in no_text.json()["error"]


def test_json_is_compressed_and_arrow_is_not(get: Get) -> None:
    answer = get("/chain")
    assert answer.headers["Content-Encoding"] == "gzip"
    assert {"Accept", "Accept-Encoding"} <= set(answer.headers["Vary"].split(", "))
    assert "Content-Encoding" not in get("/chain", ARROW).headers


def test_a_head_has_no_body(address: str) -> None:
    head = requests.head(f"http://{address}/chain?format=csv", headers={"Accept-Encoding": ""}, timeout=60)
    assert head.status_code == 200 and head.content == b"" and int(head.headers["Content-Length"]) > 1_000


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nothing", 404), ("DELETE", "/chain", 405), ("PUT", "/sql", 405)]
)
def test_every_error_is_json(address: str, method: str, path: str, status: int) -> None:
    answer = requests.request(method, f"http://{address}{path}", timeout=60)
    assert answer.status_code == status and answer.json()["error"]
    assert ("Allow" in answer.headers) == (status == 405)
    assert status != 404 or "/nothing; / lists every path" in answer.json()["error"]


def test_a_damaged_table_is_an_error_of_the_server(tmp_path: Path) -> None:
    settings = build_settings(data_dir=tmp_path)
    append_gap(settings, 1)
    for file in Workspace.of(settings).lake.root.glob("gaps/**/*.parquet"):
        file.write_bytes(b"damaged")
    with serve(settings) as address:
        for path, status in (("/gaps", 500), ("/trades", 200), ("/sql?query=from+gaps", 400)):
            answer = requests.get(f"http://{address}{path}", timeout=60)
            assert answer.status_code == status, answer.text
            assert status == 200 or "gaps" in answer.json()["error"]


def append_trade(settings: Settings, number: int) -> None:
    rows = conform(TRADES, pl.DataFrame([trade(number, "NQM5", 21_500.0)]))
    Workspace.of(settings).lake.append(TRADES, rows, run_id="run")


def append_gap(settings: Settings, number: int) -> None:
    rows = conform(GAPS, pl.DataFrame([gap_row(number)]))
    Workspace.of(settings).lake.append(GAPS, rows, run_id="run")


def test_an_answer_that_has_not_changed_is_not_sent_again(get: Get, settings: Settings, address: str) -> None:
    def again(path: str, tag: str, **headers: str) -> int:
        headers |= {"If-None-Match": f'W/"other", {tag}'}
        return requests.get(f"http://{address}{path}", headers=headers, timeout=60).status_code

    tag = get("/trades").headers["ETag"]
    assert tag == get("/trades").headers["ETag"]
    assert [again("/trades", tag), again("/trades?limit=1", tag), again("/chain", tag)] == [304, 200, 200]
    assert again("/trades", tag, Accept="text/csv") == 200
    append_trade(settings, 1)
    assert again("/trades", tag) == 200


def test_answers_follow_the_lake(get: Get, settings: Settings) -> None:
    before = len(rows(get("/trades", trade_date="2025-07-01")))
    append_trade(settings, 2)
    assert len(rows(get("/trades", trade_date="2025-07-01"))) == before + 1
