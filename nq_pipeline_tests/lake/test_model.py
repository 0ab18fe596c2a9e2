"""Any sequence of appends, merges and sweeps against a dictionary."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nq_pipeline.lake.store import Lake
from nq_pipeline_tests.testing.lake_samples import AFTER, DAY, DURING, NOON, TICKS, ticks

KEYS = st.tuples(st.integers(0, 2), st.integers(0, 1_500), st.integers(0, 1))
ROWS = st.lists(st.tuples(KEYS, st.none() | st.floats(-1e6, 1e6)), max_size=8)
APPEND = st.tuples(st.just("append"), ROWS)
MERGE = st.tuples(st.just("merge"), st.tuples(st.integers(0, 1), st.booleans()))
SWEEP = st.tuples(st.just("sweep"), st.none())


def day_of(instant: int) -> int:
    """The trade date follows from the key, as in the market: late instants are the next session's."""
    return int(instant >= 1_000)


@pytest.mark.parametrize("delta", [False, True], ids=["manifest", "delta"])
@given(st.lists(st.one_of(APPEND, APPEND, MERGE, SWEEP), max_size=10))
def test_a_lake_holds_the_first_row_of_every_key(delta: bool, steps) -> None:  # type: ignore[no-untyped-def]
    model: dict[tuple[int, int, int], float | None] = {}
    with TemporaryDirectory() as folder:
        lake = Lake(Path(folder), tables=[TICKS], delta=delta)
        for kind, detail in steps:
            version = lake.manifest(TICKS).version
            if kind == "append":
                rows = [
                    (DAY + timedelta(days=day_of(at)), instrument, NOON + at, sequence, price)
                    for (instrument, at, sequence), price in detail
                ]
                before = len(model)
                for key, price in detail:
                    model.setdefault(key, price)
                added = lake.append(TICKS, ticks(rows), run_id="run")
                assert added.rows == len(model) - before
                assert added.rows + added.known == len(rows)
            elif kind == "merge":
                day, over = detail
                lake.compact(
                    TICKS,
                    DAY + timedelta(days=day),
                    now=AFTER + timedelta(days=1) if over else DURING,
                )
            else:
                lake.collect_garbage(datetime.now(UTC) + timedelta(hours=2))
            assert lake.manifest(TICKS).version >= version
            assert found(lake) == model


def found(lake: Lake) -> dict[tuple[int, int, int], float | None]:
    rows = lake.scan(TICKS).with_columns(pl.col("ts_event").to_physical()).collect()
    assert rows.height == rows.unique(TICKS.key).height
    return {(i, at - NOON, sequence): price for _, i, at, sequence, price in rows.iter_rows()}
