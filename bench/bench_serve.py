"""nq serve: what fifty clients cost the capture, and a chain over HTTP against DuckDB's own time.

    python -m bench.bench_serve                      both
    python -m bench.bench_serve fanout --seconds 20  clients alone, seconds of each phase
    python -m bench.bench_serve chain                the chain alone

Fan-out: a gateway sends 2,000 trades a second to a capture, each in a process of its own. Phases without and
with clients take turns; the phase with the median p99 is shown. With clients, `nq serve` sends every trade to
fifty of them, who run in one more process, with the lowest priority because elsewhere they would be other
machines. The lag of the log is sampled as in bench_capture; at the end every client must have got every trade
once.

Chain: the newest chain of 7,000 contracts in Arrow, from the request to the whole body, against the same
query on an open connection in this process. Both keep what they read.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import numpy as np
import polars as pl
import requests

from bench.bench_asof import day_of_chains
from bench.bench_capture import captured, last_received, newest_segment
from nq_pipeline.clock import to_ns
from nq_pipeline.lake import catalog
from nq_pipeline.lake.tables import DECISIONS, INSTANT, OPTION_CHAIN
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.lake_samples import decision
from nq_pipeline_tests.testing.served import free_port

LOAD, CLIENTS, SAMPLES_PER_S = 2_000, 50, 100
CONTRACTS, REPEATS = 7_000, 15


# ── what clients cost the capture ───────────────────────────────────────────────────────────────


def fanout(seconds: float = 5.0, rounds: int = 7) -> None:
    """The lag of the log with and without clients."""
    phases: dict[str, list[list[float]]] = {"alone": [], "with clients": []}
    with captured(LOAD) as (served, _, folder):
        Workspace(folder.parents[1]).lake.root.mkdir(parents=True, exist_ok=True)
        with serving(folder.parents[2]) as port:
            for _ in range(rounds):
                phases["alone"].append(sample(served.reports[0], folder, seconds))
                command = [sys.executable, "-m", "bench.bench_serve", "clients", str(port), str(CLIENTS)]
                with subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                ) as clients:
                    assert clients.stdin and clients.stdout
                    clients.stdout.readline()  # all are connected
                    phases["with clients"].append(sample(served.reports[0], folder, seconds))
                    clients.stdin.close()
                    got = json.loads(clients.stdout.readline())
                check(got)
    print(f"{LOAD:,} trades/s to {CLIENTS} clients, {rounds} phases of {seconds:g} s each way:")
    p99 = {name: median(np.percentile(lags, 99) for lags in of) for name, of in phases.items()}
    for name, of in phases.items():
        every = [lag for lags in of for lag in lags]
        print(f"  log lag {name}: median {median(every):.1f} ms, p99 of the median phase {p99[name]:.1f} ms")
    print(f"  with clients against alone: {p99['with clients'] / p99['alone']:.2f}×")


def sample(clock: dict[str, float], folder: Path, seconds: float) -> list[float]:
    """How long ago, ms, the gateway received the newest record of the log, many times a second."""
    lags, until = [], time.monotonic() + seconds
    while (now := time.monotonic()) < until:
        if (newest_ns := last_received(newest_segment(folder))) is not None:
            passed = int((time.monotonic() - clock["monotonic"]) * 1e9)
            lags.append((clock["market"] + passed - newest_ns) / 1e6)
        time.sleep(max(0.0, now + 1 / SAMPLES_PER_S - time.monotonic()))
    return lags


def check(clients: list[dict[str, int]]) -> None:
    """Every client has every trade between its first and its last, once."""
    for one in clients:
        if one["trades"] != one["distinct"] or one["trades"] < LOAD:
            raise SystemExit(f"a client has trades twice, or too few: {one}")


@contextmanager
def serving(data: Path) -> Iterator[int]:
    """`nq serve` in a process of its own."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("nq")), "serve", "--port", str(port)]
    environment = {**os.environ, "NQ_DATA_DIR": str(data)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as run:
        try:
            for _ in range(600):
                try:
                    requests.get(f"http://127.0.0.1:{port}/openapi.json", timeout=5)
                    break
                except requests.ConnectionError:
                    time.sleep(0.1)
            yield port
        finally:
            run.terminate()


async def follow(port: int, number: int) -> None:
    """Fifty clients in one process, until the input ends."""
    from websockets.asyncio.client import connect

    url = f"ws://127.0.0.1:{port}/stream?types=trades"
    texts: list[list[str]] = [[] for _ in range(number)]
    ready = 0
    os.nice(19)

    async def read(own: list[str]) -> None:
        nonlocal ready
        async with connect(url, max_size=None, compression=None) as socket:
            await socket.recv()
            ready += 1
            while True:
                own.append(str(await socket.recv()))

    tasks = [asyncio.create_task(read(own)) for own in texts]
    while ready < number:
        await asyncio.sleep(0.01)
    print("connected", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for task in tasks:
        task.cancel()
    found = []
    for own in texts:
        rows = [row for text in own for row in json.loads(text)["rows"] if "sequence" in row]
        keys = [(row["sequence"], row["instrument_id"], row["ordinal"]) for row in rows]
        found.append({"trades": len(keys), "distinct": len(set(keys))})
    print(json.dumps(found), flush=True)


# ── a chain over HTTP ───────────────────────────────────────────────────────────────────────────


def chain() -> None:
    """The whole current chain, as Arrow."""
    with tempfile.TemporaryDirectory() as folder:
        lake = Workspace(Path(folder) / "sandbox").lake
        today = datetime.now(UTC).date()
        rows = day_of_chains(today, 1, CONTRACTS)
        lake.append(OPTION_CHAIN, rows, run_id="bench")
        won = [
            decision(decided_at=to_ns(at), snapshot=to_ns(at), series=series, source=source, day=today)
            for series, source, at in rows.select("series", "source", "snapshot_ts").unique().iter_rows()
        ]
        instants = pl.col("decided_at", "snapshot_ts").cast(INSTANT)
        lake.append(DECISIONS, pl.DataFrame(won).with_columns(instants), run_id="bench")
        with (
            serving(Path(folder)) as port,
            catalog.connect(lake) as connection,
            requests.Session() as session,
        ):
            sql = f"FROM {catalog.LATEST} ORDER BY {', '.join(catalog.CHAIN_ORDER)}"
            served, duck = list[float](), list[float]()
            for _ in range(REPEATS):
                began = time.perf_counter()
                body = session.get(f"http://127.0.0.1:{port}/chain?format=arrow", timeout=60).content
                served.append(time.perf_counter() - began)
                began = time.perf_counter()
                table = connection.sql(sql).to_arrow_table()
                duck.append(time.perf_counter() - began)
            assert pl.read_ipc_stream(io.BytesIO(body)).height == table.num_rows == CONTRACTS
    print(f"the chain of {CONTRACTS:,} contracts as Arrow, medians of {REPEATS}:")
    print(f"  over HTTP {1e3 * median(served):.0f} ms, {len(body) / 1e6:.1f} MB")
    print(f"  DuckDB alone {1e3 * median(duck):.0f} ms")
    print(f"  {median(served) / median(duck):.2f}×")


def main() -> None:
    chain()
    fanout()


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            main()
        case ["clients", port, number]:
            asyncio.run(follow(int(port), int(number)))
        case ["chain"]:
            chain()
        case ["fanout", *options]:
            parser = argparse.ArgumentParser(prog="python -m bench.bench_serve fanout")
            parser.add_argument("--seconds", type=float, default=5.0)
            fanout(parser.parse_args(options).seconds)
