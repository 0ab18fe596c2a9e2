"""The compaction job, run by Dagster over a lake that a run wrote."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg

from nq_pipeline.lake.catalog import connect
from nq_pipeline.lake.lake import Lake
from nq_pipeline.lake.schemas import OPTION_CHAIN, SOURCE_CHAIN
from nq_pipeline.orchestration.build import build_defs
from nq_pipeline.settings import Settings
from nq_pipeline_tests.orchestration.fakes import FakeVendor


def test_a_closed_trade_date_becomes_one_file_per_table_and_loses_no_row(tmp_path: Path) -> None:
    first = datetime(2025, 6, 10, 15, 0, tzinfo=UTC)
    for minutes in (0, 5, 10):
        settings = Settings(
            environment="live",
            data_dir=tmp_path,
            now=first + timedelta(minutes=minutes),
            horizon_days=0,
            sources=("barchart", "databento"),
        )
        defs = build_defs(settings, opener=lambda name, _: FakeVendor(name))
        with dg.DagsterInstance.ephemeral() as instance:
            job = defs.resolve_job_def("chain_snapshot")
            assert job.execute_in_process(instance=instance, partition_key="2025-06-10").success
    lake = Lake(tmp_path / "live" / "lake")
    rows = lake.manifest(OPTION_CHAIN).rows
    assert len(lake.manifest(SOURCE_CHAIN).files) == 3

    assert defs.resolve_job_def("compaction").execute_in_process().success

    assert [len(lake.manifest(table).files) for table in (SOURCE_CHAIN, OPTION_CHAIN)] == [1, 1]
    with connect(tmp_path / "live") as duck:
        assert duck.sql("select count(*) from option_chain").fetchall() == [(rows,)]


def test_compaction_of_an_empty_lake_does_nothing(tmp_path: Path) -> None:
    defs = build_defs(Settings(data_dir=tmp_path))
    assert defs.resolve_job_def("compaction").execute_in_process().success
