"""The UI as a person sees it: `dagster dev` over the sandbox, one vendor blocked, in a real browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from nq_pipeline_tests.orchestration.dev import Dev, dagster_dev

DAY, NOW = "2025-06-10", "2025-06-10T15:00:00Z"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    *(["--no-sandbox"] if os.getuid() == 0 else []),  # Chromium's own sandbox refuses root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    pytest.importorskip("playwright", reason="playwright is not installed (make install)")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    settings = {"NQ_NOW": NOW, "NQ_SANDBOX_FAULTS": "barchart=blocked"}
    with dagster_dev(tmp_path_factory.mktemp("clone"), settings) as running:
        yield running


def test_a_blocked_vendor_is_a_failed_check_and_the_chain_is_there_all_the_same(ui: Dev) -> None:
    from playwright.sync_api import expect, sync_playwright

    assert ui.run("chain_snapshot", DAY) == "SUCCESS", ui.tail()

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1500, "height": 1300})
        page.set_default_timeout(30_000)
        expect.set_options(timeout=30_000)

        def look(path: str, name: str, *texts: str) -> None:
            page.goto(f"{ui.url}/{path}")
            try:
                for text in texts:
                    expect(page.get_by_text(text).first).to_be_visible()
                expect(page.get_by_text("Loading")).to_have_count(0)
            finally:
                page.screenshot(path=ui.folder / f"{name}.png")

        look("locations/nq_pipeline/asset-groups/chains", "graph", "option_chain", "barchart", "databento")
        look(
            f"assets/nq/option_chain?view=partitions&partition={DAY}",
            "chain",
            "winners",
            "dagster/partition_row_count",
            "tradovate",
        )
        page.get_by_role("row", name="open_interest [Show Markdown]").get_by_text("[Show Markdown]").click()
        expect(page.locator('img[src^="data:image/svg+xml"]')).to_be_visible()
        page.wait_for_timeout(500)  # the dialog fades in
        page.screenshot(path=ui.folder / "plot.png")
        look(
            "assets/nq/option_chain?view=checks",
            "chain_checks",
            "parity_forward",
            "sources_agree",
            "no_proxy",
        )
        look("assets/nq/option_chain?view=overview", "chain_overview", "contract_key", "Option".lower())
        look("assets/barchart/option_chain?view=checks", "barchart_checks", "available", "blocked")
        look("assets/databento/option_chain?view=overview", "databento_overview", "Metered unless")
        look("overview/automation", "automation", "chains_while_open", "housekeeping_after_close")
        browser.close()
