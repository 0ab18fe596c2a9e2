"""Whatever a vendor sends: an outcome or one sentence, and no sound row lost or changed.

Payloads of every vendor are spoilt in types, sizes, numbers, encodings and headers, and served over real
sockets to the unmodified source. The payloads are those of the stand-ins and of the tests' own vendors; where
recorded ones are at hand, those too. The same seed spoils in the same way; `make soak` tries many more.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import orjson
import polars as pl
import pytest
import zstandard
from polars.testing import assert_frame_equal
from websockets.sync.server import ServerConnection

from nq_pipeline.analytics.snapshot import price_and_measure
from nq_pipeline.chains.request import build_request
from nq_pipeline.chains.snapshot import take_snapshot
from nq_pipeline.clock import PinnedClock
from nq_pipeline.configuration import build_settings
from nq_pipeline.dbn.stream import decode
from nq_pipeline.market.contracts import Series
from nq_pipeline.settings import Settings
from nq_pipeline.sources.base import ChainAnswer, Source
from nq_pipeline.sources.databento.source import Databento
from nq_pipeline.sources.polygon.source import REFERENCE
from nq_pipeline_tests.testing import (
    barchart_contract,
    databento_records,
    polygon_contract,
    standin,
    tradovate_server,
)
from nq_pipeline_tests.testing.backfill_vendor import form, refused
from nq_pipeline_tests.testing.http_server import Answer, Asked, Server
from nq_pipeline_tests.testing.source_contract import MARK, MOMENT, SourceContract
from nq_pipeline_tests.testing.tradovate_contract import TradovateContract

VALUES = [
    "null", "true", "0", "-0", "-1", "1.5", "12", "1e3", "5e-324", "1e-400", "1e308", "1e400", "-1e400",
    "NaN", "-Infinity", "9007199254740993", "9223372036854775807", "9223372036854775808",
    "18446744073709551616",
    "-9223372036854775809", "1" + "0" * 40, "9" * 5000, "1757000000", "1757000000000000000", "4102444801",
    '""', '" "', '"0"', '"-"', '"N/A"', '"unch"', '"1e400"', '"nan"', '"inf"', '"1_000"', '"0x10"', '"１２"',
    '"1,0,6"', '"12s"', '"2025-13-40"', '"9999-12-31T23:59:59Z"', '"0001-01-01T00:00Z"',
    '"2025-09-01T00:00Z"',
    r'"\ud800"', r'"\u0000"', r'"\u001b[31m"', r'"\u202e"', '"<script>"', '"' + "x" * 100_000 + '"',
    "[]", "{}", "[[]]", "[null]", '{"a":{"b":[1e400]}}', "[" * 300 + "]" * 300,
    '{"a":' * 100 + "1" + "}" * 100,
]  # fmt: skip
"""Cells as JSON has them, some of which are none."""

HEADERS: Sequence[Mapping[str, str]] = [
    {"Content-Encoding": "gzip"}, {"Content-Encoding": "br"}, {"Content-Encoding": "zstd, gzip, ?"},
    {"Retry-After": "-1"}, {"Retry-After": "9" * 400}, {"Retry-After": "Wed, 21 Oct 2099 07:28:00 GMT"},
    {"Set-Cookie": "a=b; expires=never; domain=.evil.example\nXSRF-TOKEN=%ff%00; path=\x01"},
    {"X-Warning": "x" * 60_000}, {"X-Amzn-Waf-Action": "challenge, captcha"}, {"Request-Id": "\xe9\xff"},
    {"Date": "yesterday", "Expires": "0", "Cache-Control": "max-age=" + "9" * 40}, {"Location": "//[::1"},
    {f"X-{n}": "y" for n in range(120)}, {"X-NQ-Stamp": "x:y:z"}, {"ETag": '"', "Vary": "*"},
]  # fmt: skip
TYPES = [None, "", "text/html", "application/json; charset=utf-16", "application/octet-stream", ";" * 2000]
STATUS = [
    201,
    202,
    204,
    206,
    299,
    301,
    304,
    307,
    400,
    402,
    405,
    408,
    413,
    418,
    422,
    425,
    451,
    500,
    501,
    505,
    599,
]
OWN = ("request_id", "raw_sha256")
"""Columns that are of the bytes, so that they change with them."""

Place = tuple[Any, ...]
Owner = Callable[[Any, Place], str | None]


# ── how an answer is spoilt ─────────────────────────────────────────────────────────────────────


def places(node: Any, path: Place = ()) -> Iterator[Place]:
    """Every node of a document below its root."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def at(document: Any, path: Place) -> Any:
    for key in path:
        document = document[key]
    return document


def with_value(document: Any, path: Place, text: str | None) -> bytes:
    """The document with this JSON text in one place; without the place for None."""
    copy = orjson.loads(orjson.dumps(document))
    holder, mark = at(copy, path[:-1]), "@here@"
    if text is None:
        del holder[path[-1]]
        return json.dumps(copy).encode()
    holder[path[-1]] = mark
    return json.dumps(copy).encode().replace(f'"{mark}"'.encode(), text.encode())


def spoilt_node(rng: random.Random, body: bytes, owner: Owner | None = None) -> tuple[bytes, str | None, str]:
    """A body with one of its nodes replaced or gone, whose it is, and what it became.

    With `owner`, one that belongs to a contract.
    """
    document = orjson.loads(body)
    found = [place for place in places(document) if owner is None or owner(document, place)]
    path, value = rng.choice(found), rng.choice([None, *VALUES])
    whose = owner(document, path) if owner else None
    return with_value(document, path, value), whose, f"{path} = {value and value[:60]}"


def spoilt_record(rng: random.Random, body: bytes, schema: str) -> tuple[bytes, str, str]:
    """An answer in DBN with a field of one option's record changed, whose it is, and what it became."""
    records = decode(body, schema)
    names = {number: symbol for number, _, _, symbol in records.symbols}
    options = [n for n, number in enumerate(records.array["instrument_id"]) if " " in names.get(number, "")]
    place = rng.choice(options)
    fixed = ("length", "rtype", "instrument_id")
    name = rng.choice([name for name in records.array.dtype.names or () if name not in fixed])
    offset, size = records.array.dtype.fields[name][1], records.array.dtype[name].itemsize  # type: ignore[index]
    raw = bytearray(zstandard.ZstdDecompressor().stream_reader(body, read_across_frames=True).read())
    start = len(raw) - records.array.nbytes + place * records.array.dtype.itemsize + offset
    value = rng.choice([b"\0" * size, b"\xff" * size, b"\xff" * (size - 1) + b"\x7f", rng.randbytes(size)])
    raw[start : start + size] = value
    whose = names[records.array["instrument_id"][place]]
    return zstandard.compress(bytes(raw)), whose, f"{whose} {name} = {value.hex()}"


def spoilt_bytes(rng: random.Random, answer: Answer) -> tuple[Answer, str]:
    """An answer whose bytes, encoding, size, status or headers are not what they should be."""
    body = answer.body
    start = rng.randrange(len(body) + 1)
    middle = body[start : start + rng.randrange(200)]
    changes: dict[str, Answer] = {
        "cut short": replace(answer, body=body[:start]),
        "broken off": replace(answer, cut=True),
        "twice": replace(answer, body=body * 2),
        "a part twice": replace(answer, body=body[:start] + middle + body[start:]),
        "a part gone": replace(answer, body=body[:start] + body[start + 7 :]),
        "a byte": replace(answer, body=body[:start] + bytes([rng.randrange(256)]) + body[start + 1 :]),
        "no UTF-8": replace(answer, body=body[:start] + b"\xff\xc0\x80" + body[start:]),
        "NUL": replace(answer, body=body[:start] + b"\0" * 3 + body[start:]),
        "BOM": replace(answer, body=b"\xef\xbb\xbf" + body),
        "UTF-16": replace(answer, body=body.decode("latin-1").encode("utf-16")),
        "padded": replace(answer, body=b" " * 3_000_000 + body),
        "nested": replace(answer, body=b"[" * 200_000 + body + b"]" * 200_000),
        "empty": replace(answer, body=b""),
        "gzip": replace(answer, body=gzip.compress(body), headers={"Content-Encoding": "gzip"}),
        "gzip unsaid": replace(answer, body=gzip.compress(body)),
        "gzip cut": replace(
            answer, body=gzip.compress(body)[: start // 2], headers={"Content-Encoding": "gzip"}
        ),
        "zstd unsaid": replace(answer, body=zstandard.compress(body)),
        "type": replace(answer, content_type=rng.choice(TYPES)),
        "headers": replace(answer, headers=rng.choice(HEADERS)),
        "status": replace(answer, status=rng.choice(STATUS)),
        "hang up": replace(answer, hang_up=True),
    }
    name = rng.choice(list(changes))
    return changes[name], name


# ── a vendor under fire ─────────────────────────────────────────────────────────────────────────


def _nobodys(document: Any, path: Place) -> str | None:
    return None


@dataclass
class Target:
    """A vendor whose answers, and quotes, can be spoilt.

    Attributes
    ----------
    healthy
        Its answer to a question.
    owner
        The vendor's symbol of the contract that a node of a JSON answer belongs to.
    request
        What is asked, where it is not what the contract of sources asks.
    seen
        Its answers by question, as they were in peace.
    spoil
        What is sent in place of the answer to a question.
    quote
        A contract's id and what is sent in place of its quote.
    """

    contract: SourceContract
    healthy: Callable[[Asked], Answer]
    owner: Owner = _nobodys
    request: Mapping[str, Any] = field(default_factory=dict)
    seen: dict[str, Answer] = field(default_factory=dict)
    spoil: dict[str, Answer] = field(default_factory=dict)
    quote: dict[int, str] = field(default_factory=dict)

    def serving(self) -> AbstractContextManager[Any]:
        self.contract.answer = self._respond  # type: ignore[method-assign]
        if isinstance(self.contract, TradovateContract):
            return self.contract.both(self._speak)
        return self.contract.vendor()

    def ask(self, served: Any, folder: Path) -> ChainAnswer:
        server = served[0] if isinstance(served, tuple) else served
        source = self.contract.source(self.contract.settings(server))
        request = replace(self.contract.request(), **self.request)
        session = self.contract.session(source, folder, refresh=True)
        session.clock = PinnedClock(request.snapshot_ts)
        session.scope = replace(session.scope, snapshot_ts=request.snapshot_ts, trade_date=request.trade_date)
        try:
            return source.ask(request, session)
        finally:
            session.close()

    def _respond(self, asked: Asked) -> Answer:
        key = f"{asked.path} {sorted(asked.query.items())} {asked.body.decode()}"
        if key not in self.seen:
            self.seen[key] = self.healthy(asked)
        return self.spoil.get(key, self.seen[key])

    def _speak(self, connection: ServerConnection, endpoint: str, number: int, body: str) -> bool:
        contract_id = orjson.loads(body)["symbol"] if endpoint != "authorize" else 0
        if contract_id not in self.quote:
            return False
        tradovate_server.send(connection, {"s": 200, "i": number, "d": {"mode": "RealTime"}})
        connection.send(f"a[{self.quote[contract_id]}]")
        return True


def check(answer: ChainAnswer, whole: ChainAnswer, whose: str | None) -> None:
    """An outcome and a sentence; no row invented or changed, and none lost but of the contract `whose`."""
    said = [(answer.outcome, answer.reason), *((one.outcome, one.reason) for one in answer.series.values())]
    for outcome, reason in said:
        assert reason or outcome == "ok"
        assert len(reason) < 600 and reason.isprintable(), reason
    assert answer.frame.is_empty() or answer.outcome.has_rows
    assert answer.frame["contract_key"].is_duplicated().sum() == 0
    symbol = pl.col("vendor_symbol")
    before = whole.frame.sort("vendor_symbol")
    after = answer.frame.sort("vendor_symbol")
    if whose is None:
        # A part of all rows was spoilt, or the bytes: what is left are the same contracts.
        assert set(after["contract_key"]) <= set(before["contract_key"])
        return
    columns = pl.exclude(OWN)
    assert_frame_equal(
        after.filter(symbol != whose).select(columns), before.filter(symbol != whose).select(columns)
    )
    if whose not in after["vendor_symbol"]:
        assert answer.dropped.total(), f"{whose} is gone and nothing was counted"


def fire(target: Target, folder: Path, cases: range) -> None:
    """Spoil one answer after the other and check what becomes of the chain."""
    with target.serving() as served:
        whole = target.ask(served, folder)
        assert whole.frame.height, whole.reason
        questions = sorted(target.seen)
        for case in cases:
            rng = random.Random(case)
            what = spoil(target, rng, rng.choice(questions))
            if isinstance(target.contract, TradovateContract):
                target.contract.user = f"user {case}"  # or the token of the case before would be used
            try:
                check(target.ask(served, folder), whole, what[0])
            except Exception as error:
                error.add_note(f"case {case}: {what[1]}")
                raise


def spoil(target: Target, rng: random.Random, question: str) -> tuple[str | None, str]:
    """Spoil one answer, or one quote; whose it is, where it is a contract's alone, and what was done."""
    target.spoil.clear()
    target.quote.clear()
    good, kind = target.seen[question], rng.random()
    if isinstance(target.contract, TradovateContract) and kind < 0.4:
        contract = rng.choice(tradovate_server.contracts("Q2C"))
        message = orjson.dumps(tradovate_server.quote(contract["id"]))
        body, _, what = spoilt_node(rng, message, of_quote)
        target.quote[contract["id"]] = body.decode()
        return contract["name"], f"quote {what}"
    schema = dict(parse_qsl(question.rpartition(" ")[2])).get("schema", "")
    if (
        schema in ("definition", "bbo-1m", "statistics", "trades")
        and good.body.startswith(b"\x28\xb5\x2f\xfd")
        and kind < 0.6
    ):
        body, whose, what = spoilt_record(rng, good.body, schema)
        target.spoil[question] = replace(good, body=body)
        return whose, f"{schema} {what}"
    if good.body[:1] in (b"{", b"[") and kind < 0.85:
        document = orjson.loads(good.body)
        owned = kind < 0.6 and any(target.owner(document, place) for place in places(document))
        body, own, what = spoilt_node(rng, good.body, target.owner if owned else None)
        target.spoil[question] = replace(good, body=body)
        return own, f"{question[:60]} {what}"
    if good.body[:1].isdigit() and kind < 0.85:
        value = rng.choice(VALUES)
        target.spoil[question] = replace(good, body=value.encode())
        return None, f"{question[:60]} {value[:60]}"
    target.spoil[question], what = spoilt_bytes(rng, good)
    return None, f"{question[:60]} {what}"


def of_board(document: Any, path: Place) -> str | None:
    """Barchart: rows by side."""
    if path[0] != "data" or len(path) < 3 or not isinstance(document["data"], dict):
        return None
    return str(at(document, path[:3])["symbol"])


def of_results(document: Any, path: Place) -> str | None:
    """Polygon: items of a page, or listed contracts."""
    if path[0] != "results" or len(path) < 2:
        return None
    item = document["results"][path[1]]
    return str((item.get("details") or item)["ticker"])


def of_contracts(document: Any, path: Place) -> str | None:
    """Tradovate: contracts of a maturity."""
    if not isinstance(document, list) or "name" not in document[0]:
        return None
    return str(document[path[0]]["name"])


def of_quote(document: Any, path: Place) -> str | None:
    """Tradovate: the time and the entries of a quote, but not whose it is."""
    return "its contract" if len(path) > 3 and path[3] != "contractId" else None


class _Tradovate(TradovateContract):
    def settings(self, server: Any, **more: Any) -> Any:
        return super().settings(server, **{"tradovate_quote_wait_s": 0.05, **more})


class DatabentoContract(SourceContract):
    """The historical API of the stand-in, with a budget that failed attempts cannot use up."""

    def settings(self, server: Server) -> Settings:
        return build_settings(
            environment="live",
            databento_url=server.url,
            databento_api_key=MARK,
            budget_daily_usd=10_000,
            budget_monthly_usd=10_000,
            http_attempts=1,
        )

    def source(self, settings: Settings) -> Source:
        return Databento(settings)

    def answer(self, asked: Asked) -> Answer:
        return standin.relay(asked)


def barchart_target() -> Target:
    return Target(barchart_contract.BarchartContract(), barchart_contract.healthy, of_board)


def polygon_target() -> Target:
    return Target(polygon_contract.PolygonContract(), polygon_contract.healthy, of_results)


def tradovate_target() -> Target:
    contract = _Tradovate()
    contract.user = "user"
    return Target(contract, lambda asked: tradovate_server.rest(asked, secret=MARK), of_contracts)


def databento_target() -> Target:
    """Two options and their future, whose answers are quickly made."""
    at = "2025-06-10T14:59:00Z"
    records: dict[str, list[Mapping[str, Any]]] = {
        "definition": databento_records.DEFINED,
        "bbo-1m": [databento_records.quote(number, at, 100.0, 101.0) for number in (11, 12, 13)],
        "statistics": [
            databento_records.stat(9, at, "2025-06-09", quantity=50),
            databento_records.stat(9, at, "2025-06-09", number=12, quantity=60),
            databento_records.stat(3, at, "2025-06-09", price=99.5),
        ],
        "trades": [databento_records.trade(number, at, 100.25, 2) for number in (11, 12)],
    }
    bodies = {
        f"schema={schema}": zstandard.compress(databento_records.body(schema, rows, databento_records.DAYS))
        for schema, rows in records.items()
    }
    told = {
        "get_dataset_range": b'{"start":"2010-06-06","end":"2025-06-10T15:00:00Z","schema":{}}',
        "get_cost": b"0.001", "get_billable_size": b"1000",
        "list_unit_prices": b'[{"mode":"historical-streaming","unit_prices":{"trades":28.0}}]',
    }  # fmt: skip

    def healthy(asked: Asked) -> Answer:
        if (name := asked.path.rpartition(".")[2]) in told:
            return Answer(told[name])
        return Answer(next(body for named, body in bodies.items() if named in asked.body.decode()))

    return Target(DatabentoContract(), healthy, request={"series": databento_records.SERIES})


def standin_target() -> Target:
    """Databento's stand-in with two whole boards."""
    return Target(DatabentoContract(), standin.relay)


TARGETS = {
    "barchart": (barchart_target, range(30, 40)),
    "polygon": (polygon_target, range(30, 50)),
    "tradovate": (tradovate_target, range(30, 36)),
    "databento": (databento_target, range(30, 40)),
}
"""How each is made, and the cases of the short version."""
LONG = range(1000, 1200)


@pytest.mark.parametrize("vendor", TARGETS)
def test_a_spoilt_answer_costs_what_was_spoilt(vendor: str, tmp_path: Path) -> None:
    make, cases = TARGETS[vendor]
    fire(make(), tmp_path, cases)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("make", [*(make for make, _ in TARGETS.values()), standin_target])
def test_many_spoilt_answers_cost_what_was_spoilt(make: Callable[[], Target], tmp_path: Path) -> None:
    fire(make(), tmp_path, LONG)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("vendor", TARGETS)
def test_a_whole_snapshot_of_spoilt_answers_is_taken_and_priced(vendor: str, tmp_path: Path) -> None:
    target = TARGETS[vendor][0]()
    with target.serving() as served:
        whole = target.ask(served, tmp_path)
        server = served[0] if isinstance(served, tuple) else served
        given = {"data_dir": tmp_path, "now": MOMENT, "sources": (vendor,), "barchart_spacing_s": 0.0}
        settings = target.contract.settings(server).with_values(**given, polygon_rpm=0)
        for case in range(2000, 2040):
            rng = random.Random(case)
            _, what = spoil(target, rng, rng.choice(sorted(target.seen)))
            request = build_request(settings, series=[series.key for series in target.contract.series])
            try:
                snapshot = take_snapshot(settings, request, refresh=True)
                if snapshot.chain.height:
                    price_and_measure(settings, snapshot.chain, run_id=request.run_id)
            except Exception as error:
                error.add_note(f"case {case}: {what}")
                raise
            keys = set(snapshot.results[vendor].answer.frame["contract_key"])
            assert keys <= set(whole.frame["contract_key"]), what


# ── recorded payloads ───────────────────────────────────────────────────────────────────────────


def recorded_barchart(shared: Path) -> Target:
    """A board as the site sent it, beside the futures and pages of the tests."""
    body = (shared / "barchart/chain_MC2M25_20250610T1449Z.json").read_bytes()

    def healthy(asked: Asked) -> Answer:
        return Answer(body) if asked.query.get("symbol") == "MC2M25" else barchart_contract.healthy(asked)

    return Target(barchart_contract.BarchartContract(), healthy, of_board)


def recorded_polygon(shared: Path) -> Target:
    """Contracts as the vendor lists them to a plan without snapshots."""
    document = orjson.loads((shared / "polygon/reference_options_contracts_NDX_20250610.json").read_bytes())
    body = orjson.dumps({**document, "next_url": None})

    def healthy(asked: Asked) -> Answer:
        return Answer(body) if asked.path == REFERENCE.path else polygon_contract.FORBIDDEN

    request = {"series": (Series("NQ", date(2029, 12, 21)),)}
    return Target(polygon_contract.PolygonContract(), healthy, of_results, request)


def recorded_databento(shared: Path) -> Target:
    """Two options on ES of 2024-05-09 with their quotes; nothing else is there, and all of it is free."""
    files = {
        "definition": "options_catalog__options_definition.dbn.zst",
        "bbo-1m": "options_catalog__options_bbo-1m_2024-05-09T09-55_2024-05-09T10-05.dbn.zst",
    }

    def healthy(asked: Asked) -> Answer:
        if asked.path.endswith("get_dataset_range"):
            return Answer(b'{"start":"2010-06-06","end":"2024-05-09T10:05:00Z","schema":{}}')
        if not asked.path.endswith("get_range"):
            return Answer(b"0")
        schema = form(asked)["schema"]
        if schema not in files:
            return refused("symbology_invalid_request")
        return Answer((shared / "databento" / files[schema]).read_bytes(), content_type=None)

    moment = datetime(2024, 5, 9, 10, 5, tzinfo=UTC)
    request = {
        "series": (Series("ES", date(2024, 6, 21)),),
        "snapshot_ts": moment, "moment": moment, "trade_date": date(2024, 5, 9),
    }  # fmt: skip
    return Target(DatabentoContract(), healthy, request=request)


RECORDED = {"barchart": recorded_barchart, "polygon": recorded_polygon, "databento": recorded_databento}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("vendor", RECORDED)
def test_a_spoilt_recorded_answer_costs_what_was_spoilt(vendor: str, shared: Path, tmp_path: Path) -> None:
    fire(RECORDED[vendor](shared), tmp_path, LONG)
