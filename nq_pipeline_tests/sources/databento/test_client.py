"""The official client over real sockets: where it asks, when it stops, what its errors mean."""

from __future__ import annotations

import ast
import base64
import gzip
import inspect
import time
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import orjson
import pytest
import requests
import zstandard
from pydantic import SecretStr

import nq_pipeline
from nq_pipeline.configuration import load
from nq_pipeline.errors import (
    BadPayload,
    Blocked,
    DeadlineReached,
    LedgerError,
    NoRoom,
    NotConfigured,
    NotEntitled,
    RateLimited,
    SettingsError,
    SourceError,
    Unavailable,
)
from nq_pipeline.outcome import Outcome
from nq_pipeline.sources.databento.client import (
    GROUPS,
    LONGEST_RECORD,
    PIECE,
    BatchFile,
    HistoricalClient,
    official_client,
)
from nq_pipeline.sources.databento.query import Query
from nq_pipeline.sources.databento.vendor_errors import EndsAfterAvailable, NoRecords, instant_ns
from nq_pipeline.spend.ledger import Charge, open_ledger
from nq_pipeline.transport.policy import Policy
from nq_pipeline_tests.testing import standin
from nq_pipeline_tests.testing.disk_limits import no_file_above
from nq_pipeline_tests.testing.http_server import Answer, Asked, serve
from nq_pipeline_tests.testing.source_contract import MARK

QUERY = Query(
    "GLBX.MDP3", "trades", ("Q2C.OPT", "Q2D.OPT"), 1_749_540_000_000_000_000, 1_749_567_600_000_000_000
)
FREE = {
    "available_end", "conditions", "cost", "count", "download_file", "files", "job", "jobs", "price", "size",
    "unit_prices",
}  # fmt: skip
PAID = {"download", "download_to", "submit"}
KEY = SecretStr(MARK)
SHAPED = SecretStr("db-" + "x" * 29)
"""What a key of the vendor's looks like."""


def client(url: str, *, allowed_s: float = 60.0, **policy: Any) -> HistoricalClient:
    end = time.monotonic() + allowed_s
    return HistoricalClient(
        KEY, url, Policy(timeout_s=5.0, **policy), lambda: max(0.0, end - time.monotonic())
    )


def detail(case: str, message: str = "words", **payload: Any) -> bytes:
    return orjson.dumps(
        {"detail": {"case": case, "message": message, "status_code": 422, "docs": "d", "payload": payload}}
    )


def charge(**other: Any) -> Charge:
    """What QUERY would cost."""
    given: dict[str, Any] = {
        "vendor": "databento", "purpose": "backfill", "dataset": QUERY.dataset, "schema": QUERY.schema,
        "mode": "historical-streaming", "description": "a test", "cost_usd": Decimal(1),
        "billable_bytes": None, "unit_price_usd": None, "priced_at": datetime.now(UTC), "run_id": "run",
    }  # fmt: skip
    return Charge(**{**given, **other})


def buy(url: str, allowed_s: float = 60.0, **other: Any) -> bytes:
    with open_ledger(load()).spending(charge(**other)) as spending:
        return client(url, allowed_s=allowed_s).download(QUERY, spending)


def refusal(answer: Answer, *, allowed_s: float = 60.0, **policy: Any) -> SourceError:
    with serve(lambda asked: answer) as server, pytest.raises(SourceError) as caught:
        client(server.url, allowed_s=allowed_s, **policy).cost(QUERY)
    return caught.value


# Where it asks


def test_the_installed_client_is_version_0_88() -> None:
    assert version("databento").startswith("0.88.")


def test_a_plain_http_address_on_loopback_is_asked_as_it_is() -> None:
    made = official_client(KEY, "http://127.0.0.1:9/with/fault=ok/databento/", timeout_s=3)
    for group in GROUPS:
        assert getattr(made, group)._base_url == f"http://127.0.0.1:9/with/fault=ok/databento/v0/{group}"
        assert getattr(made, group).TIMEOUT == 3


@pytest.mark.parametrize("url", ["https://hist.databento.com", "https://127.0.0.1:9/below"])
def test_an_https_address_is_left_to_the_client(url: str) -> None:
    made = official_client(SHAPED, url, timeout_s=3)
    assert made.gateway == url
    assert made.metadata._base_url == f"{url}/v0/metadata"


@pytest.mark.parametrize(
    "key",
    ["abc", MARK, "db-" + "x" * 28, "db-" + "x" * 30, "xx-" + "x" * 29, "db-" + " " * 29, "db-" + "é" * 29],
)
def test_what_is_no_key_is_told_before_the_vendor_is_asked(key: str) -> None:
    asking = HistoricalClient(SecretStr(key), "https://hist.databento.com", Policy(), lambda: 60.0)
    with pytest.raises(NotConfigured, match=r"^DATABENTO_API_KEY is not a Databento key, which has 32") as no:
        asking.cost(QUERY)
    assert key not in str(no.value)


def test_this_machine_is_not_asked_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY")
    with serve(lambda asked: Answer(b"7")) as server:
        assert client(server.url, attempts=1).count(QUERY) == 7


@pytest.mark.parametrize(
    "url", ["http://hist.databento.com", "ftp://127.0.0.1", "hist.databento.com", "https://"]
)
def test_unusable_or_unsafe_addresses_are_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="NQ_DATABENTO_URL"):
        load(databento_url=url)


def test_a_client_of_unknown_layout_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from databento.historical.api.batch import BatchHttpAPI

    made = BatchHttpAPI.__init__

    def renamed(self: Any, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        self._root = self.__dict__.pop("_base_url")

    monkeypatch.setattr(BatchHttpAPI, "__init__", renamed)
    with pytest.raises(NotConfigured, match=r"databento 0\.88.* keeps its settings elsewhere; install"):
        official_client(KEY, "http://127.0.0.1:9", timeout_s=3)


def test_the_question_is_the_one_of_the_protocol() -> None:
    with serve(lambda asked: Answer(b"0.25")) as server:
        assert client(server.url).cost(QUERY) == Decimal("0.25")
        (asked,) = server.asked
    assert (asked.method, asked.path) == ("POST", "/v0/metadata.get_cost")
    assert asked.headers["authorization"] == "Basic " + base64.b64encode(f"{MARK}:".encode()).decode()
    assert dict(parse_qsl(asked.body.decode())) == {
        "dataset": "GLBX.MDP3",
        "schema": "trades",
        "symbols": "Q2C.OPT,Q2D.OPT",
        "stype_in": "parent",
        "stype_out": "instrument_id",
        "start": "1749540000000000000",
        "end": "1749567600000000000",
    }


# What comes back


@pytest.mark.parametrize("body", [b"0", b"0.0", b"1e-3", b"12"])
def test_a_price_is_exact(body: bytes) -> None:
    with serve(lambda asked: Answer(body)) as server:
        assert client(server.url).cost(QUERY) == Decimal(str(orjson.loads(body)))


@pytest.mark.parametrize(
    "body", [b"null", b"-1", b"true", b'"much"', b"[1]", b"{}", b"NaN", b"Infinity", b""]
)
def test_what_is_no_price_is_a_bad_payload(body: bytes) -> None:
    assert isinstance(refusal(Answer(body)), BadPayload)


def test_available_end_is_the_earliest_of_the_schemas() -> None:
    ends = {"trades": {"end": "2025-06-10T14:00:00.000000001Z"}, "bbo-1m": {"end": "2025-06-10T15:00:00Z"}}
    body = orjson.dumps({"start": "2010-06-06", "end": "2025-06-10T16:00:00Z", "schema": ends})
    with serve(lambda asked: Answer(body)) as server:
        asking = client(server.url)
        assert asking.available_end("GLBX.MDP3", ("trades", "bbo-1m")) == 1_749_564_000_000_000_001
        assert asking.available_end("GLBX.MDP3", ("statistics",)) == 1_749_571_200_000_000_000


@pytest.mark.parametrize(
    "body", [b"[]", b"{}", b"null", b'{"end": 5, "schema": {}}', b'{"end": "soon", "schema": []}']
)
def test_a_range_in_an_unknown_form_is_a_bad_payload(body: bytes) -> None:
    with serve(lambda asked: Answer(body)) as server, pytest.raises(BadPayload):
        client(server.url).available_end("GLBX.MDP3", ("trades",))


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"DBN\x03 and no more", b"\x28\xb5\x2f\xfd cut", bytes(99_999)]
)
def test_a_body_that_arrived_whole_is_returned_whatever_it_is(body: bytes) -> None:
    with serve(lambda asked: Answer(body, content_type="application/octet-stream")) as server:
        assert buy(server.url) == body


@pytest.mark.parametrize("pack", [bytes, zstandard.compress])
def test_a_key_within_a_body_is_struck_and_the_rest_stays(pack: Callable[[bytes], bytes]) -> None:
    body = bytes(PIECE - 9) + MARK.encode() + b"the rest"  # across two pieces
    with serve(lambda asked: Answer(pack(body), content_type="application/octet-stream")) as server:
        assert buy(server.url) == body.replace(MARK.encode(), b"*" * len(MARK))


def test_a_cut_body_is_a_bad_payload_and_not_bought_twice() -> None:
    with serve(lambda asked: Answer(bytes(100_000), cut=True)) as server:
        with pytest.raises(BadPayload, match="cut off"):
            buy(server.url)
        assert len(server.asked) == 1


# What is free, and what is not


def test_every_method_is_free_or_takes_a_reservation() -> None:
    public = {name for name in vars(HistoricalClient) if not name.startswith("_")}
    assert public == FREE | PAID
    for name in PAID:
        required = inspect.signature(getattr(HistoricalClient, name)).parameters["spending"]
        assert required.annotation == "Spending" and required.default is inspect.Parameter.empty


def test_free_methods_send_no_paid_request() -> None:
    key = "db-free-methods"
    asking = HistoricalClient(
        SecretStr(key),
        f"{standin.address()}/with/now={standin.NOW}/databento",
        Policy(timeout_s=60),
        lambda: 60.0,
    )
    job = requests.post(
        f"{asking._url}/v0/batch.submit_job",
        auth=(key, ""),
        data={**QUERY.arguments, "symbols": ",".join(QUERY.symbols)},
        timeout=30,
    ).json()["id"]
    before = len(requests.get(f"{asking._url}/requests", auth=(key, ""), timeout=30).json())
    questions: dict[str, Callable[[], Any]] = {
        "available_end": lambda: asking.available_end("GLBX.MDP3", ("trades",)),
        "conditions": lambda: asking.conditions("GLBX.MDP3", date(2025, 6, 9), date(2025, 6, 10)),
        "cost": lambda: asking.cost(QUERY),
        "count": lambda: asking.count(QUERY),
        "job": lambda: asking.job(job),
        "jobs": lambda: asking.jobs(datetime(2025, 1, 1, tzinfo=UTC)),
        "files": lambda: asking.files(job),
        "price": lambda: asking.price(QUERY),
        "size": lambda: asking.size(QUERY),
        "download_file": lambda: asking.download_file(job, asking.files(job)[0], Path("files")),
        "unit_prices": lambda: asking.unit_prices("GLBX.MDP3"),
    }
    assert questions.keys() == FREE
    asking.jobs(datetime(2025, 1, 1, tzinfo=UTC))  # looked at once, so that it is done
    for ask in questions.values():
        assert ask()
    sent = requests.get(f"{asking._url}/requests", auth=(key, ""), timeout=30).json()[before:]
    assert len(sent) > len(FREE) and not any(one["metered"] or one["billed_bytes"] for one in sent)


def test_only_one_module_uses_the_official_client() -> None:
    package = Path(nq_pipeline.__file__).parent
    makers = {"Historical", "timeseries", "submit_job"}
    texts = {path: path.read_text() for path in package.rglob("*.py")}
    found = {
        path.relative_to(package).as_posix()
        for path, text in texts.items()
        if any(maker in text for maker in makers)
        for node in ast.walk(ast.parse(text))
        if (isinstance(node, ast.Attribute) and node.attr in makers)
        or (isinstance(node, ast.ImportFrom) and makers & {name.name for name in node.names})
    }
    assert found == {"sources/databento/client.py"}


@pytest.mark.parametrize(
    ("answer", "closed"),
    [
        (Answer(detail("dataset_unavailable_range"), 422), True),
        (Answer(detail("license_not_found_unauthorized"), 403), True),
        (Answer(b"", 429), True),
        (Answer(b"", 408), False),
        (Answer(b"oops", 500), False),
        (Answer(b"", 504), False),
        (Answer(hang_up=True), False),
        (Answer(bytes(100_000), cut=True), False),
    ],
)
def test_only_a_refusal_releases_the_reservation(answer: Answer, closed: bool) -> None:
    with serve(lambda asked: answer) as server:
        with pytest.raises(SourceError):
            buy(server.url)
        assert len(server.asked) == 1
    assert (open_ledger(load()).open_reservations() == []) is closed


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://192.0.2.1"])
def test_a_request_never_sent_releases_the_reservation(url: str) -> None:
    with pytest.raises(SourceError):
        buy(url)
    assert open_ledger(load()).open_reservations() == []


def test_out_of_time_a_paid_request_is_not_sent() -> None:
    with serve(lambda asked: Answer(b"data")) as server, pytest.raises(DeadlineReached, match="was sent"):
        buy(server.url, allowed_s=0.0)
    assert not server.asked and open_ledger(load()).open_reservations() == []


def test_without_room_for_its_answer_a_request_is_not_sent() -> None:
    ledger = open_ledger(load())
    with (
        serve(lambda asked: Answer(b"data")) as server,
        no_file_above(4 * MIB),
        pytest.raises(NoRoom, match=r"4\.0 MiB was not requested"),
    ):
        buy(server.url, billable_bytes=4 * MIB)
    assert not server.asked and ledger.open_reservations() == []


def test_an_answer_without_room_says_so_and_stays_reserved() -> None:
    ledger = open_ledger(load())
    with (
        serve(lambda asked: Answer(bytes(4 * MIB))) as server,
        no_file_above(2 * MIB),
        pytest.raises(Unavailable, match="no room for the rest"),
    ):
        buy(server.url)
    assert len(ledger.open_reservations()) == 1


def test_a_reservation_covers_only_its_own_query() -> None:
    with serve(lambda asked: Answer(b"data")) as server:
        others: tuple[dict[str, Any], ...] = (
            {"schema": "mbo"}, {"dataset": "XNAS.ITCH"}, {"mode": "historical"}, {"vendor": "polygon"},
        )  # fmt: skip
        for other in others:
            with pytest.raises(LedgerError, match="the reservation is for"):
                buy(server.url, **other)
        assert not server.asked


@pytest.mark.parametrize(
    "file",
    [
        {"filename": "../../evil.dbn.zst"},
        {"filename": "/etc/evil.dbn.zst"},
        {"filename": ""},
        {"urls": {"https": "https://elsewhere.example/x.dbn.zst"}},
        {"urls": {"https": "https://hist.databento.com.example/x.dbn.zst"}},
        {"urls": {"https": "http://hist.databento.com/x.dbn.zst"}},
        {"urls": {"https": "https://user@hist.databento.com/x.dbn.zst"}},
        {"urls": {}},
        {"size": "many"},
    ],
)
def test_a_job_file_outside_the_vendor_is_refused(file: dict[str, Any]) -> None:
    good = {
        "filename": "a.dbn.zst", "size": 3, "hash": "sha256:00",
        "urls": {"https": "https://hist.databento.com/v0/batch/download/a.dbn.zst"},
    }  # fmt: skip
    with serve(lambda asked: Answer(orjson.dumps([good]))) as server:
        assert [one.name for one in client(server.url).files("GLBX-1")] == ["a.dbn.zst"]
    with serve(lambda asked: Answer(orjson.dumps([{**good, **file}]))) as server, pytest.raises(BadPayload):
        client(server.url).files("GLBX-1")


@pytest.mark.parametrize("body", [b"null", b'"x"', b"[1]", b"{}", b'[{"id": "../x"}]', b'[{"id": "a"}]'])
def test_jobs_in_an_unknown_form_are_a_bad_payload(body: bytes) -> None:
    with serve(lambda asked: Answer(body)) as server, pytest.raises(BadPayload):
        client(server.url).jobs(datetime(2025, 6, 1, tzinfo=UTC))


@pytest.mark.parametrize("body", [b"null", b'"9"', b"1.5", b"-1", b"true", b"[]"])
def test_a_count_that_is_no_number_is_a_bad_payload(body: bytes) -> None:
    with serve(lambda asked: Answer(body)) as server:
        for ask in (client(server.url).count, client(server.url).size):
            with pytest.raises(BadPayload):
                ask(QUERY)


def test_a_price_below_that_of_its_bytes_has_no_unit_price() -> None:
    listed = orjson.dumps([{"mode": "historical-streaming", "unit_prices": {"trades": 28.0}}])
    answers = {"/v0/metadata.get_billable_size": str(2**30).encode(), "/v0/metadata.list_unit_prices": listed}

    def answer(usd: bytes, asked: Asked) -> Answer:
        return Answer(answers.get(asked.path, usd))

    for usd, unit in {b"28.0": Decimal("28.0"), b"3.5": None}.items():
        with serve(partial(answer, usd)) as server:
            price = client(server.url).price(QUERY)
        assert (price.usd, price.size, price.unit_usd) == (Decimal(usd.decode()), 2**30, unit)


# What its errors mean


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (401, b'{"detail":"Authentication failed."}', NotConfigured),
        (402, detail("account_insufficient_funds"), NotEntitled),
        (403, detail("license_not_found_unauthorized"), NotEntitled),
        (403, detail("auth_no_dataset_entitlement"), NotEntitled),
        (403, detail("auth_user_does_not_match_api_key"), NotConfigured),
        (403, b"forbidden", Blocked),
        (422, detail("dataset_unavailable_range"), NotEntitled),
        (422, detail("symbology_invalid_request"), NoRecords),
        (422, detail("symbology_invalid_symbol"), NoRecords),
        (
            422,
            detail("data_end_after_available_end", available_end="2025-06-10T14:00:00Z"),
            EndsAfterAvailable,
        ),
        (422, detail("data_end_after_available_end"), BadPayload),
        (422, detail("data_end_after_available_end", available_end=[1]), BadPayload),
        (422, detail("data_schema_not_fully_available"), Unavailable),
        (422, b'{"detail":[{"loc":["body","start"],"msg":"field required"}]}', Unavailable),
        (404, b"{}", Unavailable),
        (429, b"", RateLimited),
        (429, b'["a list"]', BadPayload),
        (400, b"null", BadPayload),
    ],
)
def test_an_error_is_what_its_status_and_case_say(status: int, body: bytes, kind: type[SourceError]) -> None:
    assert type(refusal(Answer(body, status))) is kind


def test_the_available_end_of_a_refusal_is_kept() -> None:
    body = detail("data_end_after_available_end", available_end="2025-06-10T14:00:00.000000005+00:00")
    error = refusal(Answer(body, 422))
    assert isinstance(error, EndsAfterAvailable)
    assert error.available_end == instant_ns("2025-06-10T14:00:00.000000005Z")


def test_a_key_that_a_vendor_repeats_is_not_repeated_again() -> None:
    error = refusal(Answer(detail(f"case_{MARK}", f"no licence for {MARK}\nnor\tanything"), 422))
    assert MARK not in str(error)
    assert f"no licence for {'*' * len(MARK)} nor anything" in str(error)


def test_a_fault_that_passes_is_asked_again() -> None:
    answers = [Answer(b"oops", 503), Answer(hang_up=True), Answer(b"0.5")]
    with serve(lambda asked: answers.pop(0)) as server:
        assert client(server.url).cost(QUERY) == Decimal("0.5")


@pytest.mark.parametrize("answer", [Answer(b"oops", 500), Answer(b"", 504), Answer(hang_up=True)])
def test_a_fault_that_stays_is_unavailable_after_the_attempts(answer: Answer) -> None:
    with serve(lambda asked: answer) as server:
        with pytest.raises(Unavailable):
            client(server.url, attempts=2).cost(QUERY)
        assert len(server.asked) == 2


def test_a_short_retry_after_is_waited_for_and_a_long_one_is_not() -> None:
    answers = [Answer(b"", 429, headers={"Retry-After": "0"}), Answer(b"0.5")]
    with serve(lambda asked: answers.pop(0)) as server:
        assert client(server.url).cost(QUERY) == Decimal("0.5")
    assert isinstance(refusal(Answer(b"", 429, headers={"Retry-After": "60"})), RateLimited)


@pytest.mark.parametrize(
    "ask", [lambda url: client(url, allowed_s=0.8).cost(QUERY), lambda url: buy(url, 0.8)]
)
def test_a_body_that_drips_past_the_deadline_is_left(ask: Callable[[str], Any]) -> None:
    def drip(asked: Asked) -> Answer:
        return Answer(b"0.5       ", drip_s=0.5)

    with serve(drip) as server, pytest.raises(DeadlineReached) as caught:
        ask(server.url)
    assert caught.value.outcome is Outcome.PARTIAL


@pytest.mark.parametrize("number", [b"1e400", b"NaN", b"1" + b"0" * 30, b"-1", b"true", b'"\\ud800"'])
def test_a_number_that_can_be_none_is_a_bad_payload(number: bytes) -> None:
    for ask in (HistoricalClient.cost, HistoricalClient.size, HistoricalClient.count):
        with serve(lambda asked: Answer(number)) as server, pytest.raises(BadPayload):
            ask(client(server.url), QUERY)


@pytest.mark.parametrize(
    "text",
    [
        "9999-12-31",
        "0001-01-01T00:00:00Z",
        "",
        "tomorrow",
        "2025-06-10T14:00:00+02:00",
        "2025-13-01",
        "1749564000",
    ],
)
def test_only_utc_instants_are_instants(text: str) -> None:
    with pytest.raises(ValueError):
        instant_ns(text)


# How much comes, and from where

MIB = 1 << 20
ASKED = {
    "available_end": lambda c: c.available_end("GLBX.MDP3", ("trades",)),
    "conditions": lambda c: c.conditions("GLBX.MDP3", date(2025, 6, 2), date(2025, 6, 3)),
    "cost": lambda c: c.cost(QUERY),
    "count": lambda c: c.count(QUERY),
    "size": lambda c: c.size(QUERY),
    "unit_prices": lambda c: c.unit_prices("GLBX.MDP3"),
    "jobs": lambda c: c.jobs(datetime(2025, 6, 2, tzinfo=UTC)),
    "job": lambda c: c.job("GLBX-1"),
    "files": lambda c: c.files("GLBX-1"),
}  # fmt: skip
"""Questions whose answer is JSON."""


ENDLESS = Answer(b" " * MIB, endless=True)


@cache
def bomb() -> Answer:
    """64 MiB of nothing, packed."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = b"".join(packer.compress(bytes(MIB)) for _ in range(64)) + packer.flush()
    return Answer(packed, headers={"Content-Encoding": "gzip"})


def bomb_in_a_bomb() -> Answer:
    return Answer(gzip.compress(bomb().body), headers={"Content-Encoding": "gzip, gzip"})


@pytest.mark.parametrize(
    "make", [lambda: ENDLESS, bomb, bomb_in_a_bomb], ids=["endless", "bomb", "bomb_in_a_bomb"]
)
@pytest.mark.parametrize("name", sorted(ASKED))
def test_no_answer_is_read_beyond_its_bound(name: str, make: Callable[[], Answer]) -> None:
    answer = make()
    with (
        serve(lambda asked: answer) as server,
        pytest.raises(BadPayload, match="larger than 2,097,152 bytes"),
    ):
        ASKED[name](client(server.url, max_bytes=2 * MIB))


def test_every_request_is_tried_with_an_oversized_answer() -> None:
    assert {*ASKED, "price", "download_file", *PAID} == FREE | PAID  # `price` asks what others ask


def test_a_bomb_takes_no_more_memory_than_its_bound() -> None:
    answer = bomb()
    tracemalloc.start()
    with serve(lambda asked: answer) as server, pytest.raises(BadPayload):
        client(server.url, max_bytes=2 * MIB).cost(QUERY)
    assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    tracemalloc.stop()


@pytest.mark.parametrize("status", [200, 422, 500])
def test_a_download_ends_at_its_bound_and_stays_reserved(status: int) -> None:
    with serve(lambda asked: replace(ENDLESS, status=status)) as server:
        with (
            open_ledger(load()).spending(charge()) as spending,
            pytest.raises(BadPayload, match="larger than"),
        ):
            client(server.url, max_bytes=2 * MIB, max_data_bytes=3 * MIB).download(QUERY, spending)
        assert len(server.asked) == 1
    assert len(open_ledger(load()).open_reservations()) == 1


def test_a_file_that_is_downloaded_ends_where_its_records_do(tmp_path: Path) -> None:
    path = tmp_path / "part"
    with (
        serve(lambda asked: ENDLESS) as server,
        open_ledger(load()).spending(charge()) as spending,
        pytest.raises(BadPayload, match="larger than 2 MiB"),
    ):
        client(server.url, max_data_bytes=2 * MIB).download_to(QUERY, spending, path, 100)
    assert path.stat().st_size <= 2 * MIB + 100 * LONGEST_RECORD


def test_a_file_of_a_job_ends_at_the_size_the_vendor_lists(tmp_path: Path) -> None:
    file = BatchFile("a.dbn.zst", 3 * MIB, "00")

    def respond(asked: Asked) -> Answer:
        urls = {"https": f"{server.url}/file", "ftp": ""}
        listed = [{"filename": file.name, "size": file.size, "hash": "sha256:00", "urls": urls}]
        return ENDLESS if asked.path == "/file" else Answer(orjson.dumps(listed))

    with serve(respond) as server:
        with pytest.raises(BadPayload, match="larger than 3 MiB"):
            client(server.url).download_file("GLBX-1", file, tmp_path)
        assert [asked.path for asked in server.asked].count("/file") == 1
    assert (tmp_path / "GLBX-1" / file.name).stat().st_size <= file.size


@pytest.mark.parametrize(("retry_after", "asked_twice"), [("0", True), ("3600", False)])
def test_a_file_of_a_job_waits_no_longer_than_allowed(
    retry_after: str, asked_twice: bool, tmp_path: Path
) -> None:
    def respond(asked: Asked) -> Answer:
        if asked.path == "/file":
            first = [one.path for one in server.asked].count("/file") == 1
            return Answer(b"", 429, headers={"Retry-After": retry_after}) if first else Answer(b"1234")
        urls = {"https": f"{server.url}/file", "ftp": ""}
        return Answer(orjson.dumps([{"filename": "a.dbn.zst", "size": 4, "hash": "sha256:00", "urls": urls}]))

    with serve(respond) as server:
        file, outcome = BatchFile("a.dbn.zst", 4, "00"), "downloaded"
        try:
            client(server.url).download_file("GLBX-1", file, tmp_path)
        except RateLimited:
            outcome = "refused"
        asked = [one.path for one in server.asked].count("/file")
    assert (outcome, asked) == (("downloaded", 2) if asked_twice else ("refused", 1))


def test_a_download_that_drips_ends_with_the_time_allowed() -> None:
    with serve(lambda asked: Answer(bytes(1000), drip_s=0.1)) as server, pytest.raises(DeadlineReached):
        buy(server.url, allowed_s=0.3)


def test_a_four_gigabyte_header_is_refused() -> None:
    head = b"DBN\x03" + (2**32 - 16).to_bytes(4, "little")
    packed = zstandard.compress(head + bytes(64 * MIB))
    with serve(lambda asked: Answer(packed)) as server, pytest.raises(BadPayload, match="claims"):
        buy(server.url)


@pytest.mark.parametrize("status", [302, 307])
def test_a_redirect_is_not_followed_and_costs_nothing(status: int) -> None:
    with serve(lambda asked: Answer(b"0.5")) as other:
        away = Answer(status=status, headers={"Location": f"{other.url}/v0/metadata.get_cost"})
        with serve(lambda asked: away) as server:
            for ask in (lambda: client(server.url).cost(QUERY), lambda: buy(server.url)):
                with pytest.raises(Unavailable, match=f"elsewhere .HTTP {status}.*NQ_DATABENTO_URL"):
                    ask()
        assert not other.asked
    assert not open_ledger(load()).open_reservations()


def test_other_clients_in_the_process_are_not_affected() -> None:
    with serve(lambda asked: Answer(b"0.5")) as there:
        elsewhere = Answer(status=307, headers={"Location": f"{there.url}/v0/metadata.get_cost"})
        with serve(lambda asked: elsewhere) as server:
            with pytest.raises(Unavailable):
                client(server.url).cost(QUERY)
            assert official_client(KEY, server.url, timeout_s=5).metadata.get_cost(**QUERY.arguments) == 0.5
