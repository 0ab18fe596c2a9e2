"""Hosts that share one database of leases: each has a data folder of its own; their lakes count as one."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from nq_pipeline.configuration import build_settings
from nq_pipeline.errors import LeaseLost
from nq_pipeline.lake.objects import LocalObjects
from nq_pipeline.leases.leases import Leases
from nq_pipeline.settings import Settings
from nq_pipeline.workspace import LAKE_ID, Workspace

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])


@dataclass(frozen=True)
class Hosts:
    """Hosts by name, with their data folders below `folder` and one database at `url`."""

    folder: Path
    url: str

    def settings(self, host: str, url: str = "") -> Settings:
        """The settings of a host, which may reach the database by another address."""
        settings = build_settings(data_dir=self.folder / host, ledger_url=url or self.url)
        LocalObjects(Workspace.of(settings).root).put(LAKE_ID, b"one lake")  # as if they shared it
        return settings

    def leases(self, host: str, url: str = "") -> Leases:
        return Leases.of(self.settings(host, url))


def hold(settings: Settings, name: str, ttl_s: float, to_parent: Connection) -> None:
    """Hold a lease until the process is killed; say its token, and later on request whether it is lost."""
    lease = Leases.of(settings).acquire(name, ttl_s=ttl_s, run_id="theirs")
    lease.keep()
    to_parent.send(lease.token)
    while True:
        to_parent.recv()
        try:
            lease.check()
        except LeaseLost as error:
            to_parent.send(str(error))
        else:
            to_parent.send("")


@contextmanager
def holding(settings: Settings, name: str, ttl_s: float) -> Iterator[tuple[BaseProcess, Connection, int]]:
    """A process that holds a lease, the way to ask it, and its token."""
    mine, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=hold, args=(settings, name, ttl_s, theirs), daemon=True)
    process.start()
    assert mine.poll(60)
    token = mine.recv()
    try:
        yield process, mine, token
    finally:
        process.kill()
        process.join()


def take_turns(settings: Settings, name: str, turns: int, inside: Path, log: Path) -> None:
    """Acquire the lease so many times and note the tokens; fails if another process is inside, too."""
    leases = Leases.of(settings)
    for _ in range(turns):
        with leases.acquire(name, ttl_s=60, wait_s=60) as lease:
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
            with log.open("a") as lines:
                lines.write(f"{lease.token}\n")
            inside.unlink()
