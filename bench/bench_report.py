"""The report of a snapshot: `nq report` as a user starts it, wall and processor time, and size of the page.

No other program makes such a page, so the only comparison is the import time of the libraries that
it needs, which is part of its own time.
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

from bench.bench_run import environment, run

REPEATS = 3
LIBRARIES = (
    "import altair, duckdb, jinja2, polars, vl_convert; vl_convert.vegalite_to_vega({'mark': 'point'})"
)


def main() -> None:
    with tempfile.TemporaryDirectory() as data:
        snapshot, _, _ = run(Path(data))
        words = ["-m", "nq_pipeline", "report", "--no-open"]
        timed = [timed_run(Path(data), *words) for _ in range(REPEATS)]
        page = Path(re.findall(r"Report: (.*?\.html)", timed[-1][2])[0])
        kilobytes = page.stat().st_size / 1e3
        least = [timed_run(Path(data), "-c", LIBRARIES) for _ in range(REPEATS)]
    contracts = sum(snapshot["winners"].values())
    wall, processor = median(one[0] for one in timed), median(one[1] for one in timed)
    libraries = median(one[1] for one in least)
    print(
        f"report of {contracts:,} contracts: {wall:.1f} s wall, {processor:.1f} s of processor time, "
        f"{libraries:.1f} s of which import its libraries; {kilobytes:,.0f} kB"
    )


def timed_run(data: Path, *words: str) -> tuple[float, float, str]:
    """Wall and processor seconds of a Python process, and its output."""
    before, began = os.times(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, *words], env=environment(data), capture_output=True, text=True, check=True
    )
    wall, after = time.perf_counter() - began, os.times()
    children = (after.children_user - before.children_user) + (after.children_system - before.children_system)
    return wall, children, done.stdout


if __name__ == "__main__":
    main()
