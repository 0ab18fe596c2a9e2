"""The check that buys a small span: it compares, and it spends only what it may."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from nq_pipeline.sandbox.gateway.fault_script import Fault
from nq_pipeline.settings import Settings
from nq_pipeline.spend.ledger import open_ledger
from nq_pipeline.spend.tables import Kind
from nq_pipeline.verify.run import VerifyReport
from nq_pipeline_tests.testing.gateway_client import unlimited
from nq_pipeline_tests.testing.ledger_machine import catalog_has_the_ledger
from nq_pipeline_tests.testing.standin import NOW, address
from nq_pipeline_tests.testing.verify_standins import (
    reason,
    run_verification,
    serve_feed,
    verdicts,
    verify_settings,
)

CHECKS = ("connect", "cost", "count", "history")


def own(fault: str = "ok", **more: Any) -> dict[str, Any]:
    """Settings of a historical API that shows the gateway's market."""
    url = f"{address()}/with/now={NOW};fault={fault}/databento"
    return {"databento_url": url, "now": datetime.fromisoformat(NOW), "http_attempts": 1, **more}


def compared(data: Path, *faults: Fault, usd: str = "1", limits: Any = None, **more: Any) -> VerifyReport:
    """The report of a comparison that may cost so much."""
    with serve_feed(*faults, load=None, limits=limits or unlimited()) as it:
        return run_verification(it, data, *CHECKS, max_usd=usd, **own(**more))


def ledger_of(data: Path) -> Settings:
    return verify_settings(None, data)


def booked(data: Path) -> list[Kind]:
    """What the ledger has of metered requests."""
    verdicts = open_ledger(ledger_of(data)).lines()
    return [line.kind for line in verdicts if line.purpose == "verify"]


def test_what_the_gateway_replays_is_what_is_sold(tmp_path: Path) -> None:
    report = compared(tmp_path)
    assert verdicts(report) == dict.fromkeys(CHECKS, "PASS"), report.results
    assert "are those that the gateway replays" in reason(report, "history")
    assert booked(tmp_path) == [Kind.RESERVED, Kind.COMMITTED]
    assert 0 < report.spent_usd == open_ledger(ledger_of(tmp_path)).month().metered_usd
    assert catalog_has_the_ledger(ledger_of(tmp_path))


def test_a_replay_that_lacks_records_that_are_sold_fails(tmp_path: Path) -> None:
    report = compared(tmp_path, Fault("omit", records=20, after_records=30))
    assert verdicts(report) == {"connect": "PASS", "cost": "PASS", "count": "FAIL", "history": "FAIL"}
    assert "the historical API counts" in reason(report, "count")
    assert "20 missing and 0 too many" in reason(report, "history")


def test_nothing_is_bought_above_what_the_caller_allows(tmp_path: Path) -> None:
    report = compared(tmp_path, usd="0")
    assert verdicts(report) == {**dict.fromkeys(CHECKS, "PASS"), "history": "SKIP"}
    assert "--max-usd" in reason(report, "history")
    assert booked(tmp_path) == [] and report.spent_usd == 0


def test_nothing_is_bought_that_the_budget_does_not_grant(tmp_path: Path) -> None:
    report = compared(tmp_path, budget_daily_usd=Decimal(0))
    assert verdicts(report)["history"] == "SKIP" and "NQ_BUDGET_DAILY_USD" in reason(report, "history")
    assert booked(tmp_path) == [Kind.REFUSED] and report.spent_usd == 0


def test_a_span_the_gateway_no_longer_has_is_skipped_unbought(tmp_path: Path) -> None:
    report = compared(tmp_path, limits=unlimited(replay_window_s=10.0))
    assert verdicts(report) == {"connect": "PASS", "cost": "PASS", "count": "SKIP", "history": "SKIP"}
    assert "no longer replays" in reason(report, "count")
    assert booked(tmp_path) == []


def test_a_session_that_ends_before_the_purchase_fails_unbought(tmp_path: Path) -> None:
    report = compared(tmp_path, Fault("cut", after_records=5))
    assert verdicts(report) == {"connect": "PASS", "cost": "PASS", "count": "FAIL", "history": "SKIP"}
    assert "the replay to compare with" in reason(report, "count")
    assert booked(tmp_path) == []


def test_a_download_outside_the_plan_fails_and_is_refunded(tmp_path: Path) -> None:
    report = compared(tmp_path, fault="not_entitled")
    assert verdicts(report) == {**dict.fromkeys(CHECKS, "PASS"), "history": "FAIL"}
    assert booked(tmp_path) == [Kind.RESERVED, Kind.RELEASED] and report.spent_usd == 0


def test_a_history_without_the_records_fails(tmp_path: Path) -> None:
    report = compared(tmp_path, fault="empty")
    assert verdicts(report) == {"connect": "PASS", "cost": "PASS", "count": "FAIL", "history": "FAIL"}
    assert "counts 0, the gateway replays" in reason(report, "count")
    assert "0 missing and" in reason(report, "history")
