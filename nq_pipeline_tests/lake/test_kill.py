"""kill -9 at random moments: the lake stays readable, and the next run completes what was begun."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from nq_pipeline.lake.store import Lake
from nq_pipeline_tests.testing.lake_samples import TICKS
from nq_pipeline_tests.testing.lake_writer import ROWS_PER_CALL, call

FORMATS = ("manifest", "delta")


@pytest.mark.parametrize(
    "kills", [4, pytest.param(300, marks=[pytest.mark.slow, pytest.mark.timeout(3_600)])]
)
def test_a_lake_survives_kill_9_at_any_moment(
    lake: Lake, writer: Callable[..., subprocess.Popen[str]], kills: int
) -> None:
    moments = random.Random(kills)
    done = 0
    for _ in range(kills):
        process = writer("alone", max(0, done - 3))  # the last calls again, then on without end
        time.sleep(moments.uniform(0, 0.15))
        process.kill()
        process.wait()
        calls = lake.scan(TICKS).group_by("sequence").len().sort("sequence").collect()
        done = calls.height
        assert calls["sequence"].to_list() == list(range(done)), "a call is missing"
        assert set(calls["len"]) <= {ROWS_PER_CALL}, "a call is there in part, or twice"
        assert lake.manifest(TICKS).rows == done * ROWS_PER_CALL

    again = [lake.append(TICKS, call(i), run_id="again").rows for i in range(done + 1)]
    assert again == [0] * done + [ROWS_PER_CALL]
    expected = pl.concat(call(i) for i in range(done + 1)).sort(TICKS.order)
    assert lake.scan(TICKS).sort(TICKS.order).collect().equals(expected)

    lake.collect_garbage(datetime.now(UTC) + timedelta(hours=2))
    assert sorted(lake.root.glob("*/trade_date=*/*.parquet")) == sorted(map(Path, lake.files(TICKS)))
    assert not list(lake.root.rglob(".*.tmp"))
