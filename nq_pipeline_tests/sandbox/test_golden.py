"""A seed and an instant give the same market, byte for byte, in every version; old lakes rest on it."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import pytest
import requests
import zstandard
from websockets.sync.client import connect

from nq_pipeline.clock import NS_PER_S, to_ns
from nq_pipeline.sandbox.synthetic.market import market
from nq_pipeline.sandbox.synthetic.tape import tape
from nq_pipeline_tests.testing.load_tape import LoadTape

OPEN, CLOSED = "2025-06-10T15:00:00Z", "2025-06-10T22:30:00Z"
NOON_NS = to_ns(datetime(2025, 6, 10, 15, tzinfo=UTC))
DATABENTO_KEY, POLYGON_KEY = ("db-golden", ""), {"Authorization": "Bearer golden"}


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


@pytest.mark.parametrize(
    ("options", "symbols", "expected"),
    [
        (f"now={OPEN}", "MC2M25,NQM25,MQ4M25", "aa1ab76295fdadd2"),
        (f"now={CLOSED}", "MC2M25,NQM25", "00967398806cd5e8"),
        (f"now={OPEN};products=NQ,ES,GC", "ESM25,ESU25,GCQ25,OGN25,NQM25", "28b86fdb7d8607d3"),
        (f"now={OPEN};fault=malformed", "MC2M25", "51043bdced69e410"),
    ],
)
def test_barchart_sends_the_same_boards(root: str, options: str, symbols: str, expected: str) -> None:
    base, bodies = f"{root}/with/{options}/barchart", []
    headers = {"sec-fetch-site": "same-origin"}
    api = f"{base}/proxies/core-api/v1/quotes/get"
    params = {"raw": "1", "groupBy": "optionType", "meta": "field.shortName,field.type"}
    for symbol in symbols.split(","):
        bodies.append(
            requests.get(api, params={**params, "symbol": symbol}, headers=headers, timeout=60).content
        )
        bodies.append(requests.get(f"{base}/futures/quotes/NQM25/options/{symbol}", timeout=60).content)
    futures = {**params, "symbol": "NQ^F"}
    bodies.append(requests.get(api, params=futures, headers=headers, timeout=60).content)
    assert digest(*bodies) == expected


@pytest.mark.parametrize(
    ("options", "underlying", "expected"),
    [
        (f"now={OPEN}", "I:NDX", "e2a9eb8035897d53"),
        (f"now={OPEN}", "QQQ", "64bcb2dfcd65ca1d"),
        (f"now={CLOSED}", "I:NDX", "f264caa0384764f5"),
        (f"now={OPEN};products=NQ,ES", "I:SPX", "89c40f0c8774c243"),
        (f"now={OPEN};fault=malformed", "QQQ", "734f996892305a7b"),
    ],
)
def test_polygon_sends_the_same_chain(root: str, options: str, underlying: str, expected: str) -> None:
    base = f"{root}/with/{options}/polygon"
    chain = f"{base}/v3/snapshot/options/{underlying}"
    contracts = f"{base}/v3/reference/options/contracts"
    pages = [
        requests.get(chain, params={"limit": "250", "order": "desc"}, headers=POLYGON_KEY, timeout=60),
        requests.get(chain, params={"limit": "250", "sort": "strike_price"}, headers=POLYGON_KEY, timeout=60),
        requests.get(
            contracts,
            params={"limit": "1000", "underlying_ticker": underlying.removeprefix("I:")},
            headers=POLYGON_KEY,
            timeout=60,
        ),
    ]
    assert digest(*(canonical(page.json()["results"]) for page in pages)) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (f"now={OPEN}", "4c4383c1e335ec61"),
        (f"now={CLOSED};products=NQ,GC", "81e1fb99c8fa9b9b"),
        (f"now={OPEN};fault=malformed", "6265801042514af0"),
    ],
)
def test_tradovate_sends_the_same_library_and_quotes(root: str, options: str, expected: str) -> None:
    base = f"{root}/with/{options}/tradovate/v1"
    login = {"name": "golden", "password": "golden"}
    token = requests.post(f"{base}/auth/accesstokenrequest", json=login, timeout=60).json()["accessToken"]

    def get(path: str, **params: str) -> Any:
        headers = {"Authorization": f"Bearer {token}"}
        return requests.get(f"{base}/{path}", params=params, headers=headers, timeout=60).json()

    bodies = [get("product/list")]
    for product in bodies[0][:6]:
        maturities = get("contractMaturity/deps", masterid=str(product["id"]))
        bodies += [
            maturities,
            get("contract/ldeps", masterids=",".join(str(m["id"]) for m in maturities[:2])),
        ]
    bodies.append(get("contract/suggest", t="NQ", l="5"))
    with connect(base.replace("http:", "ws:") + "/websocket") as feed:
        feed.send(f"authorize\n1\n\n{token}")
        for number, name in enumerate(("NQM5", "Q2CM5 C22600", "Q2CM5 P21000"), start=2):
            feed.send(f"md/subscribeQuote\n{number}\n\n" + json.dumps({"symbol": name}))
        frames: list[str] = []
        while len(frames) < 2 + 3 * 3:
            frame = str(feed.recv(timeout=60))
            frames += [] if frame == "h" else [frame]
    assert digest(canonical(bodies), *(frame.encode() for frame in frames)) == expected


@pytest.mark.parametrize(
    ("schema", "stype_in", "symbols", "start", "end", "options", "expected"),
    [
        ("definition", "parent", "Q2B.OPT,NQ.FUT,NQ.OPT", "2025-06-10", "2025-06-11", "", "016428827e4fab1d"),
        ("statistics", "parent", "Q2B.OPT,NQ.FUT", "2025-06-09", "2025-06-11", "", "64c07c1315f897b4"),
        ("mbo", "parent", "Q2B.OPT,NQ.FUT", "2025-06-10T14:30", "2025-06-10T14:40", "", "ba800bf1df817a4f"),
        ("mbp-1", "parent", "Q2B.OPT,NQ.FUT", "2025-06-10T14:30", "2025-06-10T14:40", "", "eb0c19fba4659ce2"),
        (
            "tbbo",
            "continuous",
            "NQ.c.0,NQ.v.1",
            "2025-06-10T14:30",
            "2025-06-10T14:40",
            "",
            "45c026ce86a5a485",
        ),
        (
            "trades",
            "raw_symbol",
            "ALL_SYMBOLS",
            "2025-06-10T14:30",
            "2025-06-10T14:40",
            "",
            "aef49563a24dea43",
        ),
        (
            "bbo-1s",
            "parent",
            "Q2C.OPT,NQ.FUT",
            "2025-06-10T14:30",
            "2025-06-10T14:40",
            "",
            "1f92f4eb7d5562a7",
        ),
        (
            "bbo-1m",
            "parent",
            "Q2C.OPT,NQ.FUT",
            "2025-06-10T14:30",
            "2025-06-10T14:40",
            "",
            "9bd54307e72f8353",
        ),
        (
            "ohlcv-1m",
            "parent",
            "NQ.OPT,NQ.FUT",
            "2025-06-10T14:30",
            "2025-06-10T15:00",
            "",
            "07c5253b56a0878f",
        ),
        ("ohlcv-1h", "raw_symbol", "NQM5", "2025-06-10T10:00", "2025-06-10T15:00", "", "7aba266f466ad29d"),
        ("ohlcv-1d", "parent", "NQ.FUT", "2025-06-09", "2025-06-10", "", "c4e2799ad850c15a"),
        (
            "trades",
            "parent",
            "NQ.FUT",
            "2025-06-10T14:30",
            "2025-06-10T14:31",
            ";fault=malformed",
            "562d06af01af0b2e",
        ),
        (
            "definition",
            "parent",
            "Q2B.OPT",
            "2025-06-10",
            "2025-06-11",
            ";fault=malformed",
            "34501d5ec8fbb0f8",
        ),
        (
            "trades",
            "parent",
            "ES.FUT,OG.OPT",
            "2025-06-10T14:30",
            "2025-06-10T14:31",
            ";products=NQ,ES,GC",
            "68ff13b2c299cac7",
        ),
        (
            "definition",
            "parent",
            "ES.OPT,GC.FUT",
            "2025-06-10",
            "2025-06-11",
            ";products=NQ,ES,GC",
            "839b6743389898f4",
        ),
    ],
)
def test_databento_sends_the_same_records(
    root: str, schema: str, stype_in: str, symbols: str, start: str, end: str, options: str, expected: str
) -> None:
    base = f"{root}/with/now=2025-06-11T15:00:00Z{options}/databento/v0"
    params = {"dataset": "GLBX.MDP3", "schema": schema, "stype_in": stype_in, "symbols": symbols}
    params |= {"start": start, "end": end}
    data = requests.post(f"{base}/timeseries.get_range", data=params, auth=DATABENTO_KEY, timeout=60)
    cost = requests.post(f"{base}/metadata.get_cost", data=params, auth=DATABENTO_KEY, timeout=60)
    fields = requests.get(f"{base}/metadata.list_fields?schema={schema}", auth=DATABENTO_KEY, timeout=60)
    plain = zstandard.ZstdDecompressor().decompressobj().decompress(data.content)
    assert digest(plain, cost.content, fields.content) == expected


def test_databento_sends_the_same_symbols_and_batch_files(root: str) -> None:
    base = f"{root}/with/now={CLOSED};seed=11/databento/v0"

    def post(name: str, **params: str) -> Any:
        data = {"dataset": "GLBX.MDP3", **params}
        return requests.post(f"{base}/{name}", data=data, auth=DATABENTO_KEY, timeout=60).json()

    span = {"start_date": "2025-06-09", "end_date": "2025-06-11"}
    resolved = [
        post("symbology.resolve", symbols=symbols, stype_in=stype_in, **span)
        for symbols, stype_in in (
            ("NQ.OPT,NO.OPT", "parent"),
            ("NQ.c.0", "continuous"),
            ("NQM5", "raw_symbol"),
        )
    ]
    job = post(
        "batch.submit_job",
        schema="trades",
        symbols="NQ.FUT",
        stype_in="parent",
        encoding="csv",
        start="2025-06-10T14:30",
        end="2025-06-10T14:31",
        pretty_ts="True",
        map_symbols="True",
    )
    params = {"job_id": job["id"]}
    for _ in range(3):
        requests.get(f"{base}/batch.get_job_details", params=params, auth=DATABENTO_KEY, timeout=60)
    files = []
    for file in requests.get(
        f"{base}/batch.list_files", params=params, auth=DATABENTO_KEY, timeout=60
    ).json():
        content = requests.get(file["urls"]["https"], auth=DATABENTO_KEY, timeout=60).content
        if file["filename"].endswith(".zst"):
            files.append(zstandard.ZstdDecompressor().decompressobj().decompress(content))
        elif file["filename"] not in ("manifest.json", "metadata.json"):  # these name the job
            files.append(content)
    assert len(files) == 3
    assert digest(canonical(resolved), *files) == "42be88d9f1b54ec5"


def test_the_tape_has_the_same_resting_orders_and_load() -> None:
    resting = tape(market(7)).resting_orders(NOON_NS)
    load = LoadTape(market(7), 2_000)
    records = [load.records(schema, NOON_NS, NOON_NS + 2 * NS_PER_S) for schema in ("trades", "mbo", "mbp-1")]
    assert digest(resting.tobytes(), *(array.tobytes() for array in records)) == "9be4777006382c87"
