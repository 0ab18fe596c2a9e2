"""A failed run and a check at ERROR lead to one alert, and to its end, with Dagster in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.errors import DagsterExecutionInterruptedError

from nq_pipeline.alerts.message import Alert
from nq_pipeline.alerts.notifier import Notifier
from nq_pipeline.configuration import build_settings
from nq_pipeline.errors import Unavailable
from nq_pipeline.orchestration import alert_sensors
from nq_pipeline.orchestration.alert_sensors import alerts, run_failures
from nq_pipeline.orchestration.build import build_defs
from nq_pipeline.orchestration.names import CHOSEN_CHAIN, LIVE_TRADES, SOURCE_CHAINS
from nq_pipeline.orchestration.resources import Vendors
from nq_pipeline.sources.registry import SOURCE_NAMES
from nq_pipeline_tests.testing.fake_vendors import FakeVendor
from nq_pipeline_tests.testing.webhook_receiver import Receiver, receiver

NOW = datetime(2025, 6, 10, 15, 0, tzinfo=UTC)
DAY = "2025-06-10"
AVAILABLE = "check/nq/option_chain/available"


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with receiver() as state:
        yield state


class Desk:
    """The whole of the definitions with vendors that behave as told, and the sensor that alerts."""

    def __init__(self, instance: dg.DagsterInstance, data: Path, hook: Receiver) -> None:
        self.instance, self.hook, self.cursor = instance, hook, ""
        self.settings = build_settings(
            environment="live",
            data_dir=data,
            now=NOW,
            horizon_days=0,
            far_expirations=False,
            alert_webhook=hook.url,
            databento_api_key="db-marked-key",
        )
        self.vendors: dict[str, FakeVendor] = {}
        self.resources = {"vendors": Vendors(self.settings, lambda name, _: self.vendors[name])}
        self.defs = build_defs(self.settings, opener=lambda name, _: self.vendors[name])

    def run(self, error: str = "", partition: str = DAY) -> dg.ExecuteInProcessResult:
        """One snapshot, for which all vendors are well or all say the same."""
        failing = {name: FakeVendor(name, raises=Unavailable(error)) for name in SOURCE_NAMES}
        self.vendors = failing if error else {name: FakeVendor(name) for name in SOURCE_NAMES}
        job = self.defs.resolve_job_def("chain_snapshot")
        return job.execute_in_process(
            instance=self.instance,
            partition_key=partition,
            raise_on_error=False,
            asset_selection=[CHOSEN_CHAIN, *SOURCE_CHAINS.values()],
        )

    def tick(self) -> str:
        """One tick of the sensor `alerts`; what it says."""
        context = dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursor,
            definitions=self.defs,
            resources=self.resources,
        )
        result = alerts(context)
        assert isinstance(result, dg.SensorResult)
        self.cursor = result.cursor or ""
        assert isinstance(result.skip_reason, dg.SkipReason)
        return result.skip_reason.skip_message or ""

    def report_failure(self) -> dg.DagsterRun:
        """What the daemon does with the run-failure sensor when the newest run has failed."""
        (run,) = self.instance.get_runs(limit=1)
        (entry,) = self.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.RUN_FAILURE)
        assert entry.dagster_event
        context = dg.build_run_status_sensor_context(
            sensor_name="run_failures",
            dagster_instance=self.instance,
            dagster_run=run,
            dagster_event=entry.dagster_event,
            resources=self.resources,
        ).for_run_failure()
        run_failures(context)
        return run

    def entries(self, key: str) -> list[dict[str, Any]]:
        log = Notifier(self.settings).log
        entries = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return [entry for entry in entries if entry["key"] == key and "state" in entry]


@pytest.fixture
def desk(tmp_path: Path, hook: Receiver) -> Iterator[Desk]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Desk(instance, tmp_path / "data", hook)


def test_a_check_at_error_is_one_alert_and_its_end_another(desk: Desk) -> None:
    assert desk.run(error="nobody there, key db-marked-key").success
    desk.tick()
    desk.tick()
    (fired,) = desk.entries(AVAILABLE)
    assert fired["state"] == "firing"
    assert fired["so_what"].startswith("This does not hold: At least one source")
    assert "/runs/" in fired["where"][1]
    assert len([text for text in desk.hook.texts if "nq/option_chain/available" in text]) == 1

    desk.run(error="nobody there still")  # fails anew, within the hour
    desk.tick()
    assert len(desk.entries(AVAILABLE)) == 1

    desk.run()
    desk.tick()
    assert [entry["state"] for entry in desk.entries(AVAILABLE)] == ["firing", "resolved"]
    assert any(text.startswith("*RESOLVED*") for text in desk.hook.texts)
    written = "".join(p.read_text() for p in desk.settings.environment_dir.glob("alerts.*"))
    assert "marked" not in written + "".join(desk.hook.texts)


def test_a_check_that_warns_alerts_nobody(desk: Desk) -> None:
    evaluation = dg.AssetCheckEvaluation(
        asset_key=LIVE_TRADES,
        check_name="entitlement",
        passed=False,
        severity=dg.AssetCheckSeverity.WARN,
        description="the plan allows trades instead of mbo",
    )
    desk.instance.report_runless_asset_event(evaluation)
    assert desk.tick() == "0 firing, 0 sent, 0 waiting"
    # Its alert ends also where the state of the alerts was out of reach when the result was new.
    Notifier(desk.settings).fire(Alert("check/databento/trades/entitlement", "refused", "so", "do"))
    assert desk.tick() == "0 firing, 1 sent, 0 waiting"


def test_checks_of_the_capture_sensor_alert_without_a_run(desk: Desk) -> None:
    evaluation = dg.AssetCheckEvaluation(
        asset_key=LIVE_TRADES,
        check_name="entitlement",
        passed=False,
        severity=dg.AssetCheckSeverity.ERROR,
        description="the plan streams no schema of options",
    )
    desk.instance.report_runless_asset_event(evaluation)
    assert desk.tick() == "1 firing, 1 sent, 0 waiting"
    (text,) = desk.hook.texts
    assert "databento/trades/entitlement: the plan streams no schema of options" in text
    assert "`nq doctor`" in text and "/runs/" not in text


def test_a_webhook_that_is_down_fails_no_tick(desk: Desk) -> None:
    desk.hook.always = (500, "", 0.0)
    desk.run(error="nobody there")
    status = desk.tick()
    assert "waiting: the webhook answered HTTP 500" in status and ", 0 sent," in status


def test_a_failed_run_is_an_alert_until_the_job_runs_well(desk: Desk) -> None:
    assert not desk.run(partition="2025-06-09").success
    failed = desk.report_failure()
    (fired,) = desk.entries("run/chain_snapshot")
    assert fired["what"].startswith(
        "chain_snapshot failed for 2025-06-09: Vendors show only the current session"
    )
    assert fired["so_what"].startswith("There is no chain for this moment")
    assert fired["where"] == [f"http://127.0.0.1:3000/runs/{failed.run_id}"]
    assert desk.hook.texts == []  # a failure is only written down
    assert "1 firing, 1 sent" in desk.tick()

    desk.run()
    desk.tick()
    assert [e["state"] for e in desk.entries("run/chain_snapshot")] == ["firing", "resolved"]


def test_an_alert_about_a_fault_shows_no_secret(desk: Desk) -> None:
    @dg.job(name="chain_snapshot", tags={"nq/kind": "chains"})
    def broken() -> None:
        @dg.op
        def bug() -> None:
            raise RuntimeError("a bug that prints db-marked-key")

        bug()

    broken.execute_in_process(instance=desk.instance, raise_on_error=False)
    desk.report_failure()
    (fired,) = desk.entries("run/chain_snapshot")
    assert "RuntimeError: a bug that prints ***" in fired["what"]


def test_a_capture_alert_ends_when_the_next_run_lasts(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    @dg.job(name="capture", tags={"nq/kind": "capture"})
    def broken() -> None:
        @dg.op
        def interrupted() -> None:
            raise DagsterExecutionInterruptedError

        interrupted()

    with pytest.raises(DagsterExecutionInterruptedError):
        broken.execute_in_process(instance=desk.instance)
    desk.report_failure()
    run = desk.instance.create_run_for_job(broken, tags=dict(broken.tags))
    desk.instance.report_dagster_event(
        dg.DagsterEvent(dg.DagsterEventType.PIPELINE_START.value, "capture"), run_id=run.run_id
    )
    desk.tick()
    (fired,) = desk.entries("run/capture")
    assert fired["what"] == "capture failed: its process was interrupted"
    monkeypatch.setattr(alert_sensors, "STABLE_S", 0)
    desk.tick()
    assert [entry["state"] for entry in desk.entries("run/capture")] == ["firing", "resolved"]
