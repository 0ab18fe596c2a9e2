"""Metrics of a year of five-minute snapshots: a new snapshot on the last day, and the whole rebuild.

    python -m bench.bench_history                                     a short form
    python -m bench.bench_history --days 252 --snapshots 106 --folder /big/disk     207 million chain rows

One trade date is generated: the synthetic chain of 7,774 contracts, its quotes moved a little from snapshot
to snapshot. The other trade dates are hard links to its files, so their rows differ in the trade date alone.
A new snapshot is stored, priced, measured and published before the other trade dates are there, and
again after.
Then a process of its own computes all metrics from nothing (`nq lake recompute --no-surfaces`).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from bench.bench_pricing import NOW, vendor_chain
from nq_pipeline.analytics.recompute import recompute
from nq_pipeline.analytics.snapshot import price_and_measure, to_measure
from nq_pipeline.configuration import build_settings
from nq_pipeline.lake import catalog
from nq_pipeline.lake.parquet import WrittenFile
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import INSTANT, OPTION_CHAIN, OPTION_PRICING, TABLES, Table, conform
from nq_pipeline.market.sessions import is_trade_date
from nq_pipeline.settings import Settings
from nq_pipeline.workspace import Workspace

CONTRACTS, NEW_SNAPSHOTS = 7_774, 12
FIVE_MINUTES = timedelta(minutes=5)
DAYS, SNAPSHOTS = 8, 12
MOVES = np.random.default_rng(7)


def main(arguments: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--days", type=int, default=DAYS)
    options.add_argument("--snapshots", type=int, default=SNAPSHOTS)
    options.add_argument("--folder", type=Path, default=None)
    chosen = options.parse_args(arguments or [])
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        settings = build_settings(environment="sandbox", data_dir=Path(folder), now=NOW)
        compare(settings, trade_dates(chosen.days), chosen.snapshots)


def compare(settings: Settings, days: list[date], snapshots: int) -> None:
    lake, base = Workspace.of(settings).lake, one_chain()
    start = time.perf_counter()
    generate(settings, base, days[0], snapshots)
    first = add_new_snapshots(settings, base, days[-1] + timedelta(days=1))
    for table in TABLES.values():
        link(lake, table, days)
    size = f"{len(days)} trade dates of {snapshots} snapshots of {base.height:,} contracts"
    rows = len(days) * snapshots * base.height
    print(f"{size}: {rows:,} rows, generated in {time.perf_counter() - start:.0f} s")
    last = add_new_snapshots(settings, base, days[-1] + timedelta(days=2))
    print(f"{'a new snapshot, CPU ms (least)':<32}{'second day':>10}{'last day':>10}{'ratio':>7}")
    for name, before in first.items():
        print(f"{name:<32}{before * 1e3:>10.0f}{last[name] * 1e3:>10.0f}{last[name] / before:>6.2f}x")
    with catalog.connect(lake) as connection:
        start = time.perf_counter()
        found = connection.sql("select * from market_history").fetchall()
        print(f"market_history: {len(found):,} rows in {time.perf_counter() - start:.2f} s", flush=True)
    bare = settings.model_copy(update={"data_dir": settings.data_dir / "rebuilt"})
    for table in (OPTION_CHAIN, OPTION_PRICING):
        target = Workspace.of(bare).lake.folder(table)
        shutil.copytree(lake.folder(table), target, copy_function=os.link)
    seconds, peak = rebuild(bare)
    each = seconds / len(days) / snapshots
    print(f"whole rebuild: {seconds:,.0f} s, {each * 1e3:.0f} ms a snapshot, peak memory {peak:,.0f} MB")


def trade_dates(count: int) -> list[date]:
    every = (NOW.date() - timedelta(days=back) for back in range(2 * count + 30))
    return sorted([day for day in every if is_trade_date(day)][:count])


def one_chain() -> pl.DataFrame:
    """The first contracts of the synthetic chain to expire, as rows of `option_chain`."""
    given = vendor_chain().sort("expiration", "contract_key").head(CONTRACTS)
    literals = {
        column.name: pl.lit(NOW if column.dtype == INSTANT else "bench")
        for column in OPTION_CHAIN.columns
        if not column.nullable and column.name not in given.columns
    }
    known = [name for name in given.columns if name in OPTION_CHAIN.schema]
    rows = given.select(known).with_columns(**(literals | {"multiplier": pl.lit(20.0)}))
    return conform(OPTION_CHAIN, rows).sort("contract_key")


def snapshot_of(base: pl.DataFrame, day: date, moment: datetime) -> pl.DataFrame:
    """The chain with its quotes moved by up to two ticks."""
    move = pl.Series(MOVES.integers(-2, 3, base.height) * 0.25)
    instant = pl.lit(moment).cast(INSTANT)
    return base.with_columns(
        snapshot_ts=instant,
        as_of=instant,
        trade_date=pl.lit(day),
        bid=(pl.col("bid") + move).clip(lower_bound=0.05),
        ask=(pl.col("ask") + move).clip(lower_bound=0.10),
    )


def generate(settings: Settings, base: pl.DataFrame, day: date, snapshots: int) -> None:
    """Write and measure one trade date."""
    lake, began = Workspace.of(settings).lake, NOW - snapshots * FIVE_MINUTES
    chains = [snapshot_of(base, day, began + n * FIVE_MINUTES) for n in range(snapshots)]
    lake.append(OPTION_CHAIN, pl.concat(chains), run_id="bench")
    for _ in recompute(settings, since=day, until=day, run_id="bench"):
        pass
    for table in TABLES.values():
        lake.compact(table, day, now=datetime.now(UTC))


def link(lake: Lake, table: Table, days: list[date]) -> None:
    """Make the files of the first trade date those of the others, too."""
    stored = lake.table_files(table)
    current = stored.manifest()
    with stored.lock():
        for source in current.of({days[0]}):
            written = WrittenFile(source.rows, source.bytes, source.since_min, source.since_max)
            for day in days[1:]:
                with stored.stage(day) as staged:
                    os.link(stored.location(source), staged)
                    made = stored.commit(current, add=[stored.place(current, day, 3, staged, written)])
                    assert made
                    current = made


def add_new_snapshots(settings: Settings, base: pl.DataFrame, day: date) -> dict[str, float]:
    """Seconds of processor time for each part of a new snapshot, as a run does them."""
    workspace, spent = Workspace.of(settings), []
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    for number in range(NEW_SNAPSHOTS):
        chain = snapshot_of(base, day, midnight + number * FIVE_MINUTES)
        marks = [time.process_time()]
        workspace.lake.append(OPTION_CHAIN, chain, run_id="bench")
        marks.append(time.process_time())
        for left in to_measure(settings, day):
            price_and_measure(settings, left, run_id="bench")
        marks.append(time.process_time())
        catalog.publish(workspace.lake)
        marks.append(time.process_time())
        spent.append(np.diff(marks))
    store, measure, publish = (min(part) for part in zip(*spent, strict=True))
    return {
        "store the chain": store,
        "price and measure": measure,
        "publish the catalog": publish,
        "all": store + measure + publish,
    }


def rebuild(settings: Settings) -> tuple[float, float]:
    """Seconds and peak memory in MB of a process that computes what is missing."""
    code = (
        "import sys; from pathlib import Path; from nq_pipeline.cli import main\n"
        "try: main(['lake', 'recompute', '--no-surfaces'])\n"
        "finally:\n"
        "    status = Path('/proc/self/status').read_text().splitlines()\n"
        "    print(next(line.split()[1] for line in status if line.startswith('VmHWM')))"
    )
    given = {"NQ_DATA_DIR": str(settings.data_dir), "NQ_NOW": NOW.isoformat()}
    log = settings.data_dir / "rebuild.log"  # its progress, for those who wait
    started = time.perf_counter()
    with log.open("w") as file:
        subprocess.run([sys.executable, "-uc", code], env=os.environ | given, stdout=file, check=True)
    return time.perf_counter() - started, int(log.read_text().split()[-1]) / 1024


if __name__ == "__main__":
    main(sys.argv[1:])
