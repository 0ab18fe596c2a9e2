"""The command `nq serve`: it serves until it is stopped, and says why it cannot."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import requests
from click.testing import CliRunner

from nq_pipeline.cli import main
from nq_pipeline.settings import Settings

NQ = Path(sys.executable).with_name("nq")


def test_it_serves_until_it_is_stopped(settings: Settings) -> None:
    environment = {**os.environ, "NQ_DATA_DIR": str(settings.data_dir)}
    with subprocess.Popen(
        [NQ, "serve", "--port", "0"], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert "SANDBOX" in process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
        assert found
        assert requests.get(f"{found[0]}chain?limit=2", timeout=60).json()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_it_refuses_other_machines_without_a_token(settings: Settings) -> None:
    done = CliRunner().invoke(
        main, ["serve", "--host", "0.0.0.0"], env={"NQ_DATA_DIR": str(settings.data_dir)}
    )
    assert done.exit_code == 1
    assert "NQ_SERVE_TOKEN" in done.output


def test_it_says_that_the_port_is_taken(settings: Settings, address: str) -> None:
    port = address.rpartition(":")[2]
    done = CliRunner().invoke(main, ["serve", "--port", port], env={"NQ_DATA_DIR": str(settings.data_dir)})
    assert done.exit_code == 1
    assert port in done.output


def test_it_needs_a_lake(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["serve"], env={"NQ_DATA_DIR": str(tmp_path)})
    assert done.exit_code == 6
