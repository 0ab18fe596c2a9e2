"""The whole sandbox run: wall time, peak memory, and cached repeats beside the first run.

Each run is its own process, as a user starts it; the stand-ins share the machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

NOW = "2025-06-10T15:00:00Z"
REPEATS = 5


def main() -> None:
    with tempfile.TemporaryDirectory() as data:
        first, first_s, peak_mb = run(Path(data))
        repeats = [run(Path(data)) for _ in range(REPEATS)]
    print(f"four sources, first run: {first_s:.1f} s wall, peak memory of the run {peak_mb:.0f} MB")
    print(f"the same again, from the cache: {median(seconds for _, seconds, _ in repeats):.1f} s wall")
    print(f"{'source':<10} {'contracts':>9} {'first run':>10} {'cached':>9} {'ratio':>7}")
    for name, part in first["sources"].items():
        again = median(report["sources"][name]["seconds"] for report, _, _ in repeats)
        hit = all(report["sources"][name]["cached"] for report, _, _ in repeats)
        ratio = f"{part['seconds'] / again:6.0f}x" if hit else "no hit"
        print(
            f"{name:<10} {part['contracts']:>9,} {part['seconds']:>8.2f} s {again * 1e3:>6.1f} ms {ratio:>7}"
        )
    print(f"`nq --help`: {median(wall('--help') for _ in range(REPEATS)):.2f} s wall")


def run(data: Path, **settings: str) -> tuple[dict[str, Any], float, float]:
    """One `nq run`: its report, wall seconds, and the peak memory of that process in MB (Linux).

    `settings` are variables by name.
    """
    # Not ru_maxrss, which a process inherits from its parent.
    code = (
        "import sys; from pathlib import Path; from nq_pipeline.cli import main\n"
        "try: main(['run', '--json'])\n"
        "finally:\n"
        "    status = Path('/proc/self/status').read_text().splitlines()\n"
        "    print(next(line.split()[1] for line in status if line.startswith('VmHWM')), file=sys.stderr)"
    )
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(data, **settings),
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"nq run failed:\n{done.stderr}")
    return json.loads(done.stdout), seconds, int(done.stderr.split()[-1]) / 1024


def wall(*words: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "nq_pipeline", *words], capture_output=True, check=True)
    return time.perf_counter() - started


def environment(data: Path, **settings: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("NQ_")}
    return {**inherited, "NQ_DATA_DIR": str(data), "NQ_NOW": NOW, **settings}


if __name__ == "__main__":
    main()
