"""A session of one-second commits to the lake: manifests, Delta in a folder, Delta in an object store.

    python -m bench.bench_commits                          a few hundred commits in each format
    python -m bench.bench_commits delta --commits 23400    a whole session, hour by hour

A commit appends 200 trades of 3,000 instruments, durably, as a capture's publication does; it includes the
merges, the checkpoints and the clean-up that are due. A read counts the trades of the trade date up to a
moment. The object store is the tests' stand-in, one process on this machine: its times say what our side
costs, not what a network does.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl

from bench.bench_publish import peak_megabytes
from nq_pipeline.configuration import load
from nq_pipeline.lake import catalog
from nq_pipeline.lake.maintenance import maintain
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import INSTANT, TRADES, conform
from nq_pipeline.workspace import Workspace

FORMATS = ("manifest", "delta", "s3")
ROWS, INSTRUMENTS, HOUR = 200, 3_000, 3_600
OPENS = int(datetime(2025, 6, 10, 13, 30, tzinfo=UTC).timestamp()) * 1_000_000_000
DURING = datetime(2025, 6, 10, 20, tzinfo=UTC)
DAY = DURING.date()
TIDY_EVERY = 60
"""Commits, so that in a session of one commit a second the lake is tidied each minute."""


def second_of_trades(number: int) -> pl.DataFrame:
    random = np.random.default_rng(number)
    instants = np.sort(OPENS + number * 1_000_000_000 + random.integers(0, 1_000_000_000, ROWS))
    frame = pl.DataFrame(
        {
            "ts_event": instants,
            "ts_recv": instants + 50_000,
            "instrument_id": random.integers(1, INSTRUMENTS, ROWS),
            "sequence": np.arange(ROWS) + number * ROWS,
            "price": random.integers(1, 4_000, ROWS) / 4,
            "size": random.integers(1, 50, ROWS),
            "ts_in_delta": random.integers(0, 20_000, ROWS),
        }
    )
    constant = {
        "trade_date": DAY, "publisher_id": 1, "ordinal": 0, "action": "T", "side": "A", "flags": 0,
        "source_schema": "trades", "environment": "sandbox", "log_session": 1, "run_id": "bench",
        "raw_symbol": "NQU5 C20000", "instrument_kind": "option", "underlying_class": "future",
        "underlying": "NQU5", "root": "NQ", "series": "NQ-2025-09-19", "option_type": "C",
        "contract_key": "NQ-2025-09-19-C-20000", "strike": 20_000.0,
    }  # fmt: skip
    return conform(TRADES, frame.with_columns(**{name: pl.lit(value) for name, value in constant.items()}))


@contextmanager
def opened(name: str) -> Iterator[Callable[[], Lake]]:
    """Opens the lake of a format in a temporary folder or bucket."""
    with tempfile.TemporaryDirectory() as folder:
        if name == "s3":
            from nq_pipeline_tests.testing.s3 import new_bucket, serve_s3

            with serve_s3() as endpoint:
                bucket = new_bucket(endpoint)
                os.environ.update(bucket.environment)
                settings = load(data_dir=Path(folder), lake_url=bucket.url)
                yield lambda: Workspace.of(settings).lake
        else:
            yield lambda: Lake(Path(folder) / "sandbox" / "lake", delta=name == "delta")


def measure(name: str, commits: int) -> None:
    with opened(name) as lake_of:
        lake, commit, cpu, polars, sql = lake_of(), list[float](), list[float](), list[float](), list[float]()
        for number in range(commits):
            frame = second_of_trades(number)
            begun, used = time.perf_counter(), time.process_time()
            lake.append(TRADES, frame, run_id="bench", now=DURING, token=1)
            commit.append(time.perf_counter() - begun)
            cpu.append(time.process_time() - used)
            if number % TIDY_EVERY == TIDY_EVERY - 1:
                maintain(lake, [TRADES], now=DURING, wait=False)
            last = number == commits - 1
            if number % 120 == 119 or last:
                polars.append(seconds(read_polars, lake_of(), number + 1))
                sql.append(seconds(read_sql, lake_of(), number + 1))
            if (number + 1) % HOUR == 0 or last:
                files = len(lake.files(TRADES))
                print(
                    f"{name}, {(number + 1) / HOUR:.1f} h, {files} files, {peak_megabytes():.0f} MB: "
                    f"commit p50 {ms(commit, 50)}, p99 {ms(commit, 99)} ms (of the processor {ms(cpu, 50)}, "
                    f"{ms(cpu, 99)}); read by polars {ms(polars, 50)}, by SQL {ms(sql, 50)} ms",
                    flush=True,
                )
                for values in (commit, cpu, polars, sql):
                    values.clear()


def seconds(read: Callable[[Lake, int], None], lake: Lake, committed: int) -> float:
    begun = time.perf_counter()
    read(lake, committed)
    return time.perf_counter() - begun


def ms(values: list[float], percent: int) -> str:
    return f"{1e3 * float(np.percentile(values, percent)):.0f}"


def read_polars(lake: Lake, committed: int) -> None:
    until = pl.lit(OPENS + committed * 500_000_000).cast(INSTANT)
    frame = lake.scan(TRADES, [DAY])
    both = frame.select(pl.len(), (pl.col("ts_event") < until).sum().alias("before")).collect()
    assert both.item(0, 0) == committed * ROWS


def read_sql(lake: Lake, committed: int) -> None:
    with catalog.connect(lake) as connection:
        before = OPENS + committed * 500_000_000
        counts = f"count(*), count(*) FILTER (ts_event_ns < {before})"
        sql = f"SELECT {counts} FROM trades WHERE trade_date = '{DAY}'"
        assert connection.sql(sql).fetchall()[0][0] == committed * ROWS


def main(names: tuple[str, ...] = FORMATS, commits: int = 240) -> None:
    for name in names:
        measure(name, commits)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("formats", nargs="*", default=FORMATS)
    parser.add_argument("--commits", type=int, default=240)
    given = parser.parse_args()
    main(tuple(given.formats), given.commits)
