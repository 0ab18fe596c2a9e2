"""A capture that never closes goes over 17:00 in Chicago, where one trade date ends and the next begins."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl

from nq_pipeline.capture.log.segments import list_segments
from nq_pipeline.capture.supervisor import Timing
from nq_pipeline.lake.tables import TRADES
from nq_pipeline.sandbox.gateway.fault_script import Fault
from nq_pipeline.sandbox.gateway.feed import DATASET
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.capture_runs import (
    QUICK,
    RunningCapture,
    all_verified,
    last_published,
    published_and_sent,
    publisher_of,
    read_gaps,
    record_stop,
    serve_gateway,
    session_ends,
)
from nq_pipeline_tests.testing.gateway_client import unlimited

ROLLS = datetime(2025, 6, 10, 22, tzinfo=UTC)
PROVEN = ROLLS - timedelta(seconds=14)
SLOW_TO_SETTLE = Timing(**{**vars(QUICK), "settle_s": 3.0})


def test_a_gap_across_the_rollover_is_filled_by_trade_date(
    tmp_path: Path,
) -> None:
    record_stop(tmp_path, PROVEN)
    begins = ROLLS - timedelta(seconds=2)
    with serve_gateway(now=begins, not_entitled=("mbo", "mbp-1"), limits=unlimited()) as it:
        running = RunningCapture(
            it,
            tmp_path,
            SLOW_TO_SETTLE,
            publish=publisher_of(it, tmp_path).publish,
            capture_schema="mbo",
            capture_window="always",
        )
        running.until(lambda: it.clock.now() > ROLLS + timedelta(seconds=0.2))
        waiting = running.stats.open_gaps
        it.script.add(Fault("fin"))
        running.until(lambda: it.script.injected and len(read_gaps(tmp_path)) == 4 and all_verified(running))
        running.finish()
        have, wanted = published_and_sent(it, tmp_path, last_published(tmp_path), first=PROVEN)
    assert waiting and have.equals(wanted)
    # Each trade date asks anew for what the one before was refused.
    assert session_ends(tmp_path) == [
        "stopped",
        *["error", "error", "closed"],
        *["error", "error", "stopped"],
    ]
    assert set(read_gaps(tmp_path)["state"]) == {"verified"}
    days = Workspace(tmp_path / "sandbox").lake.scan(TRADES).select("trade_date", "ts_event").collect()
    before = pl.col("ts_event") < ROLLS
    assert days.filter(before)["trade_date"].unique().to_list() == [ROLLS.date()]
    assert days.filter(~before)["trade_date"].unique().to_list() == [ROLLS.date() + timedelta(days=1)]
    logged = {s.trade_date for s in list_segments(tmp_path / "sandbox" / "capture" / DATASET)}
    assert logged == set(days["trade_date"].unique().to_list())
