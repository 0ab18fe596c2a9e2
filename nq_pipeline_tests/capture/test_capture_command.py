"""`nq capture` in a terminal, against the stand-ins it starts."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from nq_pipeline.cli import main
from nq_pipeline.configuration import build_settings
from nq_pipeline.lake.tables import SESSIONS, TRADES
from nq_pipeline.runtime import endpoints
from nq_pipeline.workspace import Workspace

NOW = "2025-06-10T13:31:00Z"
PATIENCE_S = 240


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the sandbox's stand-ins serve all captures of this file."""
    folder = tmp_path_factory.mktemp("stand-ins")
    with endpoints(build_settings(data_dir=folder)):
        yield str(json.loads((folder / "sandbox" / "sandbox.json").read_text())["port"])


@pytest.fixture
def nq(tmp_path: Path, port: str) -> list[str]:
    settings = {
        "NQ_DATA_DIR": str(tmp_path),
        "NQ_ENVIRONMENT": "sandbox",
        "NQ_NOW": NOW,
        "NQ_SANDBOX_PORT": port,
    }
    return [
        "env",
        *(f"{name}={value}" for name, value in settings.items()),
        sys.executable,
        "-m",
        "nq_pipeline",
    ]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)


def test_a_sandbox_capture_falls_back_and_fills_the_tables(nq: list[str], tmp_path: Path) -> None:
    done = run(*nq, "capture", "--minutes", "0.2", "--json")
    assert done.returncode == 0, done.stderr
    totals = json.loads(done.stdout)
    assert totals["schemas"] == {"options": "mbp-1", "futures": "trades"}
    assert totals["records"] > 0 and totals["open_gaps"] == 0 and totals["verified_gaps"] == 2
    lake = Workspace(tmp_path / "sandbox").lake
    assert lake.manifest(TRADES).rows > 0 and lake.manifest(SESSIONS).rows == 2


def test_ctrl_c_ends_a_capture_cleanly(nq: list[str]) -> None:
    process = subprocess.Popen([*nq, "capture"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        assert process.stdout.readline().startswith("SANDBOX")
        while " records " not in process.stdout.readline():
            pass
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    assert process.returncode == 0 and errors == ""
    assert "Next, paste:" in rest


def test_in_live_a_capture_without_a_key_says_what_to_set(tmp_path: Path) -> None:
    environment = {"NQ_DATA_DIR": str(tmp_path), "NQ_ENVIRONMENT": "live", "DATABENTO_API_KEY": ""}
    done = CliRunner().invoke(main, ["capture"], env=environment)
    assert done.exit_code == 1 and "DATABENTO_API_KEY" in done.stderr
