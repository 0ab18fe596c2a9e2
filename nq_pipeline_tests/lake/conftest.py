"""A lake in a fresh folder, and processes that write to it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import TABLES
from nq_pipeline_tests.testing.lake_samples import TICKS

REPOSITORY = Path(__file__).parents[2]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A module that names FORMATS runs its tests of `lake` in each of them."""
    formats = getattr(metafunc.module, "FORMATS", None)
    if formats and "lake" in metafunc.fixturenames:
        metafunc.parametrize("lake", formats, indirect=True)


@pytest.fixture
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Lake:
    root = tmp_path / "data" / "sandbox" / "lake"
    return Lake(root, tables=[TICKS, *TABLES.values()], delta=getattr(request, "param", "") == "delta")


@pytest.fixture
def writer(lake: Lake) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `nq_pipeline_tests.testing.lake_writer` on the lake; returns once it is about to write."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "nq_pipeline_tests.testing.lake_writer", str(lake.root)]
        command += ["delta"] if lake.delta else []
        process = subprocess.Popen(
            [*command, *map(str, arguments)], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()
