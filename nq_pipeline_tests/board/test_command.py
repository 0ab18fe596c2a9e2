"""`nq board` as a user starts it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from nq_pipeline.board.own_capture import OwnCapture
from nq_pipeline.capture.log.locks import lock_pid
from nq_pipeline.cli import main
from nq_pipeline.configuration import build_settings
from nq_pipeline_tests.testing.boards import board_messages

pytestmark = pytest.mark.timeout(400)


def environment(folder: Path) -> Mapping[str, str]:
    return {**os.environ, "NQ_DATA_DIR": str(folder), "NQ_NOW": "2025-06-10T14:00:00Z"}


def test_a_board_for_other_machines_needs_a_token(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["board", "--host", "0.0.0.0"], env=environment(tmp_path))
    assert done.exit_code == 1 and "NQ_SERVE_TOKEN" in done.output


def test_an_own_capture_that_ended_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NQ_CAPTURE_WINDOW", "never")
    log = tmp_path / "capture.log"
    capture = OwnCapture(build_settings(data_dir=tmp_path), log)
    give_up = time.monotonic() + 60
    while not (why := capture.describe_end()):
        assert time.monotonic() < give_up
        time.sleep(0.02)
    capture.stop()
    assert "NQ_CAPTURE_WINDOW" in why and str(log) in why


@pytest.mark.slow
def test_in_the_sandbox_the_board_brings_a_capture_and_takes_it_away(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nq_pipeline", "board", "--port", "3917"]
    board = subprocess.Popen(command, env=environment(tmp_path), stdout=subprocess.PIPE, text=True)
    assert board.stdout
    printed = ""
    while not (found := re.search(r"open (http://\S+) in a browser", printed)):
        printed += board.stdout.readline() or pytest.fail(printed)
    assert "SANDBOX" in printed and "No capture was running" in printed
    sections: dict[str, Any] = {}
    deadline, trades = time.monotonic() + 200, 0
    for message in board_messages(found[1]):
        trades += sum(len(batch["side"]) for batch in message.pop("tape", []))
        sections |= message
        if trades and sections["capture"]["running"] and sections["future"] and "spend" in sections:
            break
        assert time.monotonic() < deadline, sections
    assert "started one" in sections["board"]["note"]
    board.send_signal(signal.SIGINT)
    assert board.wait(60) == 0
    assert lock_pid(tmp_path / "sandbox" / "capture") is None, "the capture has ended, too"
