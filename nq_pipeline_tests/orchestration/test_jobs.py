"""Housekeeping, run by Dagster over a lake and a history that snapshots wrote."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from nq_pipeline.configuration import build_settings
from nq_pipeline.lake.catalog import connect
from nq_pipeline.lake.tables import OPTION_CHAIN, OPTION_PRICING, SOURCE_CHAIN
from nq_pipeline.orchestration.build import build_defs
from nq_pipeline.orchestration.jobs import delete_old_runs
from nq_pipeline.orchestration.names import CHOSEN_CHAIN, SOURCE_CHAINS
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.fake_vendors import FakeVendor
from nq_pipeline_tests.testing.vendors import Desk, Vendor

CHAINS = [CHOSEN_CHAIN, *SOURCE_CHAINS.values()]


def test_a_closed_trade_date_becomes_one_file_per_table(tmp_path: Path) -> None:
    first = datetime(2025, 6, 10, 15, 0, tzinfo=UTC)
    for minutes in (0, 5):
        settings = build_settings(
            environment="live",
            data_dir=tmp_path,
            now=first + timedelta(minutes=minutes),
            horizon_days=0,
            far_expirations=False,
            sources=("barchart", "databento"),
        )
        defs = build_defs(settings, opener=lambda name, _: FakeVendor(name))
        with dg.DagsterInstance.ephemeral() as instance:
            job = defs.resolve_job_def("chain_snapshot")
            assert job.execute_in_process(
                instance=instance, partition_key="2025-06-10", asset_selection=CHAINS
            ).success
    lake = Workspace(tmp_path / "live").lake
    rows = lake.manifest(OPTION_CHAIN).rows
    assert len(lake.manifest(SOURCE_CHAIN).files) == 2

    assert defs.resolve_job_def("housekeeping").execute_in_process().success

    assert [len(lake.manifest(table).files) for table in (SOURCE_CHAIN, OPTION_CHAIN)] == [1, 1]
    with connect(lake) as duck:
        assert duck.sql("select count(*) from option_chain").fetchall() == [(rows,)]


def test_housekeeping_finishes_and_prices_a_killed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    desk = Desk(tmp_path, Vendor("barchart"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("nq_pipeline.lake.store.Lake.append_all", die)
        desk.snap()
    defs = build_defs(desk.settings, opener=desk.open)
    assert defs.resolve_job_def("housekeeping").execute_in_process().success
    lake = Workspace.of(desk.settings).lake
    assert lake.manifest(OPTION_PRICING).rows == lake.manifest(OPTION_CHAIN).rows > 0


def test_housekeeping_of_an_empty_lake_does_nothing(tmp_path: Path) -> None:
    defs = build_defs(build_settings(data_dir=tmp_path))
    assert defs.resolve_job_def("housekeeping").execute_in_process().success


def test_old_runs_are_deleted_except_the_last_of_a_trade_date(tmp_path: Path) -> None:
    settings = build_settings(
        environment="live",
        data_dir=tmp_path,
        now=datetime(2025, 6, 10, 15, 0, tzinfo=UTC),
        horizon_days=0,
        far_expirations=False,
        sources=("barchart",),
    )
    defs = build_defs(settings, opener=lambda name, _: FakeVendor(name))
    with dg.instance_for_test() as instance:
        snapshots, retention = (defs.resolve_job_def(name) for name in ("chain_snapshot", "retention"))
        runs = [
            snapshots.execute_in_process(
                instance=instance, partition_key="2025-06-10", asset_selection=CHAINS
            ).run_id
            for _ in range(2)
        ]
        assert retention.execute_in_process(instance=instance).success
        assert all(instance.has_run(run) for run in runs)

        delete_old_runs(instance, before=datetime.now(UTC) + timedelta(minutes=1))

        assert [instance.has_run(run) for run in runs] == [False, True]
        assert instance.get_materialized_partitions(CHOSEN_CHAIN) == {"2025-06-10"}
        files = {
            path.name.partition(".")[0] for path in Path(instance.storage_directory()).parent.rglob("*.db")
        }
        assert files & set(runs) == {runs[1]}
