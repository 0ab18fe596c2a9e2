"""A real `dagster dev` with its own folder, port and process group."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

ROOT = Path(__file__).parents[2]
PATIENCE_S = 240.0


class Dev:
    """`dagster dev` in a folder with only the repository's two YAML files, without DAGSTER_HOME."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self.folder, self.log = folder, folder / "dev.log"
        for name in ("workspace.yaml", "dagster.yaml"):
            shutil.copy(ROOT / name, folder)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "dagster", "dev", "--host", "127.0.0.1", "--port", str(self._port)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.folder,
                env={
                    "PATH": os.environ["PATH"],
                    "HOME": str(self.folder),
                    "PYTHONPATH": str(ROOT),
                    "NO_PROXY": "127.0.0.1",
                    **self._settings,
                },
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._wait_until_served()

    def kill(self) -> None:
        """Kill the whole group (daemons, code server, runs), as a power cut would."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def graphql(self, query: str, **variables: object) -> Any:
        reply = requests.post(
            f"{self.url}/graphql", json={"query": query, "variables": variables}, timeout=30
        ).json()
        assert "errors" not in reply, reply
        return reply["data"]

    def launch(self, job: str, partition: str) -> str:
        """Launch a run as the UI would; its id."""
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
        return str(launched["run"]["runId"])

    def run(self, job: str, partition: str) -> str:
        """Launch a run, wait for its end, return its status."""
        run_id = self.launch(job, partition)
        status = "STARTING"
        give_up = time.monotonic() + 300
        while status not in ("SUCCESS", "FAILURE", "CANCELED") and time.monotonic() < give_up:
            time.sleep(0.5)
            status = self.graphql(
                "query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }", id=run_id
            )["runOrError"]["status"]
        return status

    def capture_runs(self) -> list[dict[str, Any]]:
        """The runs of the capture, oldest first, with their tags as a dictionary."""
        found: list[dict[str, Any]] = self.graphql(
            """{ runsOrError(filter: {pipelineName: "capture"}) { ... on Runs {
                results { runId status tags { key value } } } } }"""
        )["runsOrError"]["results"]
        for run in found:
            run["tags"] = {tag["key"]: tag["value"] for tag in run["tags"]}
        return list(reversed(found))

    def wait_until(self, condition: Callable[[], bool]) -> None:
        give_up = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < give_up, self.tail()
            time.sleep(0.5)

    def tail(self) -> str:
        """The last messages."""
        return self.log.read_text()[-3000:]

    def _wait_until_served(self) -> None:
        assert self._process
        give_up = time.monotonic() + 180
        while time.monotonic() < give_up and self._process.poll() is None:
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"{self.url}/server_info", timeout=5).ok:
                    return
            time.sleep(0.3)
        pytest.fail(f"dagster dev did not come up: {self.tail()}")


@contextmanager
def dagster_dev(folder: Path, settings: Mapping[str, str]) -> Iterator[Dev]:
    """Run `dagster dev` while the context lasts."""
    dev = Dev(folder, settings)
    try:
        dev.start()
        yield dev
    finally:
        dev.kill()
