"""One lake with a snapshot, trades and a gap, and a server of it."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl
import pytest

from nq_pipeline.lake.tables import GAPS, conform
from nq_pipeline.settings import Settings
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.report_lake import price_and_store, store_snapshot, store_trades
from nq_pipeline_tests.testing.served import serve
from nq_pipeline_tests.testing.stream_samples import gap_row


@pytest.fixture(scope="package")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    settings, snapshot = store_snapshot(tmp_path_factory.mktemp("data"))
    price_and_store(settings, snapshot)
    store_trades(settings, snapshot)
    rows = [gap_row(1), gap_row(1, revision=1, state="verified"), gap_row(2)]
    Workspace.of(settings).lake.append(GAPS, conform(GAPS, pl.DataFrame(rows)), run_id="run")
    return settings


@pytest.fixture(scope="package")
def address(settings: Settings) -> Iterator[str]:
    """Host and port of a server without a token."""
    with serve(settings) as address:
        yield address
