"""The steps that price a chain and count aggressors, run by Dagster."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import polars as pl
import pytest

from nq_pipeline.analytics.quality import no_butterfly_arbitrage
from nq_pipeline.configuration import build_settings
from nq_pipeline.lake.tables import (
    GAMMA_LEVELS,
    INSTANT,
    OPEN_INTEREST_CHANGE,
    OPTION_CHAIN,
    OPTION_PRICING,
    SOURCE_CHAIN,
    TRADE_PRESSURE,
    TRADES,
)
from nq_pipeline.market.sessions import CHICAGO
from nq_pipeline.orchestration.assets.analytics import TABLES, chain_analytics, trade_pressure
from nq_pipeline.orchestration.assets.daily import daily_analytics
from nq_pipeline.orchestration.build import build_defs
from nq_pipeline.orchestration.names import (
    ARBITRAGE,
    BARS,
    CHOSEN_CHAIN,
    LEVELS,
    MATURITIES,
    OPEN_INTEREST,
    PRESSURE,
    PRICING,
    REPORT,
    SERIES,
    SMILE,
    SPEND_LEDGER,
    SURFACE,
)
from nq_pipeline.orchestration.resources import Vendors
from nq_pipeline.orchestration.schedules import pressure_while_captured
from nq_pipeline.schedule_policy import pressure_tick
from nq_pipeline.settings import Settings
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.dagster_runs import evaluations, materialized
from nq_pipeline_tests.testing.fake_vendors import FakeVendor
from nq_pipeline_tests.testing.lake_samples import chain as sample
from nq_pipeline_tests.testing.report_lake import store_snapshot

NOW = datetime(2025, 6, 10, 15, 0, tzinfo=UTC)
DAY = "2025-06-10"


def at(now: datetime, data_dir: Path) -> Settings:
    return build_settings(
        environment="live",
        data_dir=data_dir,
        now=now,
        horizon_days=1,
        far_expirations=False,
        sources=("barchart",),
    )


def run(settings: Settings, job: str = "chain_snapshot") -> dg.ExecuteInProcessResult:
    defs = build_defs(settings, opener=lambda name, _: FakeVendor(name))
    with dg.DagsterInstance.ephemeral() as instance:
        whole = defs.resolve_job_def(job)
        assets = set(whole.asset_layer.executable_asset_keys) - {REPORT}  # it has tests of its own
        return whole.execute_in_process(instance=instance, partition_key=DAY, asset_selection=sorted(assets))


def test_the_snapshot_job_prices_and_measures_the_chosen_chain(tmp_path: Path) -> None:
    settings = at(NOW, tmp_path)
    result = run(settings)
    rows = materialized(result)
    assert {CHOSEN_CHAIN, *TABLES} <= set(rows)
    assert rows[PRICING]["rows"] == rows[CHOSEN_CHAIN]["contracts"]
    assert rows[PRICING]["priced_share"] == 1.0
    assert 0.05 < float(str(rows[SMILE]["atm_iv"])) < 1
    assert rows[SERIES]["forward"] == pytest.approx(21_500, abs=1)
    assert rows[LEVELS]["put_call_open_interest"] == 1.0
    assert not evaluations(result, MATURITIES), "the expirations are too near to bracket a maturity"
    for key in set(TABLES) - {MATURITIES}:
        # The time value of this vendor's prices is a tent over the strikes, the same for every expiration:
        # no curve fits it, and rounding decides whether two curves cross.
        passed = {check.passed for check in evaluations(result, key).values()}
        assert passed == {key != SURFACE} or (passed and key == ARBITRAGE), key
    # The catalog was published after the rows.
    with duckdb.connect(Workspace.of(settings).catalog, read_only=True) as duck:
        shown = duck.sql("select count(*), count(*) filter (iv_source = 'computed') from option_chain_priced")
        assert shown.fetchall() == [(rows[PRICING]["rows"],) * 2]


def test_without_a_chain_nothing_is_priced_and_the_run_succeeds(tmp_path: Path) -> None:
    from nq_pipeline.errors import Unavailable

    defs = build_defs(at(NOW, tmp_path), opener=lambda name, _: FakeVendor(name, raises=Unavailable("down")))
    with dg.DagsterInstance.ephemeral() as instance:
        job = defs.resolve_job_def("chain_snapshot")
        result = job.execute_in_process(instance=instance, partition_key=DAY)
    assert result.success and set(materialized(result)) == {SPEND_LEDGER}


def test_the_next_run_prices_a_chain_left_unpriced(tmp_path: Path) -> None:
    """A chain whose own pricing failed, or that is older than there was any."""
    settings, snapshot = store_snapshot(tmp_path, environment="live")
    lake = Workspace.of(settings).lake
    left = snapshot.chain.with_columns(snapshot_ts=pl.col("snapshot_ts") - timedelta(minutes=5))
    lake.append(OPTION_CHAIN, left, run_id="earlier")
    resources = {"vendors": Vendors(settings)}
    for _ in range(2):  # the second time there is nothing left
        assert dg.materialize([chain_analytics], partition_key=DAY, resources=resources).success
        priced = lake.scan(OPTION_PRICING).collect()
        assert priced["snapshot_ts"].n_unique() == 2 and priced.height == 2 * snapshot.chain.height
        assert lake.scan(GAMMA_LEVELS).collect().height == 2


def test_bars_and_changes_of_open_interest_are_assets_with_checks(tmp_path: Path) -> None:
    settings = at(NOW, tmp_path)
    lake, days = Workspace.of(settings).lake, [date(2025, 6, n) for n in (9, 10)]
    for day, hour in ((days[0], 15), (days[1], 16)):
        moment = int(datetime(day.year, day.month, day.day, hour, tzinfo=UTC).timestamp()) * 10**9
        rows = sample(SOURCE_CHAIN, snapshot=moment, day=day).with_columns(open_interest=pl.lit(day.day))
        lake.append(SOURCE_CHAIN, rows, run_id="run")
    result = dg.materialize([daily_analytics], partition_key=DAY, resources={"vendors": Vendors(settings)})
    assert materialized(result)[OPEN_INTEREST]["rows"] == 3
    assert lake.scan(OPEN_INTEREST_CHANGE).collect()["open_interest_change"].to_list() == [1] * 3
    assert BARS not in materialized(result), "there are neither trades nor minute bars"


def test_analytics_of_a_trade_date_without_a_chain_succeed(tmp_path: Path) -> None:
    resources = {"vendors": Vendors(at(NOW, tmp_path))}
    result = dg.materialize([chain_analytics], partition_key=DAY, resources=resources)
    assert result.success and materialized(result) == {}


def test_checks_launched_alone_judge_the_newest_trade_date(tmp_path: Path) -> None:
    settings = at(NOW, tmp_path)
    run(settings)
    check = dg.AssetCheckKey(PRICING, "quotes_priced")
    defs = build_defs(settings, opener=lambda name, _: FakeVendor(name))
    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize(
            [*defs.assets, *(defs.asset_checks or [])],  # type: ignore[misc]
            selection=dg.AssetSelection.checks(check),
            instance=instance,
            resources={"vendors": Vendors(settings)},
        )
    assert [one.check_name for one in result.get_asset_check_evaluations()] == ["quotes_priced"]


def test_a_butterfly_with_a_negative_cost_is_found() -> None:
    def quoted(asks: list[float]) -> pl.DataFrame:
        rows = sample(OPTION_CHAIN, snapshot=1_749_567_600_000_000_000, contracts=len(asks))
        return rows.with_columns(ask=pl.Series(asks), bid=pl.Series(asks) - 0.25)

    convex = no_butterfly_arbitrage(quoted([30.0, 20.0, 12.0]))
    assert convex is not None and convex.passed and convex.numbers["butterflies"] == 1
    bent = no_butterfly_arbitrage(quoted([30.0, 25.0, 12.0]))
    assert bent is not None and not bent.passed and bent.severity == "error"
    assert bent.table is not None and bent.table["strike"].to_list() == [21_010.0]
    assert no_butterfly_arbitrage(quoted([30.0, 20.0])) is None


def traded(moments: list[datetime], side: str = "B") -> pl.DataFrame:
    """Trades of one call, one contract each."""
    frame = pl.DataFrame({"ts_event": pl.Series(moments, dtype=pl.Datetime("us", "UTC")).cast(INSTANT)})
    number = pl.int_range(pl.len())
    given = {
        "trade_date": date(2025, 6, 10),
        "publisher_id": 1,
        "instrument_id": 7,
        "ordinal": 0,
        "action": "T",
        "side": side,
        "price": 50.0,
        "size": 1,
        "flags": 128,
        "ts_in_delta": 0,
        "raw_symbol": "Q2BM5 C21500",
        "instrument_kind": "option",
        "root": "Q2B",
        "series": "Q2B-2025-06-10",
        "contract_key": "Q2B-2025-06-10-C-21500",
        "option_type": "C",
        "strike": 21_500.0,
        "source_schema": "trades",
        "environment": "live",
        "log_session": 1,
        "run_id": "run",
    }
    return frame.with_columns(sequence=number, **{name: pl.lit(value) for name, value in given.items()})


def test_pressure_covers_closed_windows_and_again_filled_gaps(tmp_path: Path) -> None:
    settings = at(NOW, tmp_path)
    lake = Workspace.of(settings).lake
    opened = NOW - timedelta(minutes=12)
    moments = [opened + timedelta(minutes=n) for n in range(12)]
    lake.append(TRADES, traded(moments), run_id="run")

    result = run(settings, "pressure")
    (row,) = materialized(result).values()
    assert (row["windows"], row["trades"], row["buy_volume"]) == (3, 12, 12)
    assert all(check.passed for check in evaluations(result, PRESSURE).values())
    before = lake.scan(TRADE_PRESSURE).collect()
    run(settings, "pressure")
    assert lake.scan(TRADE_PRESSURE).collect().equals(before)

    filled = traded([moments[4] + timedelta(seconds=1)], side="A").with_columns(sequence=pl.lit(99))
    lake.append(TRADES, filled, run_id="gap")
    run(settings, "pressure")
    assert lake.scan(TRADE_PRESSURE).collect().height == before.height + 1
    with duckdb.connect(Workspace.of(settings).catalog, read_only=True) as duck:
        newest = duck.sql("select count(*), sum(trades), sum(sell_volume) from pressure").fetchall()
    assert newest == [(3, 13, 1)]


def test_pressure_of_a_trade_date_without_trades_succeeds(tmp_path: Path) -> None:
    resources = {"vendors": Vendors(at(NOW, tmp_path))}
    result = dg.materialize([trade_pressure], partition_key=DAY, resources=resources)
    assert result.success and materialized(result) == {}


@pytest.mark.parametrize(
    ("moment", "days"),
    [
        ("2025-06-10 10:00", ["2025-06-10"]),
        ("2025-06-09 17:00", ["2025-06-10"]),
        # An hour in, what was repaired of the day before; over the weekend that is Friday
        ("2025-06-09 18:00", ["2025-06-10", "2025-06-09"]),
        ("2025-06-09 18:05", ["2025-06-10"]),
        ("2025-06-08 18:00", ["2025-06-09", "2025-06-06"]),
        ("2025-06-10 16:55", ["2025-06-10"]),
        ("2025-06-06 17:00", []),
        ("2025-06-07 12:00", []),
    ],
)
def test_pressure_follows_the_capture_and_its_repairs(moment: str, days: list[str]) -> None:
    now = datetime.fromisoformat(moment).replace(tzinfo=CHICAGO).astimezone(UTC)
    captured = {date(2025, 6, 6), date(2025, 6, 9), date(2025, 6, 10)}
    tick = pressure_tick(now, captured, window="globex")
    assert [day.isoformat() for day in tick.trade_dates] == days
    assert bool(tick.reason) == (not days)


def test_a_tick_launches_pressure_of_each_trade_date_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = at(NOW, tmp_path).with_values(now=None)
    monkeypatch.setattr(Vendors, "market_now", lambda self: NOW)
    context = dg.build_schedule_context(scheduled_execution_time=NOW, resources={"vendors": Vendors(running)})
    skipped = pressure_while_captured(context)
    assert isinstance(skipped, dg.SkipReason) and "no trade of 2025-06-10" in (skipped.skip_message or "")
    Workspace.of(running).lake.append(TRADES, traded([NOW - timedelta(minutes=12)]), run_id="run")
    requests: Any = pressure_while_captured(context)
    (due,) = requests
    assert (due.partition_key, due.run_key) == (DAY, f"{NOW.isoformat()}:{DAY}")


def test_pressure_waits_for_a_trade_and_a_running_clock() -> None:
    assert pressure_tick(NOW, (), window="globex").reason == "no trade of 2025-06-10 was captured"
    assert "NQ_NOW" in pressure_tick(NOW, {date(2025, 6, 10)}, window="globex", pinned=NOW).reason
