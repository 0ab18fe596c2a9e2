"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from nq_pipeline_tests.testing.browser import CHROMIUM, FLAGS, require_browser
from nq_pipeline_tests.testing.migrations import remember_migrations
from nq_pipeline_tests.testing.postgres import PostgresServer, run_postgres
from nq_pipeline_tests.testing.recorded import SHARED
from nq_pipeline_tests.testing.s3 import Bucket, FaultProxy, new_bucket, serve_faults, serve_s3

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# How long an example takes depends on the machine and is no property of the program. The examples are the
# same in every run, so that a change is blamed for its own faults; `make soak` looks for new ones.
settings.register_profile(
    "search",
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile("nq", settings.get_profile("search"), max_examples=40, derandomize=True)
settings.load_profile("nq")

LONG = {
    "test_docs.py",
    "test_ui.py",
    "test_capture_run.py",
    "test_vendors.py",
    "test_faults.py",
    "test_feed.py",
    "test_kill.py",
    "test_object_store.py",
    "test_snapshot.py",
    "test_two_hosts.py",
}
"""Files that take longest: a file stays with one worker, so these begin first and none is left at the end."""


# Workers and the processes that tests start share what one of them compiled, whatever the shell says.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A shell that runs the tests in the background has them ignore Ctrl-C, which some of them send.
signal.signal(signal.SIGINT, signal.default_int_handler)


remember_migrations()

# Looking for garbage among the objects that imports make, which all stay, takes half the time of collection.
gc.disable()

MEMORY = Path("/dev/shm")


def pytest_configure() -> None:
    """Keep the tests' files in memory where it has room: the product waits for the disk at every commit."""
    runs_programs = MEMORY.is_dir() and not os.statvfs(MEMORY).f_flag & os.ST_NOEXEC
    if runs_programs and shutil.disk_usage(MEMORY).free > 4 << 30:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


def pytest_collection_finish() -> None:
    """Look for garbage from here on, but not among what was imported."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recorded vendor payloads; tests skip where it is not there."""
    if not SHARED.is_dir():
        pytest.skip("recorded vendor payloads are not part of the repository (set NQ_SHARED to their folder)")
    return SHARED


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server; tests skip where it is not installed."""
    with run_postgres() as server:
        yield server


@pytest.fixture(autouse=True)
def _no_ambient_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tests see neither the developer's environment nor a `.env` of the working directory."""
    for name in list(os.environ):
        if name.startswith(("NQ_", "TRADOVATE_", "POLYGON_", "MASSIVE_", "DATABENTO_", "AWS_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The address of an S3 stand-in in a process of its own."""
    with serve_s3() as endpoint:
        yield endpoint


@pytest.fixture
def bucket(s3: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A new bucket of the stand-in; the environment leads to it."""
    bucket = new_bucket(s3)
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    return bucket


@pytest.fixture
def s3_faults(s3: str) -> Iterator[FaultProxy]:
    """A proxy before the S3 stand-in that shows faults."""
    with serve_faults(s3) as proxy:
        yield proxy


@pytest.fixture
def flaky_bucket(s3_faults: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A new bucket behind `s3_faults`; the environment leads to the proxy."""
    bucket = new_bucket(s3_faults.endpoint)
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    return bucket


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium, of the tests of one module."""
    require_browser()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()
