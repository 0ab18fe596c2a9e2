"""The report and the notebook as a person sees them: in a real browser, the report on a phone, too."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nq_pipeline.charts.theme import DARK, LIGHT, SANDBOX
from nq_pipeline.report.page import write_report
from nq_pipeline.settings import Settings
from nq_pipeline_tests.testing.report_lake import NOTEBOOK, store_snapshot

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = pytest.mark.browser

SCREENS = [("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390)]


@pytest.fixture(scope="module")
def address(sandbox: Settings) -> str:
    path = write_report(sandbox).path
    assert path
    return path.as_uri()


class Watched:
    """The page on a screen, with everything it complained of and asked for."""

    def __init__(self, browser: Browser, address: str, scheme: str, width: int) -> None:
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


def drawn(browser: Browser, address: str, scheme: str = "light", width: int = 1280) -> Watched:
    """The report on a screen, once all its charts are drawn."""
    watched = Watched(browser, address, scheme, width)
    watched.page.wait_for_function("document.body.dataset.drawn")
    return watched


def figure(page: Page, heading: str) -> Locator:
    return page.locator("figure", has=page.get_by_role("heading", name=heading))


def marks(figure: Locator) -> list[str]:
    """What the marks of a chart say."""
    found = figure.locator('[role="graphics-symbol"][aria-label]:not(.role-axis)').all()
    return [mark.get_attribute("aria-label") or "" for mark in found]


def rgb(colour: str) -> str:
    """A colour of the palette as the browser names it."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgb({red}, {green}, {blue})"


@pytest.mark.parametrize(("scheme", "width"), SCREENS)
def test_page_opens_from_disk_without_network(
    browser: Browser, address: str, scheme: str, width: int
) -> None:
    from playwright.sync_api import expect

    watched = drawn(browser, address, scheme, width)
    page = watched.page
    expect(page.get_by_role("heading", name="NQ options")).to_be_visible()
    expect(page.get_by_text(SANDBOX, exact=True).first).to_be_visible()
    for heading in (
        "Volatility smile",
        "Term structure",
        "Expected move",
        "Net gamma exposure",
        "Pressure, calls",
    ):
        chart = figure(page, heading)
        expect(chart.get_by_role("heading")).to_be_visible()
        expect(chart.locator("svg")).to_have_count(1)
        across = chart.locator("svg").bounding_box()
        assert across and 300 < across["width"] <= width
    palette = LIGHT if scheme == "light" else DARK
    style = "getComputedStyle(document.body)"
    assert page.evaluate(f"[{style}.backgroundColor, {style}.color]") == [
        rgb(palette["paper"]),
        rgb(palette["ink"]),
    ]
    bar = figure(page, "Open interest").locator('path[aria-label*="calls"]').first
    assert bar.evaluate("bar => getComputedStyle(bar).fill") == rgb(palette["call"])
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "no scrolling to the side"
    assert watched.asked == [address] and watched.complaints == []
    page.close()


def test_pointing_at_a_mark_shows_its_numbers(browser: Browser, address: str) -> None:
    from playwright.sync_api import expect

    page = drawn(browser, address).page
    tip = page.locator("#tip")
    expect(tip).to_be_hidden()
    mark = figure(page, "Term structure").locator('path[aria-label*="days"]').first
    mark.hover()
    expect(tip).to_be_visible()
    expect(tip).to_have_text(mark.get_attribute("aria-label") or "")
    page.get_by_role("heading", name="NQ options").hover()
    expect(tip).to_be_hidden()
    page.close()


def test_a_finger_on_a_mark_shows_its_numbers(browser: Browser, address: str) -> None:
    from playwright.sync_api import expect

    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(address)
    page.wait_for_function("document.body.dataset.drawn")
    mark = figure(page, "Term structure").locator('path[aria-label*="days"]').first
    mark.tap()
    expect(page.locator("#tip")).to_have_text(mark.get_attribute("aria-label") or "")
    context.close()


def test_controls_change_the_charts_of_their_section(browser: Browser, address: str) -> None:
    from playwright.sync_api import expect

    watched = drawn(browser, address)
    page = watched.page
    volatility, positions = (page.get_by_role("region", name=name) for name in ("Volatility", "Positions"))
    smile, interest = figure(page, "Volatility smile"), figure(page, "Open interest")
    assert any(" put ·" in mark for mark in marks(smile))
    volatility.get_by_text("calls", exact=True).click()
    expect(smile.locator('path[aria-label*=" put ·"]')).to_have_count(0)
    volatility.get_by_text("delta", exact=True).click()
    expect(smile.get_by_text(re.compile("^[1-4][05]P$")).first).to_be_visible()
    both = len(marks(interest))
    positions.get_by_text("calls", exact=True).click()
    expect(interest.locator('path[aria-label*="calls"]')).not_to_have_count(both)
    positions.locator("label:has([type=checkbox])").first.click()
    expect(interest.get_by_text("max pain")).to_be_visible()
    positions.get_by_role("button", name="all").click()
    expect(interest.get_by_text("max pain")).to_have_count(0)
    assert watched.complaints == []
    page.close()


def test_a_page_compares_with_earlier_snapshots(browser: Browser, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    for now in ("2025-06-09T20:30:00Z", "2025-06-10T14:30:00Z"):
        store_snapshot(tmp_path, now=now)
    settings, _ = store_snapshot(tmp_path)
    path = write_report(settings).path
    assert path
    page = drawn(browser, path.as_uri()).page
    smile, tile = figure(page, "Volatility smile"), page.locator(".tiles div", has_text="ATM IV")
    earlier = smile.locator('path[aria-label*=", earlier"]')
    expect(tile.locator(".change.close")).to_be_visible()
    assert earlier.count() > 0
    page.get_by_text("previous snapshot, 09:30").click()
    expect(tile.locator(".change.previous")).to_be_visible()
    expect(tile.locator(".change.close")).to_be_hidden()
    page.get_by_text("nothing", exact=True).click()
    expect(earlier).to_have_count(0)
    page.close()


def test_tables_scroll_on_a_phone_and_charts_fill_a_wide_screen(browser: Browser, address: str) -> None:
    page = drawn(browser, address, width=390).page
    table = page.locator(".scroll").first
    assert table.evaluate("one => one.scrollWidth > one.clientWidth")
    page.set_viewport_size({"width": 2200, "height": 900})
    page.wait_for_timeout(200)
    last = page.locator("[id='1-volatility'] figure svg").nth(2).bounding_box()
    assert last and last["x"] + last["width"] > 1200, "three charts or more in a row"
    page.close()


def test_printed_page_is_light_and_complete(browser: Browser, address: str) -> None:
    page = drawn(browser, address, "dark").page
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == rgb(LIGHT["paper"])
    assert page.locator("nav").is_hidden()
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.close()


@pytest.fixture
def notebook(sandbox: Settings, tmp_path: Path) -> Iterator[str]:
    """The address of the notebook, served."""
    pytest.importorskip("marimo", reason="marimo is not installed (make install)")
    shutil.copy(NOTEBOOK, tmp_path)  # marimo leaves its session beside it
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["run", "--headless", "--no-token", "--host", "127.0.0.1", "--port", str(port), NOTEBOOK.name]
    server = subprocess.Popen(
        [sys.executable, "-m", "marimo", *words],
        cwd=tmp_path,
        env=os.environ | {"NQ_DATA_DIR": str(sandbox.data_dir)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while server.poll() is None:
            with socket.socket() as knock:
                if knock.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def test_notebook_shows_charts_and_loads_nothing_foreign(browser: Browser, notebook: str) -> None:
    from playwright.sync_api import expect

    watched = Watched(browser, notebook, "light", 1280)
    page = watched.page
    expect(page.get_by_role("heading", name="First look")).to_be_visible(timeout=60_000)
    plots = page.locator("canvas.marks")
    expect(plots).to_have_count(7, timeout=60_000)
    smile = plots.first
    expect(smile).to_be_visible()
    colours = smile.evaluate(
        """plot => {
            const {data} = plot.getContext("2d").getImageData(0, 0, plot.width, plot.height);
            return [...new Set(new Uint32Array(data.buffer))].map(
                pixel => `rgb(${pixel & 255}, ${pixel >> 8 & 255}, ${pixel >> 16 & 255})`);
        }"""
    )
    assert {rgb(LIGHT["first"]), rgb(LIGHT["paper"])} <= set(colours)
    assert all(address.startswith((notebook, "data:")) for address in watched.asked)
    page.close()
