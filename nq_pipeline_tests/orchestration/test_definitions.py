"""What Dagster loads: the graph, its partitions, the files around it."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from itertools import product
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster import partition_loading_context

from nq_pipeline.lake.tables import SOURCE_CHAIN, SPEND, TRADE_PRESSURE, TRADES
from nq_pipeline.market.sessions import is_open, sessions, trade_date
from nq_pipeline.orchestration.assets.analytics import TABLES as COMPUTED
from nq_pipeline.orchestration.build import build_defs
from nq_pipeline.orchestration.names import PRESSURE, SPEND_LEDGER
from nq_pipeline.orchestration.partitions import TRADE_DATES
from nq_pipeline.ui.first_partitions import EARLIEST

ROOT = Path(__file__).parents[2]
NO_TABLE = {dg.AssetKey(["live", "capture_health"]), dg.AssetKey(["nq", "report"])}
GRAPH = Path(__file__).with_name("graph.json")


@pytest.fixture(scope="module")
def defs() -> dg.Definitions:
    return build_defs()


def test_the_definitions_load_with_no_vendor_configured(defs: dg.Definitions) -> None:
    dg.Definitions.validate_loadable(defs)


def test_the_graph_is_the_reviewed_one(defs: dg.Definitions) -> None:
    """A change of the graph is a change of `graph.json`: run this file as a program to write it."""
    assert _graph(defs) == json.loads(GRAPH.read_text())


def test_every_asset_has_description_owner_and_columns(defs: dg.Definitions) -> None:
    for spec in defs.resolve_all_asset_specs():
        assert len(spec.description or "") > 80
        assert spec.owners and spec.kinds and spec.tags and spec.group_name
        if spec.key in NO_TABLE:
            continue
        columns = spec.metadata["dagster/column_schema"].columns
        tables = {"capture": TRADES, "chains": SOURCE_CHAIN, "spend": SPEND}
        table = {**COMPUTED, PRESSURE: TRADE_PRESSURE}.get(spec.key, tables.get(spec.group_name))
        assert table is None or {column.name for column in columns} >= set(table.schema)
        assert columns
        assert all(column.description for column in columns)


def test_every_job_has_a_kind_and_a_maximum_runtime(defs: dg.Definitions) -> None:
    for name in ("chain_snapshot", "capture", "pressure", "backfill", "spend", "housekeeping"):
        job = defs.resolve_job_def(name)
        assert int(job.tags["dagster/max_runtime"]) > 0
        assert job.tags["nq/kind"]
        assert job.executor_def == dg.in_process_executor


def test_jobs_that_check_the_ledger_run_one_at_a_time(defs: dg.Definitions) -> None:
    """Overlapping, the one that was created first and ended last would leave its checks not evaluated."""
    for name in ("chain_snapshot", "spend"):
        assert SPEND_LEDGER in defs.resolve_job_def(name).asset_layer.executable_asset_keys
        assert "nq/looks_at_ledger" in defs.resolve_job_def(name).tags


def test_partitions_are_the_trade_dates_of_the_calendar() -> None:
    last = date(2027, 12, 31)
    with partition_loading_context(effective_dt=datetime(2028, 1, 1, tzinfo=UTC)):
        keys = [key for key in TRADE_DATES.get_partition_keys() if key <= last.isoformat()]
    assert keys == [s.trade_date.isoformat() for s in sessions(EARLIEST, last)]


def test_the_newest_partition_is_always_the_current_trade_date() -> None:
    """What *latest* means in the UI; and no hour is without its partition, market or not."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    without, ahead = [], []
    # Noon, and every hour around the close, the opening and midnight UTC.
    for day, hour in product(range(365), (0, 12, 20, 21, 22, 23)):
        now = start + timedelta(days=day, hours=hour, seconds=5)
        current = trade_date(now).isoformat()
        with partition_loading_context(effective_dt=now):
            newest = TRADE_DATES.get_last_partition_key()
            if newest != current and is_open(now, "globex"):
                ahead.append((now, newest))
            if newest != current and not TRADE_DATES.has_partition_key(current):
                without.append(now)
    assert (without, ahead) == ([], [])


def test_a_window_of_a_partition_begins_on_its_trade_date() -> None:
    """Where a partition becomes a date again, whatever the zone of the windows."""
    key = "2026-03-16"
    assert TRADE_DATES.time_window_for_partition_key(key).start.date().isoformat() == key


def test_workspace_and_instance_serve_a_fresh_clone() -> None:
    workspace = yaml.safe_load((ROOT / "workspace.yaml").read_text())
    assert workspace["load_from"] == [
        {"python_module": {"module_name": "nq_pipeline.definitions", "location_name": "nq_pipeline"}}
    ]
    instance = yaml.safe_load((ROOT / "dagster.yaml").read_text())
    assert instance["telemetry"] == {"enabled": False}
    assert instance["nux"] == {"enabled": False}
    places = [
        instance["storage"]["sqlite"]["base_dir"],
        instance["local_artifact_storage"]["config"]["base_dir"],
        instance["compute_logs"]["config"]["base_dir"],
    ]
    assert all(place.startswith("data/.dagster") for place in places)
    # A capture that has to start again finds a slot, and no second one beside it.
    runs = instance["concurrency"]["runs"]
    limited = {limit["key"]: limit["limit"] for limit in runs["tag_concurrency_limits"]}
    assert limited == {"nq/kind": 1, "nq/looks_at_ledger": 1, "nq/live_capture": 1, "dagster/backfill": 1}
    assert runs["max_concurrent_runs"] >= 4
    assert instance["concurrency"]["pools"] == {"granularity": "run", "default_limit": 1}
    # A tool block in pyproject.toml would win over workspace.yaml and rename the location.
    assert "[tool.dagster" not in (ROOT / "pyproject.toml").read_text()
    assert "[tool.dg" not in (ROOT / "pyproject.toml").read_text()


def test_dagster_loads_the_definitions_from_a_checkout(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dagster", "definitions", "validate"],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "DAGSTER_DISABLE_TELEMETRY": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Validation successful for code location nq_pipeline" in done.stdout + done.stderr


def test_the_definitions_load_no_slow_client() -> None:
    program = "import sys, nq_pipeline.definitions; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded.isdisjoint({"databento", "duckdb", "bs4", "requests_ratelimiter", "scipy", "uvicorn"})


def _graph(defs: dg.Definitions) -> dict[str, object]:
    checks = defs.resolve_asset_graph().asset_check_keys
    repository = defs.get_repository_def()
    return {
        "assets": {
            spec.key.to_user_string(): {
                "deps": sorted(dep.asset_key.to_user_string() for dep in spec.deps),
                "group": spec.group_name,
                "kinds": sorted(spec.kinds),
                "owners": list(spec.owners),
                "freshness": type(spec.freshness_policy).__name__ if spec.freshness_policy else "",
                "tags": {k: v for k, v in sorted(spec.tags.items()) if not k.startswith("dagster/")},
                "checks": sorted(key.name for key in checks if key.asset_key == spec.key),
            }
            for spec in sorted(defs.resolve_all_asset_specs(), key=lambda spec: spec.key)
        },
        "jobs": sorted(job.name for job in repository.get_all_jobs() if not job.name.startswith("__")),
        "schedules": {
            schedule.name: [schedule.cron_schedule, schedule.execution_timezone]
            for schedule in sorted(repository.schedule_defs, key=lambda schedule: schedule.name)
        },
        "sensors": {
            sensor.name: [sensor.minimum_interval_seconds, sensor.default_status.value]
            for sensor in sorted(repository.sensor_defs, key=lambda sensor: sensor.name)
        },
    }


if __name__ == "__main__":
    GRAPH.write_text(json.dumps(_graph(build_defs()), indent=2) + "\n")
