"""kill -9 of the whole program at any moment: all tables read, and the next run completes them."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import duckdb
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from nq_pipeline.configuration import build_settings
from nq_pipeline.files import TEMPORARY
from nq_pipeline.lake import catalog
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import DECISIONS, FETCHES, OPTION_CHAIN, SOURCE_CHAIN, TABLES, Table
from nq_pipeline.runtime import endpoints
from nq_pipeline.workspace import Workspace

NOW = "2025-06-10T15:00:00Z"
OF_A_RUN = {"run_id", "request_id", "raw_sha256", "selected_at", "decided_at"}
"""What every run gives anew."""
WHOLE = (SOURCE_CHAIN, OPTION_CHAIN, DECISIONS)
"""What a completed run must leave as an undisturbed one does."""

Start = Callable[[Path], subprocess.Popen[bytes]]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Begin `nq run` into a data folder; all runs ask the stand-ins of one server."""
    folder = tmp_path_factory.mktemp("stand-ins")

    def begin(data: Path) -> subprocess.Popen[bytes]:
        settings = {
            "NQ_NOW": NOW,
            "NQ_SOURCES": "barchart,databento",
            "NQ_HORIZON_DAYS": "0",
            "NQ_FAR_EXPIRATIONS": "0",
            "NQ_DATA_DIR": str(data),
            "NQ_SANDBOX_PORT": port,
        }
        return subprocess.Popen(
            [sys.executable, "-m", "nq_pipeline", "run"],
            env={**os.environ, **settings},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    with endpoints(build_settings(data_dir=folder)):
        port = str(json.loads((folder / "sandbox" / "sandbox.json").read_text())["port"])
        yield begin


@dataclass(frozen=True)
class Undisturbed:
    """What a run leaves that nobody kills, and the seconds of it all and of the writing at its end."""

    rows: dict[str, pl.DataFrame]
    seconds: float
    writing: float


@pytest.fixture(scope="module")
def undisturbed(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    data = tmp_path_factory.mktemp("data")
    start(data).wait()  # the stand-ins compute their market once
    data = tmp_path_factory.mktemp("data")
    began = time.monotonic()
    process = start(data)
    until_writing(process, data, runs=0)
    wrote = time.monotonic()
    assert process.wait() == 0
    ended = time.monotonic()
    return Undisturbed(content(data), ended - began, ended - wrote)


def until_writing(process: subprocess.Popen[bytes], data: Path, *, runs: int) -> None:
    """Wait until the record of one more run is there; the tables are written right after it."""
    while process.poll() is None and len(list(data.glob("sandbox/raw/runs/*.json"))) <= runs:
        time.sleep(0.001)


def lake_of(data: Path) -> Lake:
    return Workspace(data / "sandbox").lake


def rows(data: Path, table: Table) -> pl.DataFrame:
    return lake_of(data).scan(table).collect()


def content(data: Path) -> dict[str, pl.DataFrame]:
    """The tables without what every run gives anew; of the decisions those of the last run."""
    found = {table.name: rows(data, table) for table in WHOLE}
    last = found[DECISIONS.name].filter(pl.col("decided_at") == pl.col("decided_at").max())
    found[DECISIONS.name] = last
    return {name: frame.drop(OF_A_RUN, strict=False) for name, frame in found.items()}


def check_readable(data: Path, complete: Undisturbed) -> None:
    """Whatever moment the run died in: every table reads, and shows a run's rows as a whole or not at all."""
    for table in TABLES.values():
        frame = rows(data, table)
        assert frame.select(table.key).is_unique().all(), f"a key is twice in {table.name}"
        assert frame.height == lake_of(data).manifest(table).rows
        files = list(map(Path, lake_of(data).files(table)))
        assert [file for file in files if file.match(TEMPORARY) or not file.is_file()] == []
    for table in (SOURCE_CHAIN, OPTION_CHAIN):
        assert rows(data, table).height in (0, complete.rows[table.name].height)
    made = rows(data, FETCHES)["run_id"].unique()
    assert set(rows(data, DECISIONS)["run_id"]) <= set(made), "a run decided that asked nobody"
    with catalog.connect(Workspace(data / "sandbox").lake) as now:
        chain = now.sql("from option_chain_latest").pl()
    assert chain.height in (0, complete.rows[OPTION_CHAIN.name].height)
    if (data / "sandbox" / catalog.NAME).exists():
        with duckdb.connect(data / "sandbox" / catalog.NAME, read_only=True) as published:
            for name in (*TABLES, catalog.LATEST):
                published.sql(f"select count(*) from {name}").fetchall()


def check_complete(data: Path, complete: Undisturbed) -> None:
    for name, frame in content(data).items():
        key = [column for column in TABLES[name].key if column not in OF_A_RUN]
        assert_frame_equal(frame.sort(key), complete.rows[name].sort(key))
    with catalog.connect(Workspace(data / "sandbox").lake) as now:
        latest = now.sql("select contract_key from option_chain_latest order by 1").pl()["contract_key"]
    assert latest.to_list() == complete.rows[OPTION_CHAIN.name]["contract_key"].sort().to_list()


@pytest.mark.parametrize("kills", [2, pytest.param(60, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_the_next_run_completes_a_run_killed_twice(
    start: Start, undisturbed: Undisturbed, tmp_path: Path, kills: int
) -> None:
    moments = random.Random(kills)
    for n in range(kills // 2):
        data = tmp_path / str(n)

        kill(partial(start, data), moments.uniform(0, undisturbed.seconds))
        check_readable(data, undisturbed)

        kill(partial(writing, start, data), moments.uniform(0, undisturbed.writing))
        check_readable(data, undisturbed)

        assert start(data).wait() == 0
        check_readable(data, undisturbed)
        check_complete(data, undisturbed)


def writing(start: Start, data: Path) -> subprocess.Popen[bytes]:
    """A run that has asked all sources and writes its tables now."""
    process = start(data)
    until_writing(process, data, runs=len(list(data.glob("sandbox/raw/runs/*.json"))))
    return process


def kill(begin: Callable[[], subprocess.Popen[bytes]], seconds: float) -> None:
    """Kill -9 that many seconds on; a run that was done by then is begun anew and killed in half the time."""
    while True:
        process = begin()
        time.sleep(seconds)
        process.kill()
        if process.wait() == -signal.SIGKILL:
            return
        seconds /= 2
