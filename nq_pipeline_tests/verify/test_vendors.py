"""The checks of the historical API and of the chain vendors, against their stand-ins over HTTP."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from pydantic import SecretStr

from nq_pipeline.cli import main
from nq_pipeline.configuration import build_settings
from nq_pipeline.runtime import endpoints
from nq_pipeline.sources.registry import SOURCE_NAMES
from nq_pipeline.verify import feed
from nq_pipeline.verify.run import CHECKS, VerifyReport
from nq_pipeline_tests.testing.standin import NOW, address
from nq_pipeline_tests.testing.verify_standins import reason, run_verification, serve_feed, verdicts


def vendor(name: str, fault: str = "ok") -> str:
    return f"{address()}/with/now={NOW};fault={fault}/{name}"


def examined(data: Path, *names: str, **more: Any) -> VerifyReport:
    """The report of checks that need no gateway; every vendor is there unless told otherwise."""
    own: dict[str, Any] = {
        "now": datetime.fromisoformat(NOW),
        "sources": SOURCE_NAMES,
        "barchart_url": vendor("barchart"),
        "polygon_url": vendor("polygon"),
        "polygon_api_key": "sandbox-polygon-key",
        "databento_url": vendor("databento"),
        "http_timeout_s": 120,  # an answer that comes late is not kept
        "source_deadline_s": 240,
    }
    with serve_feed() as it:
        return run_verification(it, data, *names, **{**own, **more})


@pytest.mark.parametrize("name", ["barchart", "polygon", "databento"])
def test_each_vendor_has_its_own_result(name: str, tmp_path: Path) -> None:
    assert verdicts(examined(tmp_path, name)) == {name: "PASS"}
    faulty = examined(tmp_path / "faulty", *SOURCE_NAMES, **{f"{name}_url": vendor(name, "unavailable")})
    assert [check for check, verdict in verdicts(faulty).items() if verdict == "FAIL"] == [name]
    assert "to fix it" in reason(faulty, name)


def test_an_unconfigured_or_unused_vendor_is_skipped(tmp_path: Path) -> None:
    report = examined(tmp_path, *SOURCE_NAMES, sources=("polygon", "tradovate"))
    assert verdicts(report) == {
        "barchart": "SKIP", "polygon": "PASS", "tradovate": "SKIP", "databento": "SKIP",
    }  # fmt: skip
    assert reason(report, "barchart") == "not in NQ_SOURCES"
    assert "not configured" in reason(report, "tradovate")


def test_a_cached_answer_is_not_requested_again(tmp_path: Path) -> None:
    report = examined(tmp_path, "cache")
    assert verdicts(report) == {"cache": "PASS"}
    shown = reason(report, "cache")
    assert "barchart " in shown and "databento " in shown and shown.count(", then 0") == 2


def test_a_cache_that_keeps_nothing_fails(tmp_path: Path) -> None:
    report = examined(tmp_path, "cache", cache_open_s=0, cache_closed_s=0)
    assert verdicts(report) == {"cache": "FAIL"}
    assert "requested again" in reason(report, "cache")


def test_without_a_vendor_there_is_nothing_to_keep(tmp_path: Path) -> None:
    assert verdicts(examined(tmp_path, "cache", sources=("tradovate",), databento_api_key=None)) == {
        "cache": "SKIP"
    }


@pytest.mark.parametrize("key", [None, SecretStr(" ")])
def test_without_a_key_nothing_has_a_price(key: SecretStr | None, tmp_path: Path) -> None:
    report = examined(tmp_path, "cost", databento_api_key=key)
    assert verdicts(report) == {"cost": "SKIP"} and "DATABENTO_API_KEY" in reason(report, "cost")


def test_half_a_minute_of_trades_has_a_price(tmp_path: Path) -> None:
    report = examined(tmp_path, "cost")
    assert verdicts(report) == {"cost": "PASS"}
    assert "until 2025-06-10 14:59:" in reason(report, "cost")
    assert "bytes at $28.00 a GiB" in reason(report, "cost")
    assert "$179.00 plan and $0.00 metered, $21.00 left" in reason(report, "cost")
    assert report.spent_usd == 0


@pytest.mark.parametrize("fault", ["unavailable", "wrong_content_type", "blocked"])
def test_a_price_that_cannot_be_fetched_fails(fault: str, tmp_path: Path) -> None:
    report = examined(tmp_path, "cost", databento_url=vendor("databento", fault), http_attempts=1)
    assert verdicts(report) == {"cost": "FAIL"}


def test_where_nobody_answers_the_price_fails(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    report = examined(tmp_path, "cost", databento_url=f"http://127.0.0.1:{port}", http_attempts=1)
    assert verdicts(report) == {"cost": "FAIL"}


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the sandbox's stand-ins serve all commands of this file."""
    folder = tmp_path_factory.mktemp("stand-ins")
    with endpoints(build_settings(data_dir=folder)):
        yield str(json.loads((folder / "sandbox" / "sandbox.json").read_text())["port"])


def nq(port: str, data: Path, *words: str, **settings: str) -> Result:
    """Run the command line in the sandbox."""
    environment = {"NQ_DATA_DIR": str(data), "NQ_NOW": NOW, "NQ_SANDBOX_PORT": port, **settings}
    return CliRunner().invoke(main, words, env=environment)


def test_the_command_prints_a_line_for_every_check_and_ends_well(
    port: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "LATENCY_LIMIT_S", 30.0)  # other tests may make this one late
    done = nq(port, tmp_path, "verify", "--minutes", "0.05", "--max-usd", "1")
    assert done.exit_code == 0, done.output
    first, *checks, last = done.stdout.splitlines()
    assert first.startswith("SANDBOX") and "0 failed" in last
    assert [line.split()[1] for line in checks] == [check.name for check in CHECKS]
    assert {line.split()[0] for line in checks} <= {"PASS", "SKIP"}
    assert len(list((tmp_path / "sandbox" / "evidence").glob("*/report.json"))) == 1


def test_the_command_fails_when_a_line_does_and_speaks_json(port: str, tmp_path: Path) -> None:
    done = nq(port, tmp_path, "verify", "--minutes", "0.05", "--json", NQ_SANDBOX_FAULTS="databento=blocked")
    assert done.exit_code == 5, done.output
    shown = json.loads(done.stdout)
    assert shown["sound"] is False
    verdicts = {line["check"]: line["verdict"] for line in shown["checks"]}
    assert verdicts["connect"] == "FAIL" and verdicts["stream"] == "SKIP" and verdicts["barchart"] == "PASS"
    assert Path(shown["evidence"]).is_dir()
