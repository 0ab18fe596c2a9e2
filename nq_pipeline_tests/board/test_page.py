"""The page as a person sees it: it moves, on a desktop and on a phone, and loads nothing foreign."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest
import requests

from nq_pipeline.charts.theme import DARK, LIGHT, SANDBOX
from nq_pipeline.clock import ShiftedClock, to_ns
from nq_pipeline.settings import Settings
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.boards import live_board
from nq_pipeline_tests.testing.dbn_streams import NOON
from nq_pipeline_tests.testing.feeds import Feed, market
from nq_pipeline_tests.testing.report_lake import HOSTILE, store_snapshot

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A lake with a chain, one of whose vendors failed with a reason that is HTML."""
    return store_snapshot(tmp_path_factory.mktemp("data"))[0]


@pytest.fixture(scope="module")
def feed(settings: Settings) -> Iterator[Feed]:
    with Feed(Workspace.of(settings).capture) as feed:
        feed.session(market(200))
        yield feed


@pytest.fixture(scope="module")
def address(settings: Settings, feed: Feed) -> Iterator[str]:
    with live_board(settings, ShiftedClock(NOON), capture_end=lambda: "the disk is full") as address:
        yield address


def send_trades(feed: Feed, count: int, *, price: float, first: int) -> None:
    """Log trades in the future at a price, in one piece."""
    records = np.repeat(market(1)[:1], count)
    records["instrument_id"], records["sequence"] = 1, first + np.arange(count)
    records["ts_event"] = to_ns(NOON) + 10**10 + first * 1_000 + np.arange(count)
    records["ts_recv"] = records["ts_event"] + 40_000
    records["price"], records["size"], records["side"] = int(price * 1e9), 7, b"A"
    feed.send(records)


class Watched:
    """The page on a screen, with everything it complained of and asked for."""

    def __init__(self, browser: Browser, address: str, scheme: str = "light", width: int = 1440) -> None:
        self.page: Page = browser.new_page(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,  # type: ignore[arg-type]
        )
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(address)


def rgb(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgb({red}, {green}, {blue})"


@pytest.mark.parametrize(("scheme", "width"), [("light", 1440), ("dark", 390)])
def test_the_page_shows_the_market(
    browser: Browser, feed: Feed, address: str, scheme: str, width: int
) -> None:
    from playwright.sync_api import expect

    watched = Watched(browser, address, scheme, width)
    page = watched.page
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    expect(page.locator("#sandbox")).to_contain_text(SANDBOX)
    expect(page.locator("#clock")).to_contain_text("Open, regular hours")
    expect(page.locator("#clock")).to_contain_text("next open Tue 17:00 CT")
    expect(page.locator("#future-name")).to_have_text("Future NQM5")
    expect(page.locator("#capture")).to_contain_text("running")
    expect(page.locator("#capture")).to_contain_text("the disk is full")
    expect(page.locator("#open-gaps")).to_have_text("0")
    expect(page.locator("#chain")).to_contain_text("tradovate")
    expect(page.locator("#chain")).to_contain_text(HOSTILE)
    expect(page.locator("#spend")).to_contain_text("left this month")
    for chart in ("#price-chart", "#calls-chart", "#puts-chart"):
        expect(page.locator(f"{chart} svg")).to_be_visible(timeout=60_000)
    expect(page.locator('#calls-chart [aria-label*="bought"]').first).to_be_attached()
    palette = LIGHT if scheme == "light" else DARK
    style = "getComputedStyle(document.body)"
    assert page.evaluate(f"[{style}.backgroundColor, {style}.color]") == [
        rgb(palette["paper"]),
        rgb(palette["ink"]),
    ]
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "no scrolling to the side"
    assert watched.complaints == []
    assert all(url.startswith(f"{address}/") or url == "data:," for url in watched.asked)
    page.close()


def test_a_trade_appears_on_the_tape_by_itself(browser: Browser, feed: Feed, address: str) -> None:
    from playwright.sync_api import expect

    page = Watched(browser, address).page
    expect(page.locator("#tape tbody tr").first).to_be_visible()
    send_trades(feed, 1, price=21_999.25, first=10_000)
    first = page.locator("#tape tbody tr").first
    expect(first).to_contain_text("NQM5")
    assert [cell.strip() for cell in first.locator("td").all_text_contents()[2:]] == [
        "21,999.25",
        "7",
        "▼ sell",
    ]
    expect(page.locator("#future")).to_have_text("21,999.25")
    page.close()


def test_the_tape_can_be_filtered_and_paused(browser: Browser, feed: Feed, address: str) -> None:
    from playwright.sync_api import expect

    page = Watched(browser, address).page
    first = page.locator("#tape tbody tr").first
    expect(first).to_be_visible()
    page.locator("#kind").select_option("option")
    expect(first).to_contain_text("Q2C 11 Jun 21,800")
    page.locator("#kind").select_option("")
    page.locator("#least").fill("7")
    send_trades(feed, 1, price=21_900.00, first=20_000)
    expect(first).to_contain_text("21,900.00")
    page.locator("#pause").check()
    send_trades(feed, 1, price=21_901.00, first=20_100)
    expect(page.locator("#future")).to_have_text("21,901.00")
    expect(first).to_contain_text("21,900.00")
    page.locator("#pause").uncheck()
    expect(first).to_contain_text("21,901.00")
    page.close()


def test_a_hole_in_the_tape_is_shown(browser: Browser, address: str) -> None:
    """The board keeps so many trades; a browser that was farther behind gets later ones."""
    from playwright.sync_api import expect

    def event(first: int) -> str:
        batch = {"first": first, "time": [0], "name": ["NQM5"], "type": [None], "strike": [None], "side": "B"}
        tape = [batch | {"price": [1.0], "size": [1]}]
        data = json.dumps({"board": {"products": ["NQ"], "tape": 9}, "tape": tape})
        return f"id: x:{first + 1}\ndata: {data}\n\n"

    page = browser.new_page()
    page.route(
        "**/events*",
        lambda route: route.fulfill(content_type="text/event-stream", body=event(0) + event(1_235)),
    )
    page.goto(address)
    expect(page.locator("#tape tbody tr").nth(1)).to_contain_text("1,234 trades not shown")
    expect(page.locator("#tape-note")).to_contain_text("1,234 not shown, because this page was behind")
    page.close()


@pytest.mark.parametrize("width", [390, 360])
def test_a_phone_shows_every_column_of_the_tape(browser: Browser, address: str, width: int) -> None:
    from playwright.sync_api import expect

    batch = {
        "first": 0,
        "time": [1_749_567_600_000] * 3,
        "name": ["QNE 30 Nov", "UD:1V: GN 0123456789 and more", "NQM5"],
        "type": ["P", None, None],
        "strike": [21_800.0, None, None],
        "price": [1_021.25, 21_999.25, 21_999.25],
        "size": [250, 1, 1],
        "side": "ABN",
    }
    data = json.dumps({"board": {"products": ["NQ"], "tape": 9}, "tape": [batch]})
    page = browser.new_page(viewport={"width": width, "height": 844})
    page.route(
        "**/events*",
        lambda route: route.fulfill(content_type="text/event-stream", body=f"id: x:3\ndata: {data}\n\n"),
    )
    page.goto(address)
    option = page.locator("#tape tbody tr").last
    expect(option).to_contain_text("QNE 30 Nov 21,800 P")
    edges = "(all) => Math.max(...all.map((one) => one.getBoundingClientRect().right))"
    columns = page.locator("#tape th, #tape td").evaluate_all(edges)
    assert columns <= page.locator("#rows").evaluate_all(edges)
    contract = "(row) => row.cells[1].scrollWidth <= row.cells[1].clientWidth"
    assert option.evaluate(contract), "the whole name of an option"
    page.close()


@pytest.mark.parametrize(
    ("ahead", "words"), [(-25, "25 min old"), (360, "later than the hours replayed here")]
)
def test_a_chain_later_than_the_replayed_hours_has_no_age(
    browser: Browser, address: str, ahead: int, words: str
) -> None:
    from playwright.sync_api import expect

    now = 1_749_567_600_000
    clock = {"now": now, "offset": 0, "state": "regular", "change": "x", "changes_at": now, "next_open": now}
    chain = {"NQ": {"winners": [], "losers": [], "snapshot": now + ahead * 60_000}}
    data = json.dumps({"board": {"products": ["NQ"], "tape": 9}, "clock": clock, "chain": chain})
    page = browser.new_page()
    page.route(
        "**/events*",
        lambda route: route.fulfill(content_type="text/event-stream", body=f"id: x:1\ndata: {data}\n\n"),
    )
    page.goto(address)
    expect(page.locator("#chain")).to_contain_text(words)
    page.close()


def test_only_the_boards_own_parts_may_run(address: str) -> None:
    answer = requests.get(address, timeout=10)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert requests.get(f"{address}/../../etc/passwd", timeout=10).status_code == 404
    assert requests.post(address, timeout=10).status_code == 405
