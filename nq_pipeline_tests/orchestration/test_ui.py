"""The UI as a person sees it: `dagster dev` over the sandbox, in a real browser.

One vendor is blocked, the budget is nothing, and the gateway has refused two schemas.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import requests

from nq_pipeline.capture.schema_fallback import SchemaFallback
from nq_pipeline.configuration import load
from nq_pipeline.runtime import endpoints
from nq_pipeline.settings import Settings
from nq_pipeline.sources.databento.spec import DatabentoSettings
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.browser import CHROMIUM, FLAGS, require_browser
from nq_pipeline_tests.testing.dagster_dev import Dev, dagster_dev

if TYPE_CHECKING:
    from playwright.sync_api import Page

DAY, NOW = "2025-06-10", "2025-06-10T15:00:00Z"
TICK = re.compile(r"Sensor alerts skipped: [1-9]\d* firing")

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Watched:
    """A Dagster that has run the job of the chains once, and the browser's page that looks at it."""

    dev: Dev
    page: Page
    settings: Settings
    vendors: Settings
    """The settings with the addresses of the stand-ins."""

    def look(self, path: str, name: str, *texts: str) -> None:
        from playwright.sync_api import expect

        self.page.goto(f"{self.dev.url}/{path}")
        try:
            for text in texts:
                expect(self.page.get_by_text(text).first).to_be_visible()
            expect(self.page.get_by_text("Loading")).to_have_count(0)
        except AssertionError:
            self.page.screenshot(path=self.dev.folder / f"{name}.png")
            raise


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    require_browser()
    from playwright.sync_api import expect, sync_playwright

    folder = tmp_path_factory.mktemp("clone")
    settings = load(data_dir=folder / "data", now=NOW)
    schemas = SchemaFallback(Workspace.of(settings).lake, "GLBX.MDP3", {"options": "mbo"})
    for schema in ("mbo", "mbp-1"):
        schemas.refuse(schema, f"Not authorized for {schema} schema", date.fromisoformat(DAY))
    given = {"NQ_NOW": NOW, "NQ_SANDBOX_FAULTS": "barchart=blocked", "NQ_BUDGET_DAILY_USD": "0"}
    # The stand-ins are held open: what they were asked is still to be read when the run is over.
    with endpoints(settings) as vendors, dagster_dev(folder, given) as dev, sync_playwright() as driver:
        assert dev.run("chain_snapshot", DAY) == "SUCCESS", dev.tail()
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1500, "height": 1300})
        page.set_default_timeout(30_000)
        expect.set_options(timeout=30_000)
        yield Watched(dev, page, settings, vendors)
        browser.close()


def test_a_blocked_vendor_is_a_failed_check_beside_a_chain(ui: Watched) -> None:
    from playwright.sync_api import expect

    ui.look("locations/nq_pipeline/asset-groups/chains", "graph", "option_chain", "barchart", "databento")
    ui.look(
        f"assets/nq/option_chain?view=partitions&partition={DAY}",
        "chain",
        "winners",
        "dagster/partition_row_count",
        "tradovate",
    )
    shown = ui.page.get_by_role("row", name="open_interest [Show Markdown]")
    shown.get_by_text("[Show Markdown]").click()
    expect(ui.page.locator('img[src^="data:image/svg+xml"]')).to_be_visible()
    ui.look(
        "assets/nq/option_chain?view=checks", "chain_checks", "parity_forward", "sources_agree", "no_proxy"
    )
    ui.look("assets/nq/report?view=overview", "report", "needs no network", "sketch")
    expect(ui.page.locator('img[src^="data:image/svg+xml"]')).to_be_visible()
    ui.look("assets/barchart/option_chain?view=checks", "barchart_checks", "available", "blocked")


def test_refusal_fallback_and_alert_are_shown_and_nothing_is_paid(ui: Watched) -> None:
    from playwright.sync_api import expect

    ui.look("assets/databento/option_chain?view=checks", "over_budget", "over_budget")
    ui.look("assets/spend/ledger?view=checks&checkDetail=budget", "budget", "NQ_BUDGET_DAILY_USD")
    ui.look(
        "assets/spend/ledger?view=checks&checkDetail=entitlement",
        "entitlement",
        "mbp-1 is requested instead",
    )
    alerts = ui.settings.environment_dir / "alerts.jsonl"
    ui.dev.wait_until(lambda: "check/spend/ledger/budget" in keys(alerts))
    ui.dev.wait_until(lambda: TICK.search(ui.dev.log.read_text()) is not None)  # a tick with alerts has ended
    ui.look("locations/nq_pipeline/sensors/alerts", "alerts")
    ui.page.get_by_role("button", name="0 runs requested").first.click()
    expect(ui.page.get_by_text(re.compile(r"[1-9]\d* firing")).first).to_be_visible()

    databento = ui.vendors.vendor(DatabentoSettings)
    assert databento.api_key
    auth = (databento.api_key.get_secret_value(), "")
    asked = requests.get(f"{databento.url}/requests", auth=auth, timeout=10).json()
    assert asked and not [one for one in asked if one["metered"]]


def keys(log: Path) -> set[str]:
    lines = log.read_text().splitlines() if log.exists() else []
    return {json.loads(line).get("key", "") for line in lines}
