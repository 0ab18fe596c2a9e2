"""What each fault looks like on the wire, seen through a real socket."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
import requests

from nq_pipeline.sandbox.scenario import FAULTS
from nq_pipeline_tests.testing.vendor_clients import (
    BARCHART_API,
    POLYGON_CHAIN,
    POLYGON_HEADERS,
    barchart_options,
    barchart_rows,
    get_barchart,
    get_polygon,
    get_tradovate,
    login_tradovate,
)


def request_data(vendor: str, base: str) -> requests.Response:
    """The simplest request of each vendor; Tradovate's is the login."""
    if vendor == "barchart":
        return get_barchart(base, "MC2M25")
    if vendor == "polygon":
        params = {"limit": 250}
        return requests.get(base + POLYGON_CHAIN, params=params, headers=POLYGON_HEADERS, timeout=30)
    return login_tradovate(base)


@pytest.mark.parametrize(
    ("vendor", "fault", "status"),
    [
        ("barchart", "ok", 200),
        ("barchart", "blocked", 403),
        ("barchart", "challenged", 202),
        ("barchart", "penalty", 429),
        ("barchart", "rate_limited", 429),
        ("barchart", "stale", 200),
        ("barchart", "empty", 200),
        ("barchart", "not_entitled", 401),
        ("barchart", "malformed", 200),
        ("barchart", "wrong_content_type", 200),
        ("barchart", "unavailable", 500),
        ("polygon", "ok", 200),
        ("polygon", "blocked", 401),
        ("polygon", "challenged", 401),
        ("polygon", "penalty", 429),
        ("polygon", "rate_limited", 429),
        ("polygon", "stale", 200),
        ("polygon", "empty", 200),
        ("polygon", "not_entitled", 403),
        ("polygon", "malformed", 200),
        ("polygon", "wrong_content_type", 200),
        ("polygon", "unavailable", 500),
        ("tradovate", "ok", 200),
        ("tradovate", "blocked", 200),
        ("tradovate", "challenged", 200),
        ("tradovate", "penalty", 200),
        ("tradovate", "rate_limited", 429),
        ("tradovate", "stale", 200),
        ("tradovate", "empty", 200),
        ("tradovate", "not_entitled", 200),
        ("tradovate", "malformed", 200),
        ("tradovate", "wrong_content_type", 200),
        ("tradovate", "unavailable", 500),
    ],
)
def test_every_fault_answers_with_its_status(
    at: Callable[..., str], vendor: str, fault: str, status: int
) -> None:
    assert request_data(vendor, at(vendor, fault=fault)).status_code == status


def test_a_challenge_is_an_empty_202_or_a_page_for_browsers(at: Callable[..., str]) -> None:
    url = at("barchart", fault="challenged")
    program = request_data("barchart", url)
    browser = requests.get(url + BARCHART_API, headers={"accept": "text/html"}, timeout=5)
    assert program.headers["x-amzn-waf-action"] == browser.headers["x-amzn-waf-action"] == "challenge"
    assert (program.content, browser.headers["content-type"]) == (b"", "text/html; charset=utf-8")


def test_rate_limits_come_with_and_without_a_time_to_wait(at: Callable[..., str]) -> None:
    assert request_data("barchart", at("barchart", fault="rate_limited")).headers["retry-after"] == "1"
    assert "retry-after" not in request_data("polygon", at("polygon", fault="rate_limited")).headers
    assert request_data("tradovate", at("tradovate", fault="rate_limited")).content == b""


@pytest.mark.parametrize("vendor", ["barchart", "polygon", "tradovate"])
def test_a_page_with_status_200_can_replace_json(at: Callable[..., str], vendor: str) -> None:
    reply = request_data(vendor, at(vendor, fault="wrong_content_type"))
    assert reply.headers["content-type"].startswith("text/html") and reply.text.startswith("<!DOCTYPE")


@pytest.mark.parametrize("vendor", ["barchart", "polygon", "tradovate"])
def test_a_truncated_body_ends_before_its_promised_length(at: Callable[..., str], vendor: str) -> None:
    with pytest.raises((requests.exceptions.ChunkedEncodingError, requests.exceptions.ConnectionError)):
        request_data(vendor, at(vendor, fault="truncated"))


def test_a_slow_answer_sends_one_byte_a_second(at: Callable[..., str]) -> None:
    parts = urlsplit(at("polygon", fault="slow"))
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port or 0, timeout=5)
    connection.request("GET", parts.path + POLYGON_CHAIN, headers=POLYGON_HEADERS)
    reply = connection.getresponse()
    assert reply.status == 200 and int(reply.headers["content-length"]) > 1_000
    assert [reply.read1(100) for _ in range(2)] == [b"{", b'"']
    connection.close()


def test_stale_data_is_ten_days_old(at: Callable[..., str]) -> None:
    stale = barchart_options(at("barchart", fault="stale"), "MQ4M25")
    fresh = barchart_options(at("barchart", now="2025-05-31T15:00:00Z"), "MQ4M25")
    assert stale["data"] == fresh["data"]
    assert {row["tradeTime"] for row in barchart_rows(stale)} <= {"05/30/25", "05/29/25"}


def test_an_empty_answer_is_valid_and_has_no_rows(at: Callable[..., str]) -> None:
    assert barchart_options(at("barchart", fault="empty"), "MC2M25")["data"] == []
    assert get_polygon(at("polygon", fault="empty") + POLYGON_CHAIN)["results"] == []
    base = at("tradovate", fault="empty")
    assert get_tradovate(base, "contract/deps", masterid=1).json() == []


def test_malformed_answers_are_json_in_which_some_rows_are_broken(at: Callable[..., str]) -> None:
    good = barchart_rows(barchart_options(at("barchart"), "MC2M25"))
    bad = barchart_rows(barchart_options(at("barchart", fault="malformed"), "MC2M25"))
    broken = [row for row, was in zip(bad, good, strict=True) if row != was]
    assert len(broken) == -(-len(good) // 10)
    assert {json.dumps(row["raw"]) == "null" for row in broken} == {True, False}
    fine = request_data("polygon", at("polygon")).json()["results"]
    spoilt = request_data("polygon", at("polygon", fault="malformed")).json()["results"]
    assert sum(row != was for row, was in zip(spoilt, fine, strict=True)) == 25


def test_a_fault_reaches_one_vendor_only(root: str) -> None:
    with_fault = f"{root}/with/fault=blocked;now=2025-06-10T15:00:00Z/barchart"
    assert request_data("barchart", with_fault).status_code == 403
    assert request_data("polygon", f"{root}/polygon").status_code == 200


@pytest.mark.parametrize("options", ["fault=nonsense", "now=yesterday", "seed=x", "colour=blue"])
def test_an_unknown_option_is_a_400_that_lists_the_faults(root: str, options: str) -> None:
    reply = requests.get(f"{root}/with/{options}/polygon/v1/marketstatus/now", timeout=5)
    assert reply.status_code == 400
    assert reply.text.startswith(repr(options)) and all(fault in reply.text for fault in FAULTS)
