"""A chain as of a moment and a contract's history: the catalog beside the same query on loose files.

The loose files hold the same rows, one shuffled file per snapshot without trade dates in their paths,
read by a glob, as one would without a manifest. `--days 250 --snapshots 276 --contracts 3000
--repeats 1` is a year of five-minute snapshots with 200 million rows; the default is much smaller.
Peak memory is that of the process while the query runs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import duckdb
import polars as pl

from nq_pipeline.clock import NS_PER_S, to_ns
from nq_pipeline.lake import catalog
from nq_pipeline.lake.tables import INSTANT, OPTION_CHAIN, conform
from nq_pipeline.lake.views import VIEWS
from nq_pipeline.workspace import Workspace

FIRST = date(2024, 1, 2)


def main(days: int = 40, snapshots: int = 24, contracts: int = 1_000, repeats: int = 5) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, loose = Path(folder) / "sandbox", Path(folder) / "loose"
        loose.mkdir()
        for i in range(days):
            rows = day_of_chains(FIRST + timedelta(days=i), snapshots, contracts)
            Workspace(root).lake.append(OPTION_CHAIN, rows, run_id="bench")
            for j, (_, part) in enumerate(rows.group_by("snapshot_ts")):
                part.sample(fraction=1, shuffle=True, seed=j).write_parquet(loose / f"{i}-{j}.parquet")
        print(f"{days * snapshots * contracts:,} rows: {days} days of {snapshots} snapshots")
        moment = datetime.combine(FIRST + timedelta(days=days // 2), datetime.min.time(), UTC)
        moment += timedelta(hours=18, minutes=1)
        for title, sql in (
            ("chain as of a moment", f"SELECT * FROM option_chain_asof('{moment.isoformat()}')"),
            ("history of a contract", "SELECT * FROM chain_history('NQ-2026-12-18-C-20500')"),
        ):
            with catalog.connect(Workspace(root).lake) as ours, connect_loose(loose) as theirs:
                assert ours.sql(sql).pl().height == theirs.sql(sql).pl().height > 0
                (fast, held), (slow, held_by_theirs) = (
                    measure(connection, sql, repeats) for connection in (ours, theirs)
                )
            print(
                f"{title}: catalog {fast * 1e3:.0f} ms, {held} MB; "
                f"loose files {slow * 1e3:.0f} ms, {held_by_theirs} MB: {slow / fast:.1f}×"
            )


def day_of_chains(day: date, snapshots: int, contracts: int) -> pl.DataFrame:
    """The calls of one series, in evenly spaced snapshots from 12:00 to 20:00 UTC."""
    noon = to_ns(datetime.combine(day, datetime.min.time(), UTC)) + 12 * 3600 * NS_PER_S
    step = 8 * 3600 * NS_PER_S // snapshots
    instants = pl.DataFrame({"snapshot_ts": [noon + i * step for i in range(snapshots)]})
    strikes = pl.DataFrame({"strike": [20_000.0 + 10 * i for i in range(contracts)]})
    frame = instants.join(strikes, how="cross")
    constant = {
        "source": "barchart", "environment": "sandbox", "underlying_class": "future", "root": "NQ",
        "series": "NQ-2026-12-18", "vendor_symbol": "X", "settlement_style": "AM", "option_type": "C",
        "exercise_style": "american", "multiplier": 20.0, "is_settlement": False, "run_id": "bench",
        "request_id": "bench", "raw_sha256": "0" * 64, "selection_reason": "first of its priority",
        "trade_date": day, "expiration_date": date(2026, 12, 18),
    }  # fmt: skip
    now = pl.col("snapshot_ts")
    price = (pl.col("strike") + now // NS_PER_S % 1_000) / 100
    frame = frame.with_columns(
        **{name: pl.lit(value) for name, value in constant.items()},
        as_of=now,
        selected_at=now,
        expiration=pl.lit(datetime(2026, 12, 18, 14, 30, tzinfo=UTC)).cast(INSTANT),
        contract_key=pl.format("NQ-2026-12-18-C-{}", pl.col("strike").cast(pl.Int64)),
        bid=price,
        ask=price + 1,
        volume=(price * 7).cast(pl.Int64),
    )
    return conform(OPTION_CHAIN, frame)


def connect_loose(loose: Path) -> duckdb.DuckDBPyConnection:
    """The same macros over a glob of the loose files."""
    instants = [column.name for column in OPTION_CHAIN.columns if column.dtype == INSTANT]
    shown = ", ".join(f"make_timestamptz(epoch_ns({name}) // 1000) AS {name}" for name in instants)
    exact = ", ".join(f"epoch_ns({name}) AS {name}_ns" for name in instants)
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute(
        f"CREATE VIEW option_chain AS SELECT * REPLACE ({shown}), {exact} FROM '{loose}/*.parquet'"
    )
    connection.execute("CREATE MACRO product_of(root) AS root")  # every root is NQ here
    for view in VIEWS:
        if view.name in ("option_chain_asof", "chain_history"):
            connection.execute(view.sql)
    return connection


def measure(connection: duckdb.DuckDBPyConnection, sql: str, repeats: int) -> tuple[float, int]:
    """Median seconds until the result is a polars frame, with files cached by the system; peak MB."""
    taken = []
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    for _ in range(repeats):
        begun = time.perf_counter()
        connection.sql(sql).pl()
        taken.append(time.perf_counter() - begun)
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    return statistics.median(taken), peak // 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--days", type=int, default=40)
    parser.add_argument("--snapshots", type=int, default=24)
    parser.add_argument("--contracts", type=int, default=1_000)
    parser.add_argument(
        "--repeats", type=int, default=5, help="times each query is timed, after one that is not"
    )
    given = parser.parse_args()
    main(given.days, given.snapshots, given.contracts, given.repeats)
