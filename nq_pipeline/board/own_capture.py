"""In the sandbox, the capture that the board starts if none runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nq_pipeline.capture.log.locks import read_capture_holder
from nq_pipeline.settings import Settings
from nq_pipeline.sources.databento.spec import DatabentoSettings

STOP_S = 30.0
"""How long the capture may take to end; it flushes its log."""


class OwnCapture:
    """`nq capture` in a process of its own; its warnings and its error go to a file."""

    def __init__(self, settings: Settings, log: Path) -> None:
        self._log = log
        with log.open("wb") as warnings:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "nq_pipeline", "capture", "--json"],
                env={**os.environ, "NQ_DATA_DIR": str(settings.data_dir)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=warnings,
                start_new_session=True,
            )

    def describe_end(self) -> str:
        """Why the capture has ended, in a sentence; empty while it runs."""
        code = self._process.poll()
        if code is None:
            return ""
        lines = self._log.read_text(errors="replace").strip().splitlines()
        why = lines[-1].removeprefix("nq: ") if code and lines else f"exit code {code}"
        return f"{why} (start the board again for another capture; {self._log} has all it said)"

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        self._process.kill()
        self._process.wait()


@contextmanager
def own_capture(settings: Settings) -> Iterator[OwnCapture | None]:
    """Run a capture while the context lasts, if the environment is the sandbox and none runs; else None.

    What it says goes to `board-capture.log` in the environment's folder.
    """
    dataset = settings.vendor(DatabentoSettings).dataset
    if settings.environment != "sandbox" or read_capture_holder(settings, dataset):
        yield None
        return
    settings.environment_dir.mkdir(parents=True, exist_ok=True)
    capture = OwnCapture(settings, settings.environment_dir / "board-capture.log")
    try:
        yield capture
    finally:
        capture.stop()
