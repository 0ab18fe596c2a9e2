"""A lake with a priced chain and captured ticks, shared by the tests of the exports."""

from __future__ import annotations

import pytest

from nq_pipeline.settings import Settings
from nq_pipeline_tests.testing.export_lake import store_formula, store_ticks
from nq_pipeline_tests.testing.report_lake import price_and_store, store_snapshot


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The settings of a lake with one snapshot, priced and measured, and ticks of two trade dates."""
    settings, snapshot = store_snapshot(tmp_path_factory.mktemp("data"))
    price_and_store(settings, snapshot)
    store_ticks(settings)
    store_formula(settings)
    return settings
