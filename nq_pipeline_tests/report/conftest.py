"""A lake with one snapshot and captured trades, shared by the tests of the report."""

from __future__ import annotations

from pathlib import Path

import pytest

from nq_pipeline.settings import Settings
from nq_pipeline_tests.testing.report_lake import price_and_store, store_snapshot, store_trades


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def sandbox(data_dir: Path) -> Settings:
    """The settings of a lake with a snapshot, priced and measured, and captured trades."""
    settings, snapshot = store_snapshot(data_dir)
    store_trades(settings, snapshot)
    price_and_store(settings, snapshot)
    return settings
