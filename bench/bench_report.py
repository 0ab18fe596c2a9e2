"""The report of a snapshot of three products beside two earlier ones: `nq report` as a user starts it.

No other program makes such a page. Its processor time is compared with that of importing the libraries that
it needs, which is part of it, and with that of the first page of a lake, which also bundles Vega.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from bench.bench_run import NOW, environment, run

REPEATS = 3
PRODUCTS = {"NQ_PRODUCTS": "NQ,ES,GC", "NQ_SOURCES": "barchart"}
EARLIER = ("2025-06-09T20:50:00Z", "2025-06-10T14:55:00Z")
LIBRARIES = "import altair, duckdb, jinja2, orjson, polars, scipy.optimize"


def main() -> None:
    with tempfile.TemporaryDirectory() as data:
        for now in EARLIER:
            run(Path(data), NQ_NOW=now, **PRODUCTS)
        snapshot, _, _ = run(Path(data), **PRODUCTS)
        words = ["-m", "nq_pipeline", "report", "--no-open"]
        first, *timed = [timed_run(Path(data), *words) for _ in range(1 + REPEATS)]
        page = Path(re.findall(r"Report: (.*?\.html)", timed[-1][2])[0])
        megabytes = page.stat().st_size / 1e6
        least = [timed_run(Path(data), "-c", LIBRARIES) for _ in range(REPEATS)]
    contracts = sum(snapshot["winners"].values())
    wall, processor = median(one[0] for one in timed), median(one[1] for one in timed)
    libraries = median(one[1] for one in least)
    print(
        f"report of {contracts:,} contracts as of {NOW}, beside two earlier snapshots: {wall:.1f} s wall, "
        f"{processor:.1f} s of processor time, {processor / libraries:.1f}x the import of its libraries; "
        f"the first one {first[1] / processor:.1f}x as long; {megabytes:.1f} MB"
    )


def timed_run(data: Path, *words: str) -> tuple[float, float, str]:
    """Wall and processor seconds of a Python process, and its output."""
    before, began = os.times(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, *words],
        env=environment(data, **PRODUCTS),
        capture_output=True,
        text=True,
        check=True,
    )
    wall, after = time.perf_counter() - began, os.times()
    children = (after.children_user - before.children_user) + (after.children_system - before.children_system)
    return wall, children, done.stdout


if __name__ == "__main__":
    main()
