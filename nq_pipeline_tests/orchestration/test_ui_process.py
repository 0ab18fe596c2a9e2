"""`nq ui` as a process: it starts only where it can, says when it is ready, and ends all that it started."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path

import dagster as dg
import pytest
import requests
import yaml
from click.testing import CliRunner
from dagster import partition_loading_context

from nq_pipeline import cli
from nq_pipeline.cli import exit_codes
from nq_pipeline.clock import to_ns
from nq_pipeline.configuration import build_settings
from nq_pipeline.errors import UiError
from nq_pipeline.lake.tables import SOURCE_CHAIN
from nq_pipeline.market import sessions
from nq_pipeline.orchestration.partitions import trade_dates
from nq_pipeline.orchestration.resources import Vendors
from nq_pipeline.orchestration.sensors import first_snapshot
from nq_pipeline.ui import supervisor
from nq_pipeline.ui.first_partitions import CAPTURE, CHAINS, first_partitions
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.lake_samples import chain

ROOT = Path(__file__).parents[2]
FAKE = """
import json, os, signal, subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

child = subprocess.Popen([sys.executable, "-c", CHILD])
Path("child").write_text(str(child.pid))
Path("home").write_text(os.environ["DAGSTER_HOME"])
Path("first").write_text(os.environ.get("DAGSTER_NQ_FIRST_CHAIN", ""))

class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"dagster_webserver_version": "1"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Answer).serve_forever()
"""
"""A Dagster that answers at once and leaves a process behind when it ends."""
OBEDIENT = "import time; time.sleep(60)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {OBEDIENT}"


def free_port() -> int:
    with socket.socket() as free:
        free.bind((supervisor.HOST, 0))
        return int(free.getsockname()[1])


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind((supervisor.HOST, 0))
        taken.listen()
        yield int(taken.getsockname()[1])


def fake_dagster(folder: Path, child: str = OBEDIENT) -> None:
    """A package `dagster` found first in this folder; importing its commands starts it."""
    (folder / "dagster" / "_cli").mkdir(parents=True)
    (folder / "dagster" / "__init__.py").touch()
    (folder / "dagster" / "_cli" / "__init__.py").write_text(FAKE.replace("CHILD", repr(child)))


def today() -> str:
    return sessions.current_session(datetime.now(UTC)).trade_date.isoformat()


def is_gone(pid: int) -> bool:
    """Whether a process has ended; one that only waits to be reaped has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def running(*marks: str) -> list[str]:
    """The command lines of processes that contain one of the marks."""
    shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in shown.splitlines() if any(mark in line for mark in marks)]


# ── before it starts ────────────────────────────────────────────────────────────────────────────


def test_a_taken_port_is_reported_before_anything_starts(tmp_path: Path) -> None:
    fake_dagster(tmp_path)
    with taken_port() as port:
        result = CliRunner().invoke(cli.main, ["ui", "--port", str(port)])
    assert result.exit_code == exit_codes.FAULT
    assert result.stderr.startswith(f"nq: port {port} of 127.0.0.1 cannot be used (")
    assert f"nq ui --port {port + 1}" in result.stderr
    assert not (tmp_path / "child").exists() and "open http" not in result.stdout


def test_a_second_ui_on_the_same_instance_is_refused(tmp_path: Path) -> None:
    with (
        supervisor.hold_instance(tmp_path, free_port()),
        pytest.raises(UiError, match="another `nq ui`"),
        supervisor.hold_instance(tmp_path, free_port()),
    ):
        pass
    with supervisor.hold_instance(tmp_path, free_port()):
        pass


# ── while it runs, and when it ends ─────────────────────────────────────────────────────────────


def test_a_signal_ends_every_process_and_the_url_is_shown_once(tmp_path: Path) -> None:
    fake_dagster(tmp_path)
    port = free_port()
    with subprocess.Popen(
        [sys.executable, "-m", "nq_pipeline", "ui", "--port", str(port)],
        cwd=tmp_path,
        env={**os.environ, "NQ_ENVIRONMENT": "live", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout
        output = []
        for line in process.stdout:
            output.append(line)
            if "ready" in line:
                process.send_signal(signal.SIGTERM)
    assert process.returncode == exit_codes.OK, output
    assert "".join(output).count(f"http://127.0.0.1:{port}") == 1
    assert is_gone(int((tmp_path / "child").read_text()))
    assert (tmp_path / "home").read_text() == str(tmp_path / "data" / ".dagster")
    assert (tmp_path / "first").read_text() == today()


def test_a_process_that_does_not_obey_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "GRACE_S", 0.5)
    fake_dagster(tmp_path, STUBBORN)
    stop, port = threading.Event(), free_port()
    supervisor.run_dagster(
        supervisor.dagster_command(port),
        port,
        environment={"DAGSTER_HOME": str(tmp_path)},
        stop=stop,
        on_ready=stop.set,
    )
    time.sleep(0.1)
    assert is_gone(int((tmp_path / "child").read_text()))


def test_the_dagster_of_a_killed_ui_holds_its_instance(tmp_path: Path) -> None:
    fake_dagster(tmp_path)
    stop, port, claim = threading.Event(), free_port(), os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(claim, fcntl.LOCK_EX)

    def killed() -> None:
        os.close(claim)
        with (
            pytest.raises(UiError, match="Dagster of a killed one"),
            supervisor.hold_instance(tmp_path, 0),
        ):
            pass
        stop.set()

    environment = {"DAGSTER_HOME": str(tmp_path)}
    supervisor.run_dagster(
        supervisor.dagster_command(port),
        port,
        environment=environment,
        stop=stop,
        hold=claim,
        on_ready=killed,
    )
    with supervisor.hold_instance(tmp_path, 0):
        pass


def test_a_dagster_that_ends_by_itself_is_an_error() -> None:
    with pytest.raises(UiError, match="ended by itself"):
        supervisor.run_dagster(
            [sys.executable, "-c", ""], free_port(), environment={}, stop=threading.Event()
        )


# ── the instance ────────────────────────────────────────────────────────────────────────────────


def test_an_empty_folder_gets_an_instance_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = build_settings(data_dir=Path("data"))
    home = supervisor.instance_folder(settings)
    assert home == tmp_path / "data" / ".dagster"
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}")
    assert supervisor.instance_folder(settings) == home
    assert "concurrency" not in (home / "dagster.yaml").read_text(), "what is there is not written over"
    (tmp_path / "dagster.yaml").touch()
    assert supervisor.instance_folder(settings) == tmp_path, "a checkout"
    (tmp_path / ".env").write_text("DAGSTER_HOME=${HOME}/d\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert supervisor.instance_folder(settings) == tmp_path / "d"
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "e"))
    assert supervisor.instance_folder(settings) == tmp_path / "e"


def test_the_shipped_instance_is_that_of_a_checkout() -> None:
    """But for the places of its files, which Dagster puts beside the shipped one by itself."""
    places = {"storage", "local_artifact_storage", "compute_logs"}
    checkout = yaml.safe_load((ROOT / "dagster.yaml").read_text())
    shipped = yaml.safe_load((supervisor.SHIPPED / "dagster.yaml").read_text())
    assert shipped == {name: part for name, part in checkout.items() if name not in places}
    assert (supervisor.SHIPPED / "workspace.yaml").read_text() == (ROOT / "workspace.yaml").read_text()


# ── the first partition ─────────────────────────────────────────────────────────────────────────


def test_partitions_begin_today_or_with_the_lake(tmp_path: Path) -> None:
    """Dagster counts every partition, so one from before the first chain would be missing for ever."""
    noon = datetime(2025, 6, 10, 17, tzinfo=UTC)
    settings = build_settings(data_dir=tmp_path, now=noon)
    assert first_partitions(settings) == {CHAINS: "2025-06-10", CAPTURE: "2025-06-10"}
    with partition_loading_context(effective_dt=noon):
        assert trade_dates(date(2025, 6, 10)).get_partition_keys() == ["2025-06-10"]
    day = date(2025, 6, 5)
    rows = chain(SOURCE_CHAIN, snapshot=to_ns(datetime(2025, 6, 5, 15, tzinfo=UTC)), day=day)
    Workspace.of(settings).lake.append(SOURCE_CHAIN, rows, run_id="run")
    assert first_partitions(settings) == {CHAINS: "2025-06-05", CAPTURE: "2025-06-10"}
    (Workspace.of(settings).lake.root / "source_chain" / "manifest.json").write_text("{")
    assert first_partitions(settings)[CHAINS] == "2025-01-02", "what the lake has cannot be told"


# ── the first snapshot ──────────────────────────────────────────────────────────────────────────


def first(instance: dg.DagsterInstance, **given: object) -> dg.RunRequest | dg.SkipReason:
    vendors = Vendors(build_settings(**given))
    context = dg.build_sensor_context(instance=instance, resources={"vendors": vendors})
    return first_snapshot(context)  # type: ignore[return-value]


def test_a_new_instance_of_the_sandbox_asks_for_one_chain() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        due = first(instance)
        assert isinstance(due, dg.RunRequest)
        assert due.partition_key == today()
        for settings, reason in (
            ({"environment": "live"}, "NQ_CHAIN_WINDOW (rth)"),
            ({"now": "2025-06-10T15:00:00Z"}, "NQ_NOW holds the clock"),
        ):
            skipped = first(instance, **settings)
            assert isinstance(skipped, dg.SkipReason) and reason in (skipped.skip_message or "")
        instance.report_runless_asset_event(dg.AssetMaterialization(["nq", "option_chain"]))
        skipped = first(instance)
        assert isinstance(skipped, dg.SkipReason) and "there is a chain" in (skipped.skip_message or "")


# ── the whole of it ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_works_in_an_empty_folder_and_leaves_no_process(tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "ui.log"
    with (
        log.open("w") as out,
        subprocess.Popen(
            [str(Path(sys.executable).with_name("nq")), "ui", "--port", str(port)],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "NO_PROXY": supervisor.HOST},
            stdout=out,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        graphql = """{ runsOrError(filter: {pipelineName: "chain_snapshot"}) { ... on Runs {
            results { status } } } locationStatusesOrError { ... on WorkspaceLocationStatusEntries {
            entries { name } } }
            assetNodes(assetKeys: [{path: ["nq", "option_chain"]}, {path: ["nq", "report"]}]) {
            partitionStats { numPartitions numMaterialized } } }"""
        done: list[str] = []
        filled: list[dict[str, int]] = []
        give_up, location = time.monotonic() + 300, ""
        while time.monotonic() < give_up and process.poll() is None and done != ["SUCCESS"]:
            time.sleep(2)
            if "Dagster is ready" in log.read_text():
                url = f"http://{supervisor.HOST}:{port}/graphql"
                data = requests.post(url, json={"query": graphql}, timeout=30).json()["data"]
                done = [run["status"] for run in data["runsOrError"]["results"]]
                location = data["locationStatusesOrError"]["entries"][0]["name"]
                filled = [node["partitionStats"] for node in data["assetNodes"]]
        process.send_signal(signal.SIGTERM)
    messages = log.read_text()
    assert (process.returncode, done, location) == (exit_codes.OK, ["SUCCESS"], "nq_pipeline"), messages[
        -3000:
    ]
    assert filled == [{"numPartitions": 1, "numMaterialized": 1}] * 2, "green, not 0% filled"
    assert not re.search("SupersessionWarning|temporary directory", messages)
    give_up = time.monotonic() + 30  # the stand-ins end once nobody holds a lease any more
    while left := running(str(tmp_path), f"--port {port}"):
        assert time.monotonic() < give_up, left
        time.sleep(0.5)
