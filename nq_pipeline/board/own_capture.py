"""In the sandbox, the capture that the board starts if none runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from nq_pipeline.capture.log.locks import read_capture_holder
from nq_pipeline.settings import Settings
from nq_pipeline.sources.databento.spec import DatabentoSettings

STOP_S = 30.0
"""How long the capture may take to end; it flushes its log."""


@contextmanager
def own_capture(settings: Settings) -> Iterator[bool]:
    """Run `nq capture` in a process while the context lasts, if the environment is the sandbox and none runs.

    Yields whether it does. What the process prints goes to `board-capture.log` in the environment's folder.
    """
    dataset = settings.vendor(DatabentoSettings).dataset
    if settings.environment != "sandbox" or read_capture_holder(settings, dataset):
        yield False
        return
    settings.environment_dir.mkdir(parents=True, exist_ok=True)
    with (settings.environment_dir / "board-capture.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "nq_pipeline", "capture"],
            env={**os.environ, "NQ_DATA_DIR": str(settings.data_dir)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield True
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        process.kill()
        process.wait()
