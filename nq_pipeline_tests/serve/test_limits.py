"""What a client cannot do to the others: compute for ever, or fill the memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from socket import SO_RCVBUF, SOL_SOCKET, socket
from time import monotonic, sleep
from urllib.parse import quote

import pytest
import requests

from nq_pipeline.serve import answers
from nq_pipeline.serve.endpoints import ENDPOINTS, Endpoint
from nq_pipeline.serve.queries import RowQuery
from nq_pipeline.settings import Settings
from nq_pipeline_tests.testing.served import serve

ENDLESS = "select sum(sin(range)) from range(1000000000000)"
LARGE = "select range as n, repeat('x', 1000) as text from range(20000)"
"""20 MB as CSV."""
PATHS = ["/endless", f"/sql?query={quote(ENDLESS)}"]


@pytest.fixture(scope="module")
def small(settings: Settings) -> Iterator[Settings]:
    """Settings with little memory, and an endpoint that never answers."""
    endless = Endpoint("/endless", "", (), lambda _: RowQuery(ENDLESS))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("nq_pipeline.serve.app.ENDPOINTS", (*ENDPOINTS, endless))
        yield settings.with_values(sql_memory_mb=64)


@pytest.fixture(scope="module")
def address(small: Settings) -> Iterator[str]:
    with serve(small) as address:
        yield address


@contextmanager
def unread(address: str, path: str) -> Iterator[socket]:
    """A client that asks and reads nothing."""
    host, port = address.split(":")
    with socket() as client:
        client.setsockopt(SOL_SOCKET, SO_RCVBUF, 4_096)
        client.connect((host, int(port)))
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
        yield client


def status(address: str, path: str) -> int:
    return requests.get(f"http://{address}{path}", timeout=20).status_code


@pytest.mark.parametrize("path", PATHS)
def test_a_query_ends_when_its_client_leaves(address: str, path: str) -> None:
    with ExitStack() as clients:
        for _ in range(answers.ROWS_AT_ONCE):
            clients.enter_context(unread(address, path))
        sleep(0.3)
    assert [status(address, quick) for quick in ("/gaps", "/sql?query=select+1")] == [200, 200]


@pytest.mark.parametrize("path", PATHS)
def test_a_query_has_a_time_limit(small: Settings, path: str) -> None:
    with serve(small.with_values(sql_timeout_s=0.2)) as address:
        answer = requests.get(f"http://{address}{path}", timeout=20)
    assert (answer.status_code, "NQ_SQL_TIMEOUT_S" in answer.text) == (400, True), answer.text


@pytest.mark.parametrize("path", PATHS)
def test_a_server_stops_although_a_query_runs(small: Settings, path: str) -> None:
    with serve(small) as address, unread(address, path):
        sleep(0.3)
        began = monotonic()
    assert monotonic() - began < 15


@pytest.mark.parametrize("form", ["csv", "json", "arrow"])
def test_an_answer_has_a_greatest_size(address: str, form: str) -> None:
    query = quote(LARGE.replace("20000", "100000"))
    answer = requests.get(f"http://{address}/sql?format={form}&query={query}", timeout=60)
    assert answer.status_code == 400 and "NQ_SQL_MEMORY_MB" in answer.json()["error"]


def test_answers_that_nobody_reads_have_a_bound(small: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "SEND_S", 4.0)
    path = f"/sql?format=csv&query={quote(LARGE)}"
    with serve(small) as address, ExitStack() as clients:
        for _ in range(3):
            clients.enter_context(unread(address, path)).recv(1)  # its answer is ready
        refused = requests.get(f"http://{address}{path}", timeout=20)
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
        assert status(address, "/gaps") == 200
        give_up = monotonic() + 20
        while status(address, path) == 503:  # until the others have had their time
            assert monotonic() < give_up
            sleep(0.2)
        assert status(address, path) == 200
