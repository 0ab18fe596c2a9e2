"""Tradovate's stand-in: login, discovery and the websocket's frames."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
from websockets.exceptions import ConnectionClosed, InvalidStatus

from nq_pipeline_tests.testing.vendor_clients import (
    authorize,
    get_tradovate,
    login_tradovate,
    receive_messages,
    send_request,
    tradovate_socket,
)


def test_a_wrong_password_is_an_error_text_with_status_200(at: Callable[..., str]) -> None:
    reply = login_tradovate(at("tradovate"), password="wrong")
    assert reply.status_code == 200 and "errorText" in reply.json() and "accessToken" not in reply.json()


def test_a_login_with_the_penalty_ticket_succeeds(at: Callable[..., str]) -> None:
    first = login_tradovate(base := at("tradovate", fault="penalty"))
    assert first.status_code == 200 and first.json()["p-captcha"] is False
    ticket = first.json()["p-ticket"]
    assert "accessToken" in login_tradovate(base, **{"p-ticket": ticket}).json()


def test_a_captcha_refuses_the_login_with_its_ticket_too(at: Callable[..., str]) -> None:
    first = login_tradovate(base := at("tradovate", fault="blocked")).json()
    again = login_tradovate(base, **{"p-ticket": first["p-ticket"]}).json()
    assert first["p-captcha"] is again["p-captcha"] is True


def test_the_library_leads_from_a_root_to_its_contracts(at: Callable[..., str]) -> None:
    base = at("tradovate")
    product = get_tradovate(base, "product/find", name="Q2C").json()
    assert product["productType"] == "Options" and product["valuePerPoint"] == 20
    maturities = get_tradovate(base, "contractMaturity/deps", masterid=product["id"]).json()
    near = next(m for m in maturities if m["expirationDate"].startswith("2025-06-11"))
    contracts = get_tradovate(base, "contract/deps", masterid=near["id"]).json()
    assert len(contracts) > 500 and {c["contractMaturityId"] for c in contracts} == {near["id"]}
    assert all(c["name"].startswith("Q2CM5 ") for c in contracts)
    one = contracts[17]
    assert get_tradovate(base, "contract/find", name=one["name"]).json() == one
    assert get_tradovate(base, "contract/items", ids=f"{one['id']},{contracts[3]['id']}").json() == [
        contracts[3],
        one,
    ]
    future = get_tradovate(base, "contract/items", ids=near["underlyingId"]).json()
    assert [c["name"] for c in future] == ["NQM5"]


def test_unknown_names_are_404_and_missing_tokens_401(at: Callable[..., str]) -> None:
    base = at("tradovate")
    assert get_tradovate(base, "product/find", name="XYZ").status_code == 404
    assert requests.get(f"{base}/v1/product/list", timeout=60).status_code == 401


def test_every_listed_option_has_its_own_id_in_the_library(at: Callable[..., str]) -> None:
    base = at("tradovate")
    masters = ",".join(
        str(m["id"])
        for p in get_tradovate(base, "product/list").json()
        for m in get_tradovate(base, "contractMaturity/deps", masterid=p["id"]).json()
    )
    contracts = get_tradovate(base, "contract/ldeps", masterids=masters).json()
    assert len({c["id"] for c in contracts}) == len({c["name"] for c in contracts}) == len(contracts) > 10_000


def test_a_subscription_is_confirmed_then_quoted_in_parts(at: Callable[..., str], shared: Path) -> None:
    known = json.loads((shared / "tradovate/frames_and_bodies.json").read_text())["documented"]
    documented = next(entry["message"] for entry in known if "message" in entry)["d"]["quotes"][0]
    base = at("tradovate")
    with tradovate_socket(base) as connection:
        authorize(connection, base)
        send_request(connection, "md/subscribeQuote", 2, {"symbol": "NQM5"})
        reply, book, rest = receive_messages(connection, 3)
    assert (reply["s"], reply["i"]) == (200, 2)
    parts = [message["d"]["quotes"][0] for message in (book, rest)]
    assert set(parts[0]) == set(documented)
    assert set(parts[0]["entries"]) == {"Bid", "Offer"}
    assert set(parts[0]["entries"]) | set(parts[1]["entries"]) == set(documented["entries"])


def test_contracts_are_subscribed_by_id_as_well_as_by_name(at: Callable[..., str]) -> None:
    base = at("tradovate")
    contract = get_tradovate(base, "contract/find", name="Q2CM5 C22600").json()
    with tradovate_socket(base) as connection:
        authorize(connection, base)
        for number, symbol in enumerate((contract["id"], contract["name"]), start=2):
            send_request(connection, "md/subscribeQuote", number, {"symbol": symbol})
            reply, quote, _ = receive_messages(connection, 3)
            assert reply["i"] == number
            assert quote["d"]["quotes"][0]["contractId"] == contract["id"]


def test_unanswerable_requests_get_the_vendors_errors(at: Callable[..., str]) -> None:
    base = at("tradovate")
    with tradovate_socket(base) as connection:
        send_request(connection, "md/subscribeQuote", 1, {"symbol": "NQM5"})
        assert receive_messages(connection, 1)[0]["s"] == 401
        authorize(connection, base)
        send_request(connection, "quote/subscribe", 2)
        assert receive_messages(connection, 1) == [{"s": 404, "i": 2, "d": '"Not found: quote/subscribe"'}]
        send_request(connection, "md/subscribeQuote", 3, {"symbol": "NOSUCH"})
        reply = receive_messages(connection, 1)[0]
        assert reply["s"] == 200 and "errorText" in reply["d"]


def test_the_server_sends_heartbeats(at: Callable[..., str]) -> None:
    with tradovate_socket(at("tradovate")) as connection:
        assert connection.recv(timeout=60) == "h"


@pytest.mark.parametrize(("fault", "status"), [("not_entitled", 401), ("rate_limited", 429)])
def test_a_refused_subscription_has_its_status(at: Callable[..., str], fault: str, status: int) -> None:
    with tradovate_socket(at("tradovate", fault=fault)) as connection:
        if fault != "rate_limited":
            authorize(connection, at("tradovate"))
        send_request(connection, "md/subscribeQuote", 5, {"symbol": "NQM5"})
        assert receive_messages(connection, 1)[0]["s"] == status


def test_an_unavailable_feed_refuses_the_handshake(at: Callable[..., str]) -> None:
    with pytest.raises(InvalidStatus) as refused, tradovate_socket(at("tradovate", fault="unavailable")):
        pass
    assert refused.value.response.status_code == 503


def test_a_truncated_feed_closes_in_the_middle(at: Callable[..., str]) -> None:
    base = at("tradovate", fault="truncated")
    with tradovate_socket(base) as connection, pytest.raises(ConnectionClosed):
        authorize(connection, at("tradovate"))
        for number in range(2, 40):
            send_request(connection, "md/subscribeQuote", number, {"symbol": "NQM5"})
            receive_messages(connection, 3)


def test_a_malformed_feed_has_valid_quotes_as_well(at: Callable[..., str]) -> None:
    base = at("tradovate", fault="malformed")
    frames: list[str] = []
    with tradovate_socket(base) as connection:
        authorize(connection, at("tradovate"))
        for number in range(2, 12):
            send_request(connection, "md/subscribeQuote", number, {"symbol": "NQM5"})
        while len(frames) < 32:
            frame = str(connection.recv(timeout=60))
            frames += [frame] if frame != "h" else []
    broken = 'a[{"e":"md","d":'
    assert 0 < sum(frame == broken for frame in frames) < 4
