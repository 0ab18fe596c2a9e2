"""The live capture as a person watches it in a browser: the sensor's words, the run, plots and checks."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nq_pipeline_tests.testing.browser import CHROMIUM, FLAGS, require_browser
from nq_pipeline_tests.testing.capture_market import DAY, CaptureMarket, capture_market
from nq_pipeline_tests.testing.dagster_dev import Dev, dagster_dev

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.timeout(600)]


@pytest.fixture
def it(tmp_path: Path) -> Iterator[CaptureMarket]:
    require_browser()
    with capture_market(tmp_path / "data", load=50) as it:
        yield it


@pytest.fixture
def dev(it: CaptureMarket, tmp_path: Path) -> Iterator[Dev]:
    folder = tmp_path / "clone"
    folder.mkdir()
    with dagster_dev(folder, it.settings) as dev:
        yield dev


def test_a_capture_is_watched_in_the_ui(dev: Dev, it: CaptureMarket) -> None:
    from playwright.sync_api import expect, sync_playwright

    dev.wait_until(lambda: it.is_captured_since(0))
    dev.wait_until(lambda: "Sensor live_capture skipped: capturing since" in dev.log.read_text())
    time.sleep(70)  # a second observation, so that there is something to plot
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1500, "height": 1300})
        page.set_default_timeout(30_000)
        expect.set_options(timeout=30_000)

        def look(path: str, name: str, *texts: str) -> None:
            page.goto(f"{dev.url}/{path}")
            try:
                for text in texts:
                    expect(page.get_by_text(re.compile(text)).first).to_be_visible()
            finally:
                page.screenshot(path=dev.folder / f"{name}.png")

        look(
            "locations/nq_pipeline/sensors/live_capture",
            "sensor",
            "Keeps exactly one capture",
            "0 runs requested",
        )
        page.get_by_text("0 runs requested").nth(2).click()
        expect(page.get_by_text(re.compile(r"capturing since .* process \d+"))).to_be_visible()
        page.screenshot(path=dev.folder / "tick.png")

        look("locations/nq_pipeline/asset-groups/capture", "group", "trades", "capture_health")
        look("assets/databento/trades?view=overview", "trades", "captured live", "ts_event")
        look(
            "assets/databento/trades?view=checks",
            "checks",
            "completeness",
            "entitlement",
            "freshness",
            "gaps",
        )
        look("assets/live/capture_health?view=overview", "health", "records_per_s", "lag_p99_ms")
        page.get_by_role("button", name="Plots").click()
        expect(page.locator("canvas").first).to_be_visible()
        page.wait_for_timeout(1000)  # the plots are drawn
        page.screenshot(path=dev.folder / "plots.png", full_page=True)
        (run,) = dev.capture_runs()
        assert run["tags"]["dagster/partition"] == DAY
        look(f"runs/{run['runId']}", "run", "streaming trades for options")
        browser.close()
