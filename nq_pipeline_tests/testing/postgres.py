"""A PostgreSQL server on loopback, run as a normal user, that a test may kill and start again."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from nq_pipeline_tests.testing.ledgers import PASSWORD

NUMBERS = count()


@dataclass(frozen=True)
class PostgresServer:
    """A server with its data in `folder`."""

    folder: Path
    programs: Path
    port: int
    become: list[str]

    @property
    def url(self) -> str:
        """Its address, without a database."""
        return f"postgresql://nq:{PASSWORD}@127.0.0.1:{self.port}"

    def start(self) -> None:
        # What a test writes need not outlive it; that commits are synchronous is asked per transaction.
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        log = str(self.folder / "log")
        self.run("pg_ctl", "-D", str(self.folder / "data"), "-w", "-l", log, "-o", options, "start")

    def stop(self) -> None:
        """End it at once, as a power cut does; clients are not told."""
        self.run("pg_ctl", "-D", str(self.folder / "data"), "-w", "-m", "immediate", "stop")

    def new_database(self) -> str:
        """The address of a new, empty database."""
        import psycopg

        name = f"ledger_{os.getpid()}_{next(NUMBERS)}"
        with psycopg.connect(f"{self.url}/postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"{self.url}/{name}"

    def run(self, program: str, *words: str) -> None:
        command = [*self.become, str(self.programs / program), *words]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def run_postgres() -> Iterator[PostgresServer]:
    """Start a server with no database yet; skips the test where PostgreSQL is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [Path(shutil.which("initdb") or "")]
    if not found[-1].is_file():
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="nq-postgres-"))
    try:
        become = _as_normal_user(folder)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server = PostgresServer(folder, found[-1].parent, port, become)
        password = folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        data = str(folder / "data")
        server.run("initdb", "-D", data, "-U", "nq", "--auth=md5", f"--pwfile={password}", "-N")
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _as_normal_user(folder: Path) -> list[str]:
    """PostgreSQL refuses to run as root; then it runs as its own user, or as nobody."""
    if os.geteuid() != 0:
        return []
    try:
        user = pwd.getpwnam("postgres")
    except KeyError:
        user = pwd.getpwnam("nobody")
    os.chown(folder, user.pw_uid, user.pw_gid)
    if not shutil.which("setpriv"):
        pytest.skip("running as root without setpriv, and PostgreSQL refuses to run as root")
    group = grp.getgrgid(user.pw_gid).gr_name
    return ["setpriv", f"--reuid={user.pw_name}", f"--regid={group}", "--clear-groups"]
