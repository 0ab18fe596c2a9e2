"""The report and the notebook as a person sees them: in a real browser, the report on a phone, too."""

from __future__ import annotations

import os
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
from nq_pipeline_tests.testing.browser import CHROMIUM, FLAGS
from nq_pipeline_tests.testing.report_lake import NOTEBOOK

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

SCREENS = [("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (make install)")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


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


def rgb(colour: str) -> str:
    """A colour of the palette as the browser names it."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgb({red}, {green}, {blue})"


@pytest.mark.parametrize(("scheme", "width"), SCREENS)
def test_page_opens_from_disk_without_network(
    browser: Browser, address: str, scheme: str, width: int
) -> None:
    from playwright.sync_api import expect

    watched = Watched(browser, address, scheme, width)
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
        figure = page.locator("figure", has=page.get_by_role("heading", name=heading))
        expect(figure.get_by_role("heading")).to_be_visible()
        expect(figure.locator("svg").locator("visible=true")).to_have_count(1)
    palette = LIGHT if scheme == "light" else DARK
    style = "getComputedStyle(document.body)"
    assert page.evaluate(f"[{style}.backgroundColor, {style}.color]") == [
        rgb(palette.paper),
        rgb(palette.ink),
    ]
    bars = page.locator("figure", has=page.get_by_role("heading", name="Open interest, all series"))
    bar = bars.locator("svg").locator("visible=true").locator('path[aria-label*="calls"]').first
    assert bar.evaluate("bar => getComputedStyle(bar).fill") == rgb(palette.call)
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "no scrolling to the side"
    assert watched.asked == [address] and watched.complaints == []
    page.close()


def test_pointing_at_a_mark_shows_its_numbers(browser: Browser, address: str) -> None:
    from playwright.sync_api import expect

    page = Watched(browser, address, "light", 1280).page
    tip = page.locator("#tip")
    expect(tip).to_be_hidden()
    figure = page.locator("figure", has=page.get_by_role("heading", name="Term structure"))
    mark = figure.locator('.wide [role="graphics-symbol"][aria-label*="days"]:not(.role-axis)').first
    mark.scroll_into_view_if_needed()
    box = mark.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] - 8, box["y"] + 2)
    expect(tip).to_be_visible()
    expect(tip).to_have_text(mark.get_attribute("aria-label") or "")
    page.get_by_role("heading", name="NQ options").hover()
    expect(tip).to_be_hidden()
    page.close()


def test_printed_page_is_light_and_complete(browser: Browser, address: str) -> None:
    page = Watched(browser, address, "dark", 1280).page
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == rgb(LIGHT.paper)
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
    assert {rgb(LIGHT.first), rgb(LIGHT.paper)} <= set(colours)
    assert all(address.startswith((notebook, "data:")) for address in watched.asked)
    page.close()
