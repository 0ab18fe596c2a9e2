"""The report of a snapshot: wall time of `nq report` as a user starts it, and size of the page."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from bench.bench_run import environment, run

REPEATS = 3


def main() -> None:
    with tempfile.TemporaryDirectory() as data:
        snapshot, _, _ = run(Path(data))
        timed = [report(Path(data)) for _ in range(REPEATS)]
        megabytes = timed[-1][1].stat().st_size / 1e6
    contracts = sum(snapshot["winners"].values())
    print(f"report of {contracts:,} contracts: {median(s for s, _ in timed):.1f} s wall, {megabytes:.1f} MB")


def report(data: Path) -> tuple[float, Path]:
    """Wall seconds of one report, and where it is."""
    words = [sys.executable, "-m", "nq_pipeline", "report", "--no-open"]
    started = time.perf_counter()
    done = subprocess.run(words, env=environment(data), capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - started
    return seconds, Path(re.findall(r"Report: (.*?\.html)", done.stdout)[0])


if __name__ == "__main__":
    main()
