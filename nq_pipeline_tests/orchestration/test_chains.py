"""The step that asks all vendors, run by Dagster with fake vendors."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import duckdb
import pytest

from nq_pipeline.configuration import build_settings
from nq_pipeline.errors import Blocked, NotConfigured, SourceError, Unavailable
from nq_pipeline.market.sessions import trade_date
from nq_pipeline.orchestration.assets.chains import option_chains
from nq_pipeline.orchestration.names import CHOSEN_CHAIN, SOURCE_CHAINS
from nq_pipeline.orchestration.resources import Vendors
from nq_pipeline.schedule_policy import SCHEDULED
from nq_pipeline.sources.base import ChainAnswer, ChainRequest
from nq_pipeline.sources.registry import SOURCE_NAMES
from nq_pipeline.transport.vendor_session import VendorSession
from nq_pipeline_tests.testing.dagster_runs import evaluations, failure, materialized
from nq_pipeline_tests.testing.fake_vendors import FakeVendor

NOW = datetime(2025, 6, 10, 15, 0, tzinfo=UTC)
DAY = "2025-06-10"


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


class Desk:
    """Materializes chains with one fake per vendor, some of them replaced."""

    def __init__(self, instance: dg.DagsterInstance, data_dir: Path) -> None:
        self.instance, self.data_dir = instance, data_dir

    def run(
        self,
        *fakes: FakeVendor,
        partition: str | None = DAY,
        selection: list[dg.AssetKey] | dg.AssetSelection | None = None,
        tags: dict[str, str] | None = None,
        **settings: object,
    ) -> dg.ExecuteInProcessResult:
        vendors = {name: FakeVendor(name) for name in SOURCE_NAMES} | {fake.name: fake for fake in fakes}
        vendors["polygon"] = next(
            (f for f in fakes if f.name == "polygon"), FakeVendor("polygon", underlying_class="index")
        )
        chosen = {
            "environment": "live",
            "data_dir": self.data_dir,
            "now": NOW,
            "horizon_days": 0,
            "far_expirations": False,
            **settings,
        }
        resource = Vendors(build_settings(**chosen), lambda name, _: vendors[name])
        return dg.materialize(
            [option_chains],
            instance=self.instance,
            partition_key=partition,
            selection=selection,
            tags=tags,
            resources={"vendors": resource},
            raise_on_error=False,
        )


@pytest.fixture
def desk(instance: dg.DagsterInstance, tmp_path: Path) -> Desk:
    return Desk(instance, tmp_path / "data")


def test_the_first_vendor_by_priority_is_chosen(desk: Desk) -> None:
    result = desk.run()
    assert result.success
    rows = materialized(result)
    assert set(rows) == {CHOSEN_CHAIN, *SOURCE_CHAINS.values()}
    assert rows[CHOSEN_CHAIN]["winners"] == "barchart"
    assert all(check.passed for check in result.get_asset_check_evaluations())


@pytest.mark.parametrize("error", [Blocked("the site answered 403"), SourceError("odd")])
def test_a_failing_vendor_is_a_failed_check_and_the_next_is_chosen(desk: Desk, error: SourceError) -> None:
    result = desk.run(FakeVendor("barchart", raises=error))
    assert result.success
    rows = materialized(result)
    assert SOURCE_CHAINS["barchart"] not in rows
    assert rows[CHOSEN_CHAIN]["winners"] == "tradovate"
    (check,) = evaluations(result, SOURCE_CHAINS["barchart"]).values()
    assert (check.check_name, check.passed, check.severity) == (
        "available",
        False,
        dg.AssetCheckSeverity.ERROR,
    )
    assert str(error) in (check.description or "")
    assert all(check.passed for check in evaluations(result, CHOSEN_CHAIN).values())


def test_a_vendor_without_credentials_is_only_a_warning(desk: Desk) -> None:
    result = desk.run(FakeVendor("tradovate", raises=NotConfigured("set TRADOVATE_USERNAME")))
    check = evaluations(result, SOURCE_CHAINS["tradovate"])["available"]
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)


def test_a_vendor_outside_the_settings_gets_no_request(desk: Desk) -> None:
    left_out = FakeVendor("databento")
    result = desk.run(left_out, sources=("barchart",))
    assert left_out.asked == 0
    check = evaluations(result, SOURCE_CHAINS["databento"])["available"]
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "NQ_SOURCES" in (check.description or "")


def test_a_chosen_proxy_is_a_warning(desk: Desk) -> None:
    down = [FakeVendor(n, raises=Unavailable("down")) for n in ("barchart", "tradovate", "databento")]
    result = desk.run(*down)
    assert materialized(result)[CHOSEN_CHAIN]["winners"] == "polygon"
    of_chain = evaluations(result, CHOSEN_CHAIN)
    assert (of_chain["no_proxy"].passed, of_chain["no_proxy"].severity) == (
        False,
        dg.AssetCheckSeverity.WARN,
    )
    assert not of_chain["series_covered"].passed


def test_when_every_vendor_fails_the_run_succeeds_with_reasons(
    desk: Desk,
) -> None:
    result = desk.run(*(FakeVendor(n, raises=Unavailable(f"{n} is down")) for n in SOURCE_NAMES))
    assert result.success
    assert materialized(result) == {}
    check = evaluations(result, CHOSEN_CHAIN)["available"]
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert all(f"{name} is down" in (check.description or "") for name in SOURCE_NAMES)


def test_broken_control_totals_and_old_quotes_fail_checks(desk: Desk) -> None:
    result = desk.run(
        FakeVendor("barchart", breaks_controls=True), FakeVendor("tradovate", age=timedelta(hours=3))
    )
    of_barchart, of_tradovate = (
        evaluations(result, SOURCE_CHAINS["barchart"]),
        evaluations(result, SOURCE_CHAINS["tradovate"]),
    )
    assert not of_barchart["rows_complete"].passed
    assert of_barchart["fresh"].passed
    assert of_tradovate["rows_complete"].passed
    assert not of_tradovate["fresh"].passed


def test_metadata_has_counts_ages_and_places(desk: Desk) -> None:
    rows = materialized(desk.run())
    of_barchart, of_chain = rows[SOURCE_CHAINS["barchart"]], rows[CHOSEN_CHAIN]
    contracts = of_barchart["contracts"]
    assert isinstance(contracts, int) and contracts > 0
    assert of_barchart["dagster/partition_row_count"] == contracts
    assert of_barchart["environment"] == "live"
    assert of_barchart["newest_age_s"] == 60.0
    assert of_barchart["dropped"] == {"spread": 2}
    assert of_barchart["controls"] == {"rows_equal_total": True}
    assert of_barchart["cost_usd"] == 0.0
    assert "| tradovate |" in str(of_chain["sources"])
    assert "has priority" in str(of_chain["decisions"])
    assert "data:image/svg+xml;base64," in str(of_chain["open_interest"])
    folder = Path(str(of_chain["folder"]))
    assert of_chain["dagster/uri"] == f"file://{folder}"
    assert len(list(folder.glob("*.parquet"))) == 1


def test_row_counts_grow_with_each_snapshot(desk: Desk) -> None:
    first = materialized(desk.run())[CHOSEN_CHAIN]
    second = materialized(desk.run(now=NOW + timedelta(minutes=5)))[CHOSEN_CHAIN]
    assert second["contracts"] == first["contracts"]
    assert second["dagster/partition_row_count"] == 2 * int(str(first["contracts"]))


def test_one_vendor_alone_chooses_nothing(desk: Desk) -> None:
    others = [FakeVendor(name) for name in SOURCE_NAMES if name != "databento"]
    result = desk.run(*others, selection=[SOURCE_CHAINS["databento"]])
    assert set(materialized(result)) == {SOURCE_CHAINS["databento"]}
    assert [fake.asked for fake in others] == [0, 0, 0]
    with duckdb.connect(desk.data_dir / "live" / "nq.duckdb", read_only=True) as lake:
        assert lake.sql("select distinct source from source_chain").fetchall() == [("databento",)]
        assert lake.sql("select count(*) from option_chain").fetchall() == [(0,)]


def test_the_choice_alone_asks_all_vendors(desk: Desk) -> None:
    fake = FakeVendor("barchart")
    result = desk.run(fake, selection=[CHOSEN_CHAIN])
    assert set(materialized(result)) == {CHOSEN_CHAIN}
    assert fake.asked == 1


def test_a_check_alone_materializes_nothing(desk: Desk) -> None:
    key = dg.AssetCheckKey(SOURCE_CHAINS["barchart"], "fresh")
    result = desk.run(selection=dg.AssetSelection.checks(key), partition=None)
    assert result.success
    assert materialized(result) == {}
    assert [check.check_name for check in result.get_asset_check_evaluations()] == ["fresh"]


def test_another_trade_date_than_the_current_one_is_refused(desk: Desk) -> None:
    fake = FakeVendor("barchart")
    result = desk.run(fake, partition="2025-06-09")
    assert not result.success
    assert fake.asked == 0
    assert "launch the partition 2025-06-10" in failure(result, "option_chains")


def test_an_invalid_setting_fails_the_run_with_its_name(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NQ_HORIZON_DAYS", "many")
    result = dg.materialize(
        [option_chains],
        instance=instance,
        partition_key=DAY,
        resources={"vendors": Vendors()},
        raise_on_error=False,
    )
    assert failure(result, "option_chains").startswith("NQ_HORIZON_DAYS:")


def test_a_scheduled_run_asks_for_the_scheduled_instant(desk: Desk) -> None:
    scheduled = datetime.now(UTC) - timedelta(minutes=2)
    vendor = RecordingVendor("barchart")
    result = desk.run(
        vendor,
        partition=trade_date(scheduled).isoformat(),
        selection=[SOURCE_CHAINS["barchart"]],
        tags={SCHEDULED: scheduled.isoformat()},
        now=None,
    )
    assert result.success
    assert vendor.snapshot_ts == scheduled


class RecordingVendor(FakeVendor):
    """Records the requested instant and fails."""

    snapshot_ts: datetime | None = None

    def ask(self, request: ChainRequest, session: VendorSession) -> ChainAnswer:
        self.snapshot_ts = request.snapshot_ts
        raise Unavailable("recorded")
