"""The report as an asset: a page after every chain, and a sentence where there is none to report on."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import dagster as dg

from nq_pipeline.configuration import build_settings
from nq_pipeline.orchestration.assets.chains import option_chains
from nq_pipeline.orchestration.assets.report import report
from nq_pipeline.orchestration.names import CHOSEN_CHAIN, REPORT
from nq_pipeline.orchestration.resources import Vendors
from nq_pipeline.sources.registry import SOURCE_NAMES
from nq_pipeline_tests.testing.fake_vendors import FakeVendor

DAY, NOW = "2025-06-10", datetime.fromisoformat("2025-06-10T15:00:00Z")


def run(
    data_dir: Path, selection: dg.AssetSelection, partition: str = DAY, **vendors: FakeVendor
) -> dg.ExecuteInProcessResult:
    fakes = {name: FakeVendor(name) for name in SOURCE_NAMES} | vendors
    settings = build_settings(data_dir=data_dir, now=NOW, horizon_days=0, far_expirations=False)
    with dg.DagsterInstance.ephemeral() as instance:
        return dg.materialize(
            [option_chains, report],
            instance=instance,
            partition_key=partition,
            selection=selection,
            resources={"vendors": Vendors(settings, lambda name, _: fakes[name])},
            raise_on_error=False,
        )


def test_every_chain_has_its_page(tmp_path: Path) -> None:
    result = run(tmp_path, dg.AssetSelection.assets(CHOSEN_CHAIN, REPORT))
    assert result.success
    (made,) = (event for event in result.get_asset_materialization_events() if event.asset_key == REPORT)
    metadata = made.materialization.metadata
    page = Path(str(metadata["page"].value))
    assert page.is_file() and page.name == "2025-06-10T15-00-00Z.html"
    assert metadata["bytes"].value == page.stat().st_size
    assert metadata["environment"].value == "sandbox"


def test_a_trade_date_without_a_chain_has_no_report(tmp_path: Path) -> None:
    result = run(tmp_path, dg.AssetSelection.assets(REPORT), partition="2025-06-09")
    (failed,) = [event for event in result.all_events if event.event_type_value == "STEP_FAILURE"]
    assert "The lake has no chain of 2025-06-09 to report on" in str(
        failed.step_failure_data.error_display_string
    )


def test_a_report_that_cannot_be_written_loses_no_chain(tmp_path: Path) -> None:
    (tmp_path / "sandbox").mkdir()
    (tmp_path / "sandbox" / "reports").write_text("a file where the folder should be")
    result = run(tmp_path, dg.AssetSelection.assets(CHOSEN_CHAIN, REPORT))
    assert not result.success
    assert {event.asset_key for event in result.get_asset_materialization_events()} == {CHOSEN_CHAIN}
