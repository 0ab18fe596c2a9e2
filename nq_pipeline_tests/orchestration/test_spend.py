"""Money and entitlement as Dagster shows them, with Dagster in this process and the sandbox's stand-ins."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import requests

from nq_pipeline.alerts.notifier import Notifier
from nq_pipeline.capture.schema_fallback import SchemaFallback
from nq_pipeline.configuration import load
from nq_pipeline.orchestration.alert_sensors import alerts
from nq_pipeline.orchestration.build import build_defs
from nq_pipeline.orchestration.checks import PROMISES
from nq_pipeline.orchestration.names import HISTORY, SPEND_LEDGER
from nq_pipeline.orchestration.resources import Vendors
from nq_pipeline.runtime import endpoints
from nq_pipeline.settings import Settings
from nq_pipeline.sources.databento.spec import DatabentoSettings
from nq_pipeline.spend.ledger import open_ledger
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.backfill_vendor import vendor
from nq_pipeline_tests.testing.ledger_machine import catalog_has_the_ledger
from nq_pipeline_tests.testing.ledgers import charge_of_a_day

DAY, NOW = "2025-06-10", "2025-06-10T15:00:00Z"
WEBHOOK = "http://127.0.0.1:9/services/marked-path"
"""Where nobody listens."""


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def settings_of(folder: Path, **more: object) -> Settings:
    patient = {"http_timeout_s": 120, "source_deadline_s": 240}
    given = {
        "data_dir": folder / "data",
        "now": NOW,
        "horizon_days": 0,
        "far_expirations": False,
        **patient,
        **more,
    }
    return load(**given)


def run(
    instance: dg.DagsterInstance, settings: Settings, job: str, **more: Any
) -> tuple[dg.ExecuteInProcessResult, dict[str, dg.AssetCheckEvaluation]]:
    result = (
        build_defs(settings)
        .resolve_job_def(job)
        .execute_in_process(instance=instance, raise_on_error=False, **more)
    )
    return result, {
        f"{evaluation.asset_key.to_user_string()}/{evaluation.check_name}": evaluation
        for evaluation in result.get_asset_check_evaluations()
    }


def test_without_a_budget_a_snapshot_shows_refusal_and_alert(
    tmp_path: Path, instance: dg.DagsterInstance, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    settings = settings_of(tmp_path, budget_daily_usd=Decimal(0), alert_webhook=WEBHOOK)
    # What the capture notes when the gateway refuses a schema: it goes on with a lesser one.
    schemas = SchemaFallback(Workspace.of(settings).lake, "GLBX.MDP3", {"options": "mbo"})
    for schema in ("mbo", "mbp-1"):
        schemas.refuse(schema, f"Not authorized for {schema} schema", date.fromisoformat(DAY))
    with endpoints(settings) as reachable:
        result, evaluations = run(instance, settings, "chain_snapshot", partition_key=DAY)
        key = reachable.vendor(DatabentoSettings).api_key
        assert key is not None
        asked = requests.get(
            f"{reachable.vendor(DatabentoSettings).url}/requests",
            auth=(key.get_secret_value(), ""),
            timeout=60,
        ).json()

    assert result.success  # the others' chains are there all the same
    assert catalog_has_the_ledger(settings)
    assert "over_budget" in (evaluations["databento/option_chain/available"].description or "")
    assert evaluations["nq/option_chain/available"].passed
    budget, fallback = evaluations["spend/ledger/budget"], evaluations["spend/ledger/entitlement"]
    assert not budget.passed and budget.severity == dg.AssetCheckSeverity.ERROR
    assert "over_budget" in (budget.description or "") and "NQ_BUDGET_DAILY_USD" in (budget.description or "")
    assert not fallback.passed and fallback.severity == dg.AssetCheckSeverity.WARN
    assert "databento refuses mbo (live): mbp-1 is requested instead" in (fallback.description or "")
    assert evaluations["spend/ledger/plan_fee"].passed and evaluations["spend/ledger/reconciled"].passed
    assert asked and not [one for one in asked if one["metered"]]
    (look,) = [e for e in result.get_asset_materialization_events() if e.asset_key == SPEND_LEDGER]
    assert look.partition is None and look.materialization.metadata["refused_month"].value

    defs, resources = build_defs(settings), {"vendors": Vendors(settings)}
    alerts(dg.build_sensor_context(instance=instance, definitions=defs, resources=resources))
    written = [json.loads(line) for line in Notifier(settings).log.read_text().splitlines()]
    (alert,) = [entry for entry in written if entry.get("key") == "check/spend/ledger/budget"]
    assert alert["state"] == "firing" and "NQ_BUDGET_DAILY_USD" in alert["what"]
    assert "neither sent nor paid" in alert["so_what"] and "`nq budget`" in alert["what_to_do"]
    assert "no connection" in Notifier(settings).log.read_text()

    def shows(text: str) -> bool:
        return any(secret in text for secret in reachable.secrets)

    events = [str(entry) for entry in instance.all_logs(result.run_id)]
    logged = [record.getMessage() for record in caplog.records if record.name != "websockets.server"]
    files = [path for path in settings.data_dir.rglob("*") if path.is_file()]
    assert len(reachable.secrets) >= 7 and events and logged and files
    assert not [text for text in (*events, *logged) if shows(text)]
    assert not [path for path in files if shows(path.read_bytes().decode("latin-1"))]


def test_the_hourly_check_shows_numbers_and_a_chart(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    settings = settings_of(tmp_path)
    ledger = open_ledger(settings)
    ledger.commit(ledger.reserve(charge_of_a_day(cost_usd=Decimal("1.25"))), billed_bytes=100)
    ledger.reserve(charge_of_a_day(cost_usd=Decimal(2)))
    result, evaluations = run(instance, settings, "spend")
    assert result.success and all(check.passed for check in evaluations.values())
    assert set(evaluations) == {f"spend/ledger/{name}" for name in PROMISES[SPEND_LEDGER]}
    (event,) = result.get_asset_materialization_events()
    shown = {name: value.value for name, value in event.materialization.metadata.items()}
    assert event.materialization.partition is None
    assert (shown["metered_today_usd"], shown["metered_month_usd"]) == (1.25, 1.25)
    assert (shown["reserved_usd"], shown["plan_usd"]) == (2.0, 179.0)
    assert shown["remaining_usd"] == pytest.approx(200 - 179 - 3.25)
    svg = base64.b64decode(str(shown["by_day"]).partition("base64,")[2].rstrip(")"))
    assert svg.startswith(b"<svg") and len(svg) < 10_000


def test_an_unusable_ledger_is_a_failed_check_not_a_failed_run(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    settings = settings_of(tmp_path)
    settings.environment_dir.mkdir(parents=True)
    Workspace.of(settings).ledger.write_bytes(b"no database" * 100)
    result, evaluations = run(instance, settings, "spend")
    assert result.success and not result.get_asset_materialization_events()
    (check,) = evaluations.values()
    assert check.check_name == "budget" and not check.passed


def bought(instance: dg.DagsterInstance, settings: Settings, **config: object) -> dg.ExecuteInProcessResult:
    key = HISTORY["statistics"]
    return run(
        instance,
        settings,
        "backfill",
        partition_key="2025-06-09",
        asset_selection=[key],
        run_config={"ops": {key.to_python_identifier(): {"config": config}}},
    )[0]


def test_history_is_bought_within_max_usd_and_never_twice(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    with vendor(tmp_path / "data") as databento:
        settings = databento.settings()
        refused = bought(instance, settings)
        assert not refused.success and not databento.metered
        (failure,) = [event for event in refused.all_events if event.is_step_failure]
        sentence = failure.step_failure_data.user_failure_data
        assert sentence and "over_budget" in (sentence.description or "")
        assert not refused.get_asset_materialization_events()

        assert bought(instance, settings, max_usd=5.0).success
        assert catalog_has_the_ledger(settings)
        paid = len(databento.metered)
        again = bought(instance, settings, max_usd=5.0)
        assert paid and len(databento.metered) == paid
    (event,) = again.get_asset_materialization_events()
    assert event.materialization.metadata["bought_before"].value is True
    assert event.partition == "2025-06-09"


def test_only_the_check_of_history_blocks() -> None:
    graph = build_defs().resolve_asset_graph()
    blocking = {key.asset_key for key in graph.asset_check_keys if graph.get_check_spec(key).blocking}
    assert blocking == set(HISTORY.values())
    assert SPEND_LEDGER not in blocking
