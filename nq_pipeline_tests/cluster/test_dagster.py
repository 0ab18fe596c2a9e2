"""Dagster over two hosts: Celery workers share the runs, and a killed one's runs end and begin elsewhere."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import requests

from nq_pipeline.lake.tables import TRADES
from nq_pipeline.ui.cluster import HOST, Program, Shared, ask_postgres, free_ports, prepare_host, ui, worker
from nq_pipeline_tests.testing.capture_market import capture_market
from nq_pipeline_tests.testing.capture_runs import rows_and_tape
from nq_pipeline_tests.testing.cluster_hosts import (
    NOW,
    ClusterHost,
    HostFactory,
    new_hosts,
    wait_until,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]
PATIENCE_S = 900.0
DAYS = ("2025-06-03", "2025-06-04", "2025-06-05", "2025-06-06")
STATISTICS = ["databento", "history", "statistics"]
LAUNCH = """mutation($params: ExecutionParams!) { launchPipelineExecution(executionParams: $params) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
RUNS = """query($job: String!) { runsOrError(filter: {pipelineName: $job}) { ... on Runs {
    results { runId status tags { key value } } } } }"""


class RunningCluster:
    """Dagster on the host `control`, and workers that are started and killed by the test."""

    def __init__(self, made: HostFactory, variables: Mapping[str, str], port: int) -> None:
        self.made, self.url, self._variables = made, f"http://{HOST}:{port}", variables
        self.programs: list[Program] = []
        self.host("control")
        self._start(ui(self._of("control"), port), "Dagster is ready")

    def host(self, name: str) -> ClusterHost:
        host = self.made.host(name)
        if not host.folder.exists():
            prepare_host(host.folder, self._of(name), ROOT / "deploy" / "dagster.yaml")
        return host

    def start_worker(self, name: str, queue: str) -> Program:
        self.host(name)
        return self._start(worker(self._of(name), queue=queue), "ready.")

    def launch(self, day: str) -> str:
        """Launch the backfill of a trade date; the run's ID."""
        selector = {"repositoryLocationName": "nq_pipeline", "repositoryName": "__repository__"}
        config = {"ops": {"__".join(STATISTICS): {"config": {"max_usd": 10}}}}
        data = self._ask(
            LAUNCH,
            params={
                "selector": {**selector, "jobName": "backfill", "assetSelection": [{"path": STATISTICS}]},
                "runConfigData": config,
                "executionMetadata": {"tags": [{"key": "dagster/partition", "value": day}]},
            },
        )["launchPipelineExecution"]
        assert data["__typename"] == "LaunchRunSuccess", data
        return str(data["run"]["runId"])

    def stop(self) -> None:
        for program in reversed(self.programs):
            program.stop()

    def states(self, job: str) -> list[str]:
        """The states of a job's runs, oldest first."""
        found = self._ask(RUNS, job=job)["runsOrError"]["results"]
        return [run["status"] for run in reversed(found)]

    def _of(self, name: str) -> dict[str, str]:
        host = self.made.host(name)
        return {**self.made.shared.environment(host.folder), **host.variables, **self._variables}

    def _start(self, program: Program, ready: str) -> Program:
        self.programs.append(program)
        program.start(ready)
        return program

    def _ask(self, query: str, **variables: object) -> Any:
        reply = requests.post(
            f"{self.url}/graphql", json={"query": query, "variables": variables}, timeout=120
        ).json()
        assert "errors" not in reply, reply
        return reply["data"]


@contextmanager
def running_cluster(made: HostFactory, **variables: str) -> Iterator[RunningCluster]:
    shared = made.shared
    database = f"dagster_{made.database}"
    assert ask_postgres("createdb", shared.postgres_port, shared.password, database)
    [port] = free_ports(1)
    redis = f"redis://{HOST}:{shared.redis_port}"
    number = 2 * int(re.sub(r".*_", "", made.database))
    own = {
        "DAGSTER_PG_DB": database,
        "DAGSTER_CELERY_BROKER_URL": f"{redis}/{number % 16}",
        "DAGSTER_CELERY_BACKEND_URL": f"{redis}/{(number + 1) % 16}",
        "PYTHONPATH": str(ROOT),
    }
    with ExitStack() as ends:
        cluster = RunningCluster(made, {**own, **variables}, port)
        ends.callback(cluster.stop)
        yield cluster


def test_two_workers_fill_the_lake_of_one_machine(shared: Shared, stand_ins: str, tmp_path: Path) -> None:
    made = new_hosts(shared, tmp_path, NQ_SANDBOX_PORT=stand_ins, NQ_NOW=NOW, NQ_BUDGET_DAILY_USD="100")
    alone = made.alone()
    span = ["--from", DAYS[0], "--to", DAYS[-1]]
    alone.nq("backfill", "--schema", "statistics", *span, "--max-usd", "40", "--yes", "--json")
    with running_cluster(made) as cluster:
        workers = [cluster.start_worker(name, "dagster") for name in ("a", "b")]
        for day in (*DAYS, DAYS[0]):
            cluster.launch(day)
        wait_until(lambda: cluster.states("backfill") == ["SUCCESS"] * 5, patience_s=PATIENCE_S)
        assert all("received" in program.log.read_text() for program in workers), "one worker did it all"
        dump = shared.redis.log.parent / "appendonlydir"
        stored = b"".join(file.read_bytes() for file in dump.iterdir())
        assert b"execute_job" in stored and shared.password.encode() not in stored
    expected = alone.digests(["statistics"])
    assert made.host("a").digests(["statistics"]) == expected == made.host("b").digests(["statistics"])


def test_a_killed_capture_host_has_one_successor(shared: Shared, stand_ins: str, tmp_path: Path) -> None:
    with capture_market(tmp_path / "none", load=100) as market:
        variables = {name: value for name, value in market.settings.items() if name != "NQ_DATA_DIR"}
        made = new_hosts(shared, tmp_path, NQ_SANDBOX_PORT=stand_ins, NQ_CAPTURE_LEASE_S="20", **variables)
        a = made.host("a")

        def newest() -> int:
            found = a.rows(TRADES).select(pl.col("ts_event").dt.epoch("ns").max()).item()
            return int(found or 0)

        with running_cluster(made) as cluster:
            killed = cluster.start_worker("b", "capture")
            wait_until(lambda: newest() > 0, patience_s=PATIENCE_S)
            time.sleep(120)  # four ticks of the sensor, which runs on another host
            assert cluster.states("capture") == ["STARTED"]

            cluster.start_worker("a", "capture")
            killed.kill()
            killed_ns = market.now_ns
            wait_until(lambda: newest() > killed_ns, patience_s=PATIENCE_S)
            time.sleep(40)
            assert cluster.states("capture") == ["FAILURE", "STARTED"]
        have, sent = rows_and_tape(market.gateway, a.rows(TRADES).lazy(), newest())
        assert have.height > 0 and have.equals(sent)
