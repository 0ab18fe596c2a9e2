"""Who is let in, and what is never served."""

from __future__ import annotations

import pytest
import requests
from pydantic import SecretStr, ValidationError
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from nq_pipeline.configuration import build_settings
from nq_pipeline.errors import ServeError, SettingsError
from nq_pipeline.serve.access import check_access, is_loopback
from nq_pipeline.settings import Settings
from nq_pipeline_tests.testing.served import messages, serve

TOKEN = "a secret of many characters"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_token(host: str) -> None:
    assert is_loopback(host)
    check_access(host, None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.com", ""])
def test_other_hosts_need_a_token(host: str) -> None:
    with pytest.raises(ServeError, match="NQ_SERVE_TOKEN"):
        check_access(host, None)
    check_access(host, SecretStr(TOKEN))


def test_a_short_token_is_refused() -> None:
    with pytest.raises((SettingsError, ValidationError)):
        build_settings(serve_token="short")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:1"}, 200),
        ({"Host": "[::1]:1"}, 200),
        ({"Host": "rebound.example"}, 421),
        ({"Host": "127.0.0.1.example"}, 421),
        ({"Host": "localhost@rebound.example"}, 421),
        ({"Host": "[::1"}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "none"}, 200),
    ],
)
def test_other_names_and_origins_are_refused(address: str, headers: dict[str, str], status: int) -> None:
    assert requests.get(f"http://{address}/openapi.json", headers=headers, timeout=60).status_code == status


def test_a_page_of_this_server_is_let_in(address: str) -> None:
    url = f"http://{address}/openapi.json"
    assert requests.get(url, headers={"Origin": f"http://{address}"}, timeout=60).status_code == 200


def test_a_stream_of_another_origin_is_refused(address: str) -> None:
    origin = Origin("http://evil.example")
    with pytest.raises(InvalidStatus) as refused, connect(f"ws://{address}/stream", origin=origin):
        pass
    assert refused.value.response.status_code == 403


def test_a_token_is_needed_everywhere_and_never_served(settings: Settings) -> None:
    with serve(settings.with_values(serve_token=SecretStr(TOKEN))) as address:
        for path in ("/", "/chain", "/metrics", "/openapi.json", "/nothing"):
            url = f"http://{address}{path}"
            refused = requests.get(url, timeout=60)
            assert refused.status_code == 401 and refused.headers["WWW-Authenticate"].startswith("Basic")
            for wrong in ("Bearer ", f"Bearer {TOKEN}x", TOKEN, "Basic !", "Basic YQ=="):
                assert requests.get(url, headers={"Authorization": wrong}, timeout=60).status_code == 401
            let_in = requests.get(url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60)
            assert let_in.status_code == (404 if path == "/nothing" else 200)
            assert TOKEN not in let_in.text
        assert requests.get(f"http://{address}/gaps", auth=("anyone", TOKEN), timeout=60).status_code == 200
        with pytest.raises(InvalidStatus):
            next(messages(f"{address}/stream"))
        headers = {"Authorization": f"Bearer {TOKEN}"}
        assert next(messages(f"{address}/stream", additional_headers=headers))["type"] == "status"
