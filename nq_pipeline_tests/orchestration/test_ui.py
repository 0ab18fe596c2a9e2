"""The UI as a person sees it: `dagster dev` over the sandbox, one vendor blocked, in a real browser."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

ROOT = Path(__file__).parents[2]
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


@dataclass(frozen=True)
class Ui:
    """A running `dagster dev`."""

    url: str
    folder: Path

    def graphql(self, query: str, **variables: object) -> Any:
        reply = requests.post(
            f"{self.url}/graphql", json={"query": query, "variables": variables}, timeout=30
        ).json()
        assert "errors" not in reply, reply
        return reply["data"]

    def launch(self, job: str, partition: str) -> str:
        """Launch a run as the UI would, wait for its end, return its status."""
        launched = self.graphql(
            """mutation($params: ExecutionParams!) { launchPipelineExecution(executionParams: $params) {
                __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }""",
            params={
                "selector": {
                    "repositoryLocationName": "nq_pipeline",
                    "repositoryName": "__repository__",
                    "jobName": job,
                },
                "executionMetadata": {"tags": [{"key": "dagster/partition", "value": partition}]},
            },
        )["launchPipelineExecution"]
        run_id = launched["run"]["runId"]
        status = "STARTING"
        give_up = time.monotonic() + 120
        while status not in ("SUCCESS", "FAILURE", "CANCELED") and time.monotonic() < give_up:
            time.sleep(0.5)
            status = self.graphql(
                "query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }", id=run_id
            )["runOrError"]["status"]
        return status


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    """`dagster dev` in a folder with nothing but the repository's two YAML files, no DAGSTER_HOME."""
    pytest.importorskip("playwright", reason="playwright is not installed (make install)")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    folder = tmp_path_factory.mktemp("clone")
    for name in ("workspace.yaml", "dagster.yaml"):
        shutil.copy(ROOT / name, folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with (folder / "dev.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "dagster", "dev", "--host", "127.0.0.1", "--port", str(port)],
            cwd=folder,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(folder),
                "PYTHONPATH": str(ROOT),
                "NO_PROXY": "127.0.0.1",
                "NQ_NOW": NOW,
                "NQ_SANDBOX_FAULTS": "barchart=blocked",
            },
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # A parent in the background leaves SIGINT ignored, and dagster would not end on it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            _wait_until_served(url, process, folder / "dev.log")
            yield Ui(url, folder)
        finally:
            _end(process)


def test_a_blocked_vendor_is_a_failed_check_and_the_chain_is_there_all_the_same(ui: Ui) -> None:
    from playwright.sync_api import expect, sync_playwright

    assert ui.launch("chain_snapshot", DAY) == "SUCCESS", (ui.folder / "dev.log").read_text()[-3000:]

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


def _wait_until_served(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up = time.monotonic() + 90
    while time.monotonic() < give_up:
        if process.poll() is not None:
            break
        with contextlib.suppress(requests.RequestException):
            if requests.get(f"{url}/server_info", timeout=5).ok:
                return
        time.sleep(0.3)
    pytest.fail(f"dagster dev did not come up: {log.read_text()[-3000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the whole group that this test started, politely first."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=20)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
