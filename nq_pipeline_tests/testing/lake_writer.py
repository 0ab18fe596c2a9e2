"""A process that writes to a lake, to be watched or killed by tests.

python -m nq_pipeline_tests.testing.lake_writer LAKE [delta] append START STOP   ticks, a file a call, merged
python -m nq_pipeline_tests.testing.lake_writer LAKE [delta] compact DAYS         merge date after date
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from nq_pipeline.lake import catalog
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import SOURCE_CHAIN
from nq_pipeline_tests.testing.lake_samples import DAY, NOON, TICKS, ticks

ROWS_PER_CALL = 40
REPEATED = 4
"""Calls with which a writer begins that may be there already, wholly or in part."""
LONG_AFTER = datetime(2030, 1, 1, tzinfo=UTC)


def call(number: int) -> pl.DataFrame:
    """What call `number` appends: ticks of two trade dates, which appear together or not at all."""
    return ticks(
        [
            (DAY + timedelta(days=i % 2), i, NOON + number * 1_000 + i, number, 0.25 * i)
            for i in range(ROWS_PER_CALL)
        ]
    )


def append(lake: Lake, numbers: Iterable[int], *, alone: bool) -> None:
    for done, number in enumerate(numbers):
        lake.append(TICKS, call(number), run_id="writer")
        if number % 5 == 4:
            lake.compact(TICKS, DAY + timedelta(days=number % 2), now=LONG_AFTER)
        if number % 11 == 10 and done > REPEATED:
            # A call that was killed is repeated before what it left is swept, as an hour of grace ensures.
            # Without readers nobody needs the hour of grace.
            lake.collect_garbage(LONG_AFTER if alone else None)


def merge(lake: Lake, days: int) -> None:
    for number in range(days):
        lake.compact(SOURCE_CHAIN, DAY + timedelta(days=number), now=LONG_AFTER)
        if number % 10 == 9:
            catalog.publish(lake)
            lake.collect_garbage()


def main() -> None:
    root, *words = sys.argv[1:]
    delta = words[0] == "delta"
    lake = Lake(Path(root), tables=[TICKS], delta=delta)
    with TemporaryDirectory() as folder:  # loads the libraries, so that the first call begins at once
        Lake(Path(folder), tables=[TICKS], delta=delta).append(TICKS, call(0), run_id="first")
    print("ready", flush=True)
    match words[delta:]:
        case ["append", start, stop]:
            append(lake, range(int(start), int(stop)), alone=False)
        case ["alone", start]:
            append(lake, count(int(start)), alone=True)
        case ["compact", days]:
            merge(lake, int(days))


if __name__ == "__main__":
    main()
