"""Several hosts: commits and as-of queries on disk and over S3, and a backfill with 1, 2 and 4 workers.

    python -m bench.bench_cluster

Needs PostgreSQL and Redis (`make cluster` says how to install them) and uses the S3 stand-in on loopback, a
Python program of one process, so the figures over S3 are those of a slow store that is near. Workers are
processes on this machine: more than its cores they cannot use. Each buys other trade dates than the others.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from statistics import median, quantiles
from unittest.mock import patch

from bench.bench_asof import day_of_chains, measure
from nq_pipeline.configuration import load
from nq_pipeline.lake import catalog
from nq_pipeline.lake.tables import OPTION_CHAIN
from nq_pipeline.runtime import endpoints
from nq_pipeline.ui.cluster import BUCKET, HOST, Shared, ask_postgres, shared
from nq_pipeline.workspace import Workspace

COMMITS, CONTRACTS = 100, 200
DAY = date(2025, 6, 10)
TRADE_DATES = tuple(date(2025, 6, day) for day in (2, 3, 4, 5, 6, 9, 10, 11))
SCHEMA = "statistics"


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="nq-cluster-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        with shared(folder) as pieces:
            commits_and_queries(pieces, folder)
            backfills(pieces, folder)


def commits_and_queries(pieces: Shared, folder: Path) -> None:
    """Append a chain of 200 contracts a hundred times, then query it as of a moment."""
    print(f"{COMMITS} commits of {CONTRACTS} rows, then the chain as of a moment")
    first: dict[str, float] = {}
    for place in ("disk", "S3"):
        given = pieces.environment(folder / place)
        chosen = {name: value for name, value in given.items() if name.startswith(("AWS_", "NQ_LAKE"))}
        variables = {"NQ_DATA_DIR": given["NQ_DATA_DIR"], **(chosen if place == "S3" else {})}
        with patch.dict(os.environ, variables):
            lake = Workspace.of(load()).lake
        rows = day_of_chains(DAY, COMMITS, CONTRACTS).partition_by("snapshot_ts")
        taken = []
        for part in rows:
            begun = time.perf_counter()
            lake.append(OPTION_CHAIN, part, run_id="bench")
            taken.append(time.perf_counter() - begun)
        moment = datetime.combine(DAY, datetime.min.time(), UTC) + timedelta(hours=19)
        begun = time.perf_counter()
        with catalog.connect(lake) as connection:
            opened = time.perf_counter() - begun
            query, _ = measure(connection, f"SELECT * FROM option_chain_asof('{moment.isoformat()}')", 5)
        figures = {"commit p50": median(taken), "p99": quantiles(taken, n=100)[-1], "as-of": query}
        shown = ", ".join(
            f"{name} {seconds * 1e3:.0f} ms" + (f" ({seconds / first[name]:.1f}×)" if first else "")
            for name, seconds in figures.items()
        )
        print(f"{place:>5}: {shown}, catalog opened in {opened * 1e3:.0f} ms")
        first = first or figures


def backfills(pieces: Shared, folder: Path) -> None:
    """Buy eight trade dates of statistics with 1, 2 and 4 workers, each time into a new lake."""
    print(f"backfill of {len(TRADE_DATES)} trade dates of {SCHEMA}")
    alone = 0.0
    with patch.dict(os.environ, {"NQ_DATA_DIR": str(folder / "stand-ins")}), endpoints(load()):
        state = json.loads((folder / "stand-ins" / "sandbox" / "sandbox.json").read_text())
        for number, workers in enumerate((1, 1, 2, 4)):
            shares = [TRADE_DATES[n::workers] for n in range(workers)]
            ask_postgres("createdb", pieces.postgres_port, pieces.password, f"bench_{number}")
            begun = time.perf_counter()
            running = [
                start_backfill(pieces, folder / f"{number}-{n}", share, lake=number, port=state["port"])
                for n, share in enumerate(shares)
            ]
            rows = sum(finish(process) for process in running)
            seconds = time.perf_counter() - begun
            if not number:  # the stand-in computes its market once
                continue
            alone = alone or rows / seconds
            print(
                f"{workers} workers: {rows:,} rows in {seconds:.1f} s, {rows / seconds:,.0f} rows/s, "
                f"{rows / seconds / alone:.2f}×"
            )


def start_backfill(
    pieces: Shared, host: Path, share: tuple[date, ...], *, lake: int, port: int
) -> subprocess.Popen[str]:
    """Begin a process that buys its trade dates one after the other, as a worker does."""
    host.mkdir()
    variables = {
        **pieces.environment(host),
        "NQ_SANDBOX_PORT": str(port),
        "NQ_LEDGER_URL": f"postgresql://nq:{pieces.password}@{HOST}:{pieces.postgres_port}/bench_{lake}",
        "NQ_LAKE_URL": f"s3://{BUCKET}/bench-{lake}",
        "NQ_BUDGET_DAILY_USD": "1000",
        "NQ_BUDGET_MONTHLY_USD": "1000",
        "DAYS": ",".join(day.isoformat() for day in share),
    }
    code = (
        "import os, sys; from nq_pipeline.cli import main\n"
        "for day in os.environ.pop('DAYS').split(','):\n"
        f"    words = ['backfill', '--schema', '{SCHEMA}', '--from', day, '--to', day, '--max-usd', '9']\n"
        "    try: main([*words, '--yes', '--json'], standalone_mode=True)\n"
        "    except SystemExit as end:\n"
        "        if end.code: raise"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> int:
    """Wait for a worker; the rows that it wrote."""
    output, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"a backfill failed:\n{errors}")
    decoder, rows = json.JSONDecoder(), 0
    while output := output.lstrip():
        report, end = decoder.raw_decode(output)
        rows += sum(day["rows"] for day in report["days"])
        output = output[end:]
    return rows


if __name__ == "__main__":
    main()
