"""The files of a cluster's Dagster instance, and what it refuses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from nq_pipeline.errors import UiError
from nq_pipeline.orchestration.cluster.instance import check_instance
from nq_pipeline.orchestration.jobs import JOBS
from nq_pipeline.orchestration.names import CAPTURE_HOST
from nq_pipeline.ui.cluster import BUCKET, Shared

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def limits(config: Mapping[str, Any]) -> dict[tuple[str, str], int]:
    """The concurrency limits by tag and value."""
    found = config["runs"]["tag_concurrency_limits"]
    return {(one["key"], str(one.get("value", ""))): one["limit"] for one in found}


@pytest.fixture
def home(shared: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DAGSTER_HOME with the cluster's `dagster.yaml`, and the variables it reads."""
    for name, value in shared.environment(tmp_path).items():
        if name.startswith("DAGSTER_"):
            monkeypatch.setenv(name, value)
    shutil.copy(DEPLOY / "dagster.yaml", tmp_path)
    return tmp_path


def test_dagster_opens_the_cluster_instance(home: Path) -> None:
    check_instance()
    with dg.DagsterInstance.get() as instance:
        assert type(instance.run_launcher).__name__ == "CeleryRunLauncher"
        assert instance.run_monitoring_enabled
        instance.run_storage.set_cursor_values({"test": "kept"})
    with dg.DagsterInstance.get() as another:
        assert another.run_storage.get_cursor_values({"test"}) == {"test": "kept"}


def test_a_storage_without_its_driver_is_refused(home: Path, shared: Shared) -> None:
    url = f"postgresql://nq:{shared.password}@127.0.0.1:{shared.postgres_port}/dagster"
    (home / "dagster.yaml").write_text(yaml.safe_dump({"storage": {"postgres": {"postgres_url": url}}}))
    with pytest.raises(UiError, match=r"postgresql\+psycopg2") as refused:
        check_instance()
    assert shared.password not in str(refused.value)


def test_a_database_that_does_not_answer_is_one_sentence(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_PG_PORT", "1")
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(UiError, match="cannot be opened") as refused:
        check_instance()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("quoted", ["postgresql+psycopg2://nq:hush-p@ss@db/nq", "host hush-env"])
def test_a_driver_that_quotes_the_password_is_redacted(
    home: Path, monkeypatch: pytest.MonkeyPatch, quoted: str
) -> None:
    def fail(_: str) -> None:
        raise ValueError(f"invalid dsn: {quoted}")

    monkeypatch.setenv("DAGSTER_PG_PASSWORD", "hush-env")
    monkeypatch.setattr("dagster.DagsterInstance.from_config", fail)
    with pytest.raises(UiError, match="invalid dsn") as refused:
        check_instance()
    assert "hush" not in str(refused.value)


def test_a_host_with_another_lake_is_refused(
    home: Path, shared: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the load of the code, which every code server and every run begins with."""
    with dg.DagsterInstance.get() as instance:  # other tests share the database
        instance.run_storage.set_cursor_values({"nq/lake/sandbox": ""})
    for name, folder in (("first", "a"), ("first", "b"), ("another", "b")):
        monkeypatch.setenv("NQ_DATA_DIR", str(tmp_path / folder))
        monkeypatch.setenv("NQ_LAKE_URL", f"s3://{BUCKET}/{tmp_path.name}/{name}")
        for variable, value in shared.environment(tmp_path).items():
            if variable.startswith("AWS_"):
                monkeypatch.setenv(variable, value)
        if name == "first":
            check_instance()
            continue
        done = subprocess.run(
            [sys.executable, "-c", "import nq_pipeline.definitions"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1
        [sentence] = [line for line in done.stderr.splitlines() if line.startswith("nq_pipeline.errors.")]
        assert "NQ_LAKE_URL" in sentence and f"{tmp_path.name}/first" in sentence


def test_an_instance_of_one_machine_is_not_opened(tmp_path: Path) -> None:
    shutil.copy(ROOT / "dagster.yaml", tmp_path)
    check_instance(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["dagster.yaml"]


def test_a_worker_without_redis_says_what_is_missing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import nq_pipeline.orchestration.cluster.worker"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("nq: DAGSTER_CELERY_BROKER_URL and DAGSTER_CELERY_BACKEND_URL")


def test_a_cluster_limits_kinds_as_one_machine_does() -> None:
    """One run of each kind, except that backfills go side by side."""
    cluster = limits(read_yaml(DEPLOY / "dagster.yaml")["concurrency"])
    one_machine = limits(read_yaml(ROOT / "dagster.yaml")["concurrency"])
    kinds = {(job.tags or {})["nq/kind"] for job in JOBS}
    assert {value for key, value in cluster if key == "nq/kind"} == kinds
    assert {key for key, _ in cluster} == {key for key, _ in one_machine}
    assert {one for one, limit in cluster.items() if limit != 1} == {
        ("nq/kind", "backfill"),
        ("dagster/backfill", ""),
    }


def test_kubernetes_has_the_limits_of_the_cluster() -> None:
    values = read_yaml(DEPLOY / "kubernetes" / "values.yaml")
    cluster = read_yaml(DEPLOY / "dagster.yaml")
    assert values["additionalInstanceConfig"]["concurrency"] == cluster["concurrency"]
    assert values["postgresql"]["postgresqlScheme"] == cluster["storage"]["postgres"]["postgres_db"]["scheme"]
    assert values["runLauncher"]["type"] == "K8sRunLauncher"
    monitoring = values["dagsterDaemon"]["runMonitoring"]
    assert monitoring["startTimeoutSeconds"] == cluster["run_monitoring"]["start_timeout_seconds"]
    pod = values["extraManifests"][0]["spec"]["template"]["spec"]["containers"][0]
    assert pod["args"] == ["capture"]


def test_what_works_on_the_capture_log_goes_to_its_host() -> None:
    queued = {job.name for job in JOBS if CAPTURE_HOST.items() <= (job.tags or {}).items()}
    assert queued == {"capture", "retention"}
