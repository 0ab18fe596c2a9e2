"""Processes that capture, and a capture folder."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data" / "sandbox" / "capture"


@pytest.fixture
def writer(root: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `nq_pipeline_tests.testing.capture_writer` on the capture folder."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        command = [*before, sys.executable, "-m", "nq_pipeline_tests.testing.capture_writer", str(root)]
        process = subprocess.Popen(
            [*command, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
