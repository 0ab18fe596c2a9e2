"""OpenAPI, the page and Prometheus describe what is there."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import requests
from prometheus_client.parser import text_string_to_metric_families

from nq_pipeline.serve.queries import METRICS

DOCS = Path(__file__).parents[2] / "docs"
DASHBOARD, PAGE = DOCS / "grafana-dashboard.json", DOCS / "serving.md"


def test_openapi_lists_every_path(address: str) -> None:
    document = requests.get(f"http://{address}/openapi.json", timeout=60).json()
    assert document["openapi"].startswith("3.1")
    tables = {f"/metrics/{name}" for name in METRICS}
    fixed = {"/chain", "/trades", "/gaps", "/surface", "/sql", "/stream", "/replay", "/metrics"}
    assert set(document["paths"]) == fixed | tables
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert operation["summary"] and operation["responses"], path
            for parameter in operation.get("parameters", []):
                assert parameter["in"] == "query" and parameter["schema"]["type"], path


def test_the_page_loads_nothing(address: str) -> None:
    answer = requests.get(f"http://{address}/", timeout=60)
    loaded: list[str] = []

    class Links(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            loaded.extend([tag] if tag in ("script", "link", "img", "iframe") else [])

    Links().feed(answer.text)
    assert loaded == []
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert "/metrics/gamma_levels" in answer.text


def scrape(address: str) -> dict[str, Any]:
    text = requests.get(f"http://{address}/metrics", timeout=60).text
    return {family.name: family for family in text_string_to_metric_families(text)}


def test_prometheus_reads_the_state_of_the_lake(address: str) -> None:
    found = scrape(address)
    values = {
        (sample.name, *sample.labels.values()): sample.value
        for family in found.values()
        for sample in family.samples
    }
    assert values["nq_gaps", "open"] == values["nq_gaps", "verified"] == 1
    assert values["nq_table_rows", "trades"] >= 3
    assert values["nq_runs_total", "chosen"] == 1
    assert values["nq_answers_total", "blocked", "barchart"] == 1
    assert values["nq_capture_running",] == 0
    assert values["nq_spend_usd", "metered"] == 0
    assert found["nq_unreadable"].samples == []


def test_the_dashboard_shows_metrics_that_exist(address: str) -> None:
    board = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    named = {name for query in queries for name in re.findall(r"\bnq_\w+", query)}
    families = scrape(address)
    there = {f"{name}_total" if family.type == "counter" else name for name, family in families.items()}
    assert len(named) > 8
    assert named <= there
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))


def test_the_documented_clients_run(address: str) -> None:
    blocks = re.findall(r"^```py\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block.replace("127.0.0.1:3100", address), names)
    assert names["chain"].height > 100
    client = names["follow"]()
    assert next(client)["type"] == "status"
    client.close()


def test_the_page_of_the_documentation_names_every_metric(address: str) -> None:
    there = {
        f"{name}_total" if family.type == "counter" else name for name, family in scrape(address).items()
    }
    assert set(re.findall(r"`(nq_\w+)`", PAGE.read_text())) == there
