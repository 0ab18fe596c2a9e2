"""DBN to Parquet with symbols mapped, beside `databento.DBNStore.to_parquet`.

    python -m bench.bench_convert

Two million trades of 3,000 symbols, compressed as Databento sends them. Each conversion is a process
of its own that has loaded its libraries before the clock starts; peak memory is that of the whole
process (Linux only). Both files are compared column by column: schema and every value.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from datetime import date, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import databento_dbn
import numpy as np
import pyarrow.parquet as pq
import zstandard

from nq_pipeline.dbn.layout import DAY_NS, record_layout

TRADES, SYMBOLS, GROWTH, ROUNDS = 2_000_000, 3_000, 10, 5
DAY = date(2025, 6, 10)
OPEN = (DAY.toordinal() - date(1970, 1, 1).toordinal()) * DAY_NS
SESSION_NS = 23 * 3_600 * 10**9

OURS = """
import nq_pipeline.dbn.to_parquet as library, databento_dbn, numpy, pyarrow.parquet, zstandard
from pathlib import Path
def convert(): library.convert(Path(source), Path(out))
"""
OFFICIAL = """
import databento, warnings
warnings.simplefilter("ignore")
def convert(): databento.DBNStore.from_file(source).to_parquet(out)
"""
HARNESS = """
import json, sys, time
from pathlib import Path
source, out = sys.argv[1:]
{way}
started = time.perf_counter()
convert()
seconds = time.perf_counter() - started
# Not ru_maxrss: a process starts with that of the one it was started from.
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(json.dumps({{"seconds": seconds, "peak_mb": int(peak.split()[1]) / 1024}}))
"""


def write_dbn(path: Path, count: int) -> None:
    """Trades of a session in the order they happened, a few instruments far busier than the rest."""
    random = np.random.default_rng(1)
    layout = record_layout("trades", 3)
    ids = np.sort(random.choice(42_000_000, SYMBOLS, replace=False))
    prices = random.integers(20, 4_000, SYMBOLS)
    at, sequence = OPEN, 0
    with path.open("wb") as file, zstandard.ZstdCompressor().stream_writer(file) as out:
        out.write(_head(ids))
        for start in range(0, count, 100_000):
            n = min(100_000, count - start)
            trades = np.zeros(n, layout.dtype)
            which = np.minimum((random.pareto(1.2, n) * 20).astype(int), SYMBOLS - 1)
            trades["length"], trades["rtype"] = layout.dtype.itemsize // 4, layout.rtype
            trades["publisher_id"], trades["instrument_id"] = 1, ids[which]
            events = at + np.cumsum(random.exponential(SESSION_NS / count, n).astype(np.int64))
            trades["ts_event"], trades["ts_recv"] = events, events + random.integers(60_000, 250_000, n)
            trades["ts_in_delta"] = random.integers(9_000, 25_000, n)
            trades["price"] = (prices[which] + random.integers(-40, 40, n)) * 250_000_000
            trades["size"] = random.geometric(0.4, n)
            trades["action"] = b"T"
            trades["side"] = random.choice(np.array([b"A", b"B", b"N"]), n, p=[0.48, 0.48, 0.04])
            trades["flags"] = random.choice([0, 128], n)
            sequences = sequence + np.cumsum(random.integers(1, 30, n))
            trades["sequence"] = sequences
            at, sequence = int(events[-1]), int(sequences[-1])
            out.write(trades.tobytes())


def _head(ids: Any) -> bytes:
    names = [f"Q{i % 5 + 1}{'ABCD'[i % 4]}M5 {'CP'[i % 2]}{15_000 + 25 * (i // 2)}" for i in range(SYMBOLS)]
    mappings = [
        SimpleNamespace(
            raw_symbol=name,
            intervals=[SimpleNamespace(start_date=DAY, end_date=DAY + timedelta(1), symbol=str(number))],
        )
        for name, number in zip(names, ids, strict=True)
    ]
    metadata = databento_dbn.Metadata(
        dataset="GLBX.MDP3",
        schema=databento_dbn.Schema.TRADES,
        stype_in=databento_dbn.SType.RAW_SYMBOL,
        stype_out=databento_dbn.SType.INSTRUMENT_ID,
        start=OPEN,
        symbols=names,
        partial=[],
        not_found=[],
        mappings=mappings,
    )
    return bytes(metadata.encode())


def measure(way: str, source: Path, out: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", HARNESS.format(way=way), str(source), str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"the conversion failed:\n{done.stderr}")
    return json.loads(done.stdout)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, large = folder / "trades.dbn.zst", folder / "large.dbn.zst"
        write_dbn(source, TRADES)
        outs = {"nq_pipeline": folder / "ours.parquet", "DBNStore.to_parquet": folder / "theirs.parquet"}
        ways = dict(zip(outs, (OURS, OFFICIAL), strict=True))
        rounds = [
            {way: measure(code, source, outs[way]) for way, code in ways.items()} for _ in range(ROUNDS)
        ]
        ours, theirs = (pq.read_table(out) for out in outs.values())
        if not ours.equals(theirs):
            raise SystemExit("the two files differ: the comparison means nothing")
        seconds = {way: min(each[way]["seconds"] for each in rounds) for way in ways}
        peaks = {way: max(each[way]["peak_mb"] for each in rounds) for way in ways}
        sizes = {way: out.stat().st_size for way, out in outs.items()}
        write_dbn(large, GROWTH * TRADES)
        grown = measure(OURS, large, outs["nq_pipeline"])
    us, them = ways
    print(f"{TRADES:,} trades, {SYMBOLS:,} symbols, {ours.num_columns} columns, equal in every value")
    print(f"{'':<22}{'M records/s':>12}{'file':>10}{'peak memory':>14}   (best of {ROUNDS})")
    for way in ways:
        rate = TRADES / seconds[way] / 1e6
        print(f"{way:<22}{rate:>12.2f}{sizes[way] / 1e6:>7.1f} MB{peaks[way]:>11.0f} MB")
    print(
        f"{'ratio':<22}{seconds[them] / seconds[us]:>11.1f}x{sizes[us] / sizes[them]:>9.2f}x"
        f"{peaks[us] / peaks[them]:>13.2f}x"
    )
    print(f"ten times the input: peak memory {grown['peak_mb']:.0f} MB, {grown['peak_mb'] / peaks[us]:.2f}x")


if __name__ == "__main__":
    main()
