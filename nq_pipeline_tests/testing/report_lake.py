"""A lake with one snapshot of fake vendors, one of which fails with a reason that is HTML."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import polars as pl

from nq_pipeline.analytics.snapshot import price_and_measure
from nq_pipeline.chains.request import build_request
from nq_pipeline.chains.result import Snapshot
from nq_pipeline.chains.snapshot import take_snapshot
from nq_pipeline.configuration import build_settings
from nq_pipeline.errors import Blocked
from nq_pipeline.lake.tables import TRADES, conform
from nq_pipeline.market.sessions import trade_date
from nq_pipeline.settings import Settings
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.fake_vendors import FakeVendor
from nq_pipeline_tests.testing.lake_samples import trade

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "first_look.py"
NOW = "2025-06-10T15:00:00Z"
HOSTILE = '<script>alert("markup")</script><img src=x onerror=alert(1)>'


def store_snapshot(
    data_dir: Path, *, now: str = NOW, environment: str = "sandbox"
) -> tuple[Settings, Snapshot]:
    """Store one snapshot: barchart is blocked with a hostile reason, tradovate wins."""
    vendors = {
        "barchart": FakeVendor("barchart", raises=Blocked(HOSTILE)),
        "polygon": FakeVendor("polygon", underlying_class="index"),
        "tradovate": FakeVendor("tradovate"),
        "databento": FakeVendor("databento"),
    }
    settings = build_settings(
        environment=environment,
        data_dir=data_dir,
        now=datetime.fromisoformat(now),
        horizon_days=3,
        far_expirations=False,
        ask_metered="always",
    )
    request = build_request(settings)
    return settings, take_snapshot(settings, request, opener=lambda name, _: vendors[name])


def store_trades(settings: Settings, snapshot: Snapshot, began: datetime | None = None) -> None:
    """Store two windows of trades: 5 calls bought and 2 sold, then a put sold.

    They began 20 minutes before the snapshot unless `began` says otherwise.
    """
    row = snapshot.chain.row(0, named=True)
    began = began or snapshot.request.snapshot_ts - timedelta(minutes=20)
    strike = 21_500.0
    made = [
        trade(float(n), "X", 50.0, side=side, size=size, option_type=kind, strike=strike, contract_key=key)
        | {"root": row["root"], "series": row["series"], "trade_date": trade_date(began)}
        | {"ts_event": began + timedelta(minutes=minute), "ts_recv": began + timedelta(minutes=minute)}
        for n, (minute, side, size, kind, key) in enumerate(
            [(0, "B", 5, "C", "call"), (0, "A", 2, "C", "call"), (6, "A", 1, "P", "put")]
        )
    ]
    Workspace.of(settings).lake.append(TRADES, conform(TRADES, pl.DataFrame(made)), run_id="run")


def price_and_store(settings: Settings, snapshot: Snapshot) -> None:
    """Price and measure a snapshot, as every run does."""
    price_and_measure(settings, snapshot.chain, run_id="run")
