"""Hosts of a cluster: folders that share no path, over one PostgreSQL, one Redis and one object store."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from unittest.mock import patch

import polars as pl

from nq_pipeline.configuration import load
from nq_pipeline.lake.tables import TABLES, Table
from nq_pipeline.settings import Settings
from nq_pipeline.ui.cluster import BUCKET, HOST, Shared, ask_postgres
from nq_pipeline.workspace import Workspace

ROOT = Path(__file__).parents[2]
PATIENCE_S = 300.0
NOW = "2025-06-10T15:00:00Z"
OF_A_RUN = {"run_id", "request_id", "raw_sha256", "selected_at"}
"""Columns that every run fills anew."""
NUMBERS = count(1)


@dataclass(frozen=True)
class ClusterHost:
    """A folder in which `nq` runs as on a machine of its own, with these variables."""

    folder: Path
    variables: Mapping[str, str]

    def with_variables(self, **variables: str) -> ClusterHost:
        return replace(self, variables={**self.variables, **variables})

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Begin `nq WORDS`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return subprocess.Popen(
            [sys.executable, "-m", "nq_pipeline", *words],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), **self.variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def nq(self, *words: str) -> str:
        """Run `nq WORDS`, which must succeed; its output."""
        return succeed(self.start(*words))

    @contextmanager
    def settings(self) -> Iterator[Settings]:
        """The settings that `nq` has on this host, for a look at its lake in this process."""
        with patch.dict(os.environ, self.variables):
            yield load()

    def rows(self, table: Table) -> pl.DataFrame:
        """All rows of a table, as this host sees them."""
        with self.settings() as settings:
            return Workspace.of(settings).lake.scan(table).collect()

    def digests(self, tables: Sequence[str]) -> dict[str, tuple[int, str]]:
        """How many rows tables have, and a digest of every cell but those that each run fills anew."""
        return {name: digest(self.rows(TABLES[name]), TABLES[name]) for name in tables}


@dataclass(frozen=True)
class HostFactory:
    """Makes the hosts of one test: they share a database and a prefix of the bucket that nobody else has."""

    shared: Shared
    folder: Path
    database: str
    prefix: str
    common: Mapping[str, str]

    @property
    def ledger(self) -> str:
        """The address of the ledger's database."""
        url = self.shared.environment(self.folder)["NQ_LEDGER_URL"]
        return f"{url.removesuffix('/ledger')}/{self.database}"

    def host(self, name: str) -> ClusterHost:
        """A host of the cluster."""
        folder = self.folder / name
        given = self.shared.environment(folder)
        names = ("NQ_LEDGER_URL", "NQ_DATA_DIR", *(v for v in given if v.startswith("AWS_")))
        variables = {name: given[name] for name in names}
        variables["NQ_LEDGER_URL"] = self.ledger
        return ClusterHost(
            folder, {**variables, "NQ_LAKE_URL": f"s3://{BUCKET}/{self.prefix}", **self.common}
        )

    def alone(self) -> ClusterHost:
        """A machine that has everything in a folder of its own, as the measure of what is right."""
        folder = self.folder / "alone"
        return ClusterHost(folder, {"NQ_DATA_DIR": str(folder / "data"), **self.common})


def new_hosts(shared: Shared, folder: Path, **common: str) -> HostFactory:
    """Hosts with an empty ledger and an empty lake; `common` are variables that all of them have."""
    name = f"cluster_{os.getpid()}_{next(NUMBERS)}"
    assert ask_postgres("createdb", shared.postgres_port, shared.password, name)
    return HostFactory(shared, folder, name, f"lakes/{name}", common)


def through_link(host: ClusterHost, shared: Shared, port: int) -> ClusterHost:
    """The host, with its way to PostgreSQL through another port."""
    url = host.variables["NQ_LEDGER_URL"]
    return host.with_variables(
        NQ_LEDGER_URL=url.replace(f"@{HOST}:{shared.postgres_port}/", f"@{HOST}:{port}/")
    )


def through_store(host: ClusterHost, endpoint: str) -> ClusterHost:
    """The host, with its way to the object store through another address."""
    return host.with_variables(AWS_ENDPOINT_URL=endpoint)


def digest(frame: pl.DataFrame, table: Table) -> tuple[int, str]:
    """The number of rows and a digest of their cells, whatever their order."""
    kept = [name for name in frame.columns if name not in OF_A_RUN]
    key = [name for name in table.key if name in kept]
    cells = frame.select(kept).sort(key, maintain_order=True)
    texts = cells.hash_rows(seed=1).sort()
    return frame.height, hashlib.sha256(texts.to_numpy().tobytes()).hexdigest()[:16]


def succeed(process: subprocess.Popen[str]) -> str:
    """Wait for a command that must succeed; its output."""
    output, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output + errors
    return output


def wait_until(condition: Callable[[], object], *, patience_s: float = PATIENCE_S) -> None:
    give_up = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < give_up, "it did not happen in time"
        time.sleep(0.2)
