"""Tradovate's stand-in: login, discovery and the websocket's frames."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

LOGIN = {"name": "sandbox", "password": "sandbox", "appId": "x", "appVersion": "1.0"}


def token(base: str) -> str:
    answer = requests.post(f"{base}/v1/auth/accesstokenrequest", json=LOGIN, timeout=10).json()
    assert answer["userStatus"] == "Active" and answer["expirationTime"].endswith("Z")
    return str(answer["accessToken"])


def get(base: str, path: str, **asked: Any) -> Any:
    headers = {"Authorization": f"Bearer {token(base)}"}
    return requests.get(f"{base}/v1/{path}", params=asked, headers=headers, timeout=10)


@contextmanager
def socket(base: str) -> Iterator[ClientConnection]:
    with connect(base.replace("http:", "ws:") + "/v1/websocket") as connection:
        assert connection.recv(timeout=10) == "o"
        yield connection


def messages(connection: ClientConnection, count: int) -> list[dict[str, Any]]:
    """The next messages, heartbeats left out."""
    found: list[dict[str, Any]] = []
    while len(found) < count:
        frame = str(connection.recv(timeout=10))
        if frame != "h":
            found += json.loads(frame.removeprefix("a"))
    return found


def ask(connection: ClientConnection, endpoint: str, number: int, body: Any = "") -> None:
    connection.send(f"{endpoint}\n{number}\n\n{body if isinstance(body, str) else json.dumps(body)}")


def authorise(connection: ClientConnection, base: str) -> None:
    ask(connection, "authorize", 1, token(base))
    assert messages(connection, 1) == [{"s": 200, "i": 1}]


def test_a_wrong_password_is_an_error_text_with_status_200(at: Callable[..., str]) -> None:
    url = at("tradovate") + "/v1/auth/accesstokenrequest"
    reply = requests.post(url, json={**LOGIN, "password": "wrong"}, timeout=10)
    assert reply.status_code == 200 and "errorText" in reply.json() and "accessToken" not in reply.json()


def test_a_penalty_ticket_sent_back_opens_the_door(at: Callable[..., str]) -> None:
    url = at("tradovate", fault="penalty") + "/v1/auth/accesstokenrequest"
    first = requests.post(url, json=LOGIN, timeout=10)
    assert first.status_code == 200 and first.json()["p-captcha"] is False
    ticket = first.json()["p-ticket"]
    assert "accessToken" in requests.post(url, json={**LOGIN, "p-ticket": ticket}, timeout=10).json()


def test_a_captcha_cannot_be_answered(at: Callable[..., str]) -> None:
    url = at("tradovate", fault="blocked") + "/v1/auth/accesstokenrequest"
    first = requests.post(url, json=LOGIN, timeout=10).json()
    again = requests.post(url, json={**LOGIN, "p-ticket": first["p-ticket"]}, timeout=10).json()
    assert first["p-captcha"] is again["p-captcha"] is True


def test_the_library_leads_from_a_root_to_its_contracts(at: Callable[..., str]) -> None:
    base = at("tradovate")
    product = get(base, "product/find", name="Q2C").json()
    assert product["productType"] == "Options" and product["valuePerPoint"] == 20
    maturities = get(base, "contractMaturity/deps", masterid=product["id"]).json()
    near = next(m for m in maturities if m["expirationDate"].startswith("2025-06-11"))
    contracts = get(base, "contract/deps", masterid=near["id"]).json()
    assert len(contracts) > 500 and {c["contractMaturityId"] for c in contracts} == {near["id"]}
    assert all(c["name"].startswith("Q2CM5 ") for c in contracts)
    one = contracts[17]
    assert get(base, "contract/find", name=one["name"]).json() == one
    assert get(base, "contract/items", ids=f"{one['id']},{contracts[3]['id']}").json() == [contracts[3], one]
    future = get(base, "contract/items", ids=near["underlyingId"]).json()
    assert [c["name"] for c in future] == ["NQM5"]


def test_unknown_names_are_404_and_missing_tokens_401(at: Callable[..., str]) -> None:
    base = at("tradovate")
    assert get(base, "product/find", name="XYZ").status_code == 404
    assert requests.get(f"{base}/v1/product/list", timeout=10).status_code == 401


def test_every_listed_option_has_its_own_id_in_the_library(at: Callable[..., str]) -> None:
    base = at("tradovate")
    masters = ",".join(
        str(m["id"])
        for p in get(base, "product/list").json()
        for m in get(base, "contractMaturity/deps", masterid=p["id"]).json()
    )
    contracts = get(base, "contract/ldeps", masterids=masters).json()
    assert len({c["id"] for c in contracts}) == len({c["name"] for c in contracts}) == len(contracts) > 10_000


def test_a_subscription_is_confirmed_then_quoted_in_parts(at: Callable[..., str], shared: Path) -> None:
    known = json.loads((shared / "tradovate/frames_and_bodies.json").read_text())["documented"]
    documented = next(entry["message"] for entry in known if "message" in entry)["d"]["quotes"][0]
    base = at("tradovate")
    with socket(base) as connection:
        authorise(connection, base)
        ask(connection, "md/subscribeQuote", 2, {"symbol": "NQM5"})
        reply, book, rest = messages(connection, 3)
    assert (reply["s"], reply["i"]) == (200, 2)
    parts = [message["d"]["quotes"][0] for message in (book, rest)]
    assert set(parts[0]) == set(documented)
    assert set(parts[0]["entries"]) == {"Bid", "Offer"}
    assert set(parts[0]["entries"]) | set(parts[1]["entries"]) == set(documented["entries"])


def test_contracts_are_subscribed_by_id_as_well_as_by_name(at: Callable[..., str]) -> None:
    base = at("tradovate")
    contract = get(base, "contract/find", name="Q2CM5 C22600").json()
    with socket(base) as connection:
        authorise(connection, base)
        for number, symbol in enumerate((contract["id"], contract["name"]), start=2):
            ask(connection, "md/subscribeQuote", number, {"symbol": symbol})
            reply, quote, _ = messages(connection, 3)
            assert reply["i"] == number
            assert quote["d"]["quotes"][0]["contractId"] == contract["id"]


def test_what_cannot_be_answered_is_said_as_the_vendor_says_it(at: Callable[..., str]) -> None:
    base = at("tradovate")
    with socket(base) as connection:
        ask(connection, "md/subscribeQuote", 1, {"symbol": "NQM5"})
        assert messages(connection, 1)[0]["s"] == 401
        authorise(connection, base)
        ask(connection, "quote/subscribe", 2)
        assert messages(connection, 1) == [{"s": 404, "i": 2, "d": '"Not found: quote/subscribe"'}]
        ask(connection, "md/subscribeQuote", 3, {"symbol": "NOSUCH"})
        reply = messages(connection, 1)[0]
        assert reply["s"] == 200 and "errorText" in reply["d"]


def test_the_server_sends_heartbeats(at: Callable[..., str]) -> None:
    with socket(at("tradovate")) as connection:
        assert connection.recv(timeout=10) == "h"


@pytest.mark.parametrize(("fault", "status"), [("not_entitled", 401), ("rate_limited", 429)])
def test_a_refused_subscription_has_its_status(at: Callable[..., str], fault: str, status: int) -> None:
    with socket(at("tradovate", fault=fault)) as connection:
        if fault != "rate_limited":
            authorise(connection, at("tradovate"))
        ask(connection, "md/subscribeQuote", 5, {"symbol": "NQM5"})
        assert messages(connection, 1)[0]["s"] == status


def test_a_truncated_feed_breaks_off_in_the_middle(at: Callable[..., str]) -> None:
    base = at("tradovate", fault="truncated")
    with socket(base) as connection, pytest.raises(ConnectionClosed):
        authorise(connection, at("tradovate"))
        for number in range(2, 40):
            ask(connection, "md/subscribeQuote", number, {"symbol": "NQM5"})
            messages(connection, 3)


def test_a_malformed_feed_has_good_quotes_between_the_bad_ones(at: Callable[..., str]) -> None:
    base = at("tradovate", fault="malformed")
    frames: list[str] = []
    with socket(base) as connection:
        authorise(connection, at("tradovate"))
        for number in range(2, 12):
            ask(connection, "md/subscribeQuote", number, {"symbol": "NQM5"})
        while len(frames) < 32:
            frame = str(connection.recv(timeout=10))
            frames += [frame] if frame != "h" else []
    broken = 'a[{"e":"md","d":'
    assert 0 < sum(frame == broken for frame in frames) < 4
