"""A budget of nothing as a person sees it: `dagster dev` over the sandbox, in a real browser."""

from __future__ import annotations

import json
import re
import time
from datetime import date
from pathlib import Path

import pytest
import requests

from nq_pipeline.lake.lake import Lake
from nq_pipeline.live.ladder import Ladder
from nq_pipeline.sandbox.process import endpoints
from nq_pipeline.settings import load
from nq_pipeline_tests.orchestration.dev import dagster_dev
from nq_pipeline_tests.orchestration.test_ui import CHROMIUM, DAY, FLAGS, NOW

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
PATIENCE_S = 120.0
TOLD = re.compile(r"Sensor alerts skipped: [1-9]\d* firing")


def test_a_refusal_a_fallback_and_an_alert_are_on_the_page_and_nothing_metered_was_sent(
    tmp_path: Path,
) -> None:
    pytest.importorskip("playwright", reason="playwright is not installed (make install)")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    from playwright.sync_api import expect, sync_playwright

    settings = load(data_dir=tmp_path / "data", now=NOW)
    ladder = Ladder(Lake(settings.environment_dir / "lake"), "GLBX.MDP3", {"options": "mbo"})
    for schema in ("mbo", "mbp-1"):
        ladder.refuse(schema, f"Not authorized for {schema} schema", date.fromisoformat(DAY))
    # The stand-ins are held open: what they were asked is still to be read when the run is over.
    with (
        endpoints(settings) as reachable,
        dagster_dev(tmp_path, {"NQ_NOW": NOW, "NQ_BUDGET_DAILY_USD": "0"}) as ui,
        sync_playwright() as driver,
    ):
        assert ui.run("chain_snapshot", DAY) == "SUCCESS", ui.tail()
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1500, "height": 1300})
        expect.set_options(timeout=30_000)
        for path, text in (
            ("assets/databento/option_chain?view=checks", "over_budget"),
            ("assets/spend/ledger?view=checks&checkDetail=budget", "NQ_BUDGET_DAILY_USD"),
            ("assets/spend/ledger?view=checks&checkDetail=entitlement", "mbp-1 is asked for instead"),
        ):
            page.goto(f"{ui.url}/{path}", timeout=30_000)
            try:
                expect(page.get_by_text(text).first).to_be_visible()
            finally:
                page.screenshot(path=tmp_path / f"{text[:11]}.png")
        log, give_up = settings.environment_dir / "alerts.jsonl", time.monotonic() + PATIENCE_S
        while time.monotonic() < give_up and not TOLD.search(ui.log.read_text()):
            time.sleep(0.5)
        assert "check/spend/ledger/budget" in _keys(log), ui.tail()
        page.goto(f"{ui.url}/locations/nq_pipeline/sensors/alerts", timeout=30_000)
        try:
            page.get_by_role("button", name="0 runs requested").first.click()
            expect(page.get_by_text(re.compile(r"[1-9]\d* firing")).first).to_be_visible()
        finally:
            page.screenshot(path=tmp_path / "alerts.png")
        browser.close()

        key = reachable.databento_api_key
        assert key is not None
        auth = (key.get_secret_value(), "")
        asked = requests.get(f"{reachable.databento_url}/requests", auth=auth, timeout=10).json()
        assert asked and not [one for one in asked if one["metered"]]


def _keys(log: Path) -> set[str]:
    lines = log.read_text().splitlines() if log.exists() else []
    return {json.loads(line).get("key", "") for line in lines}
