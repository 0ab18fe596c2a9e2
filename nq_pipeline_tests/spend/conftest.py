"""A fresh ledger on every database the ledger is kept in, and a machine whose clock may be wrong."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from nq_pipeline.configuration import build_settings
from nq_pipeline.settings import Settings
from nq_pipeline_tests.testing.ledgers import PASSWORD, FreshLedger

NUMBERS = count()


@pytest.fixture(params=["sqlite", "postgresql"])
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> FreshLedger:
    """Settings of a new, empty ledger; more settings by name."""
    server = request.getfixturevalue("postgres") if request.param == "postgresql" else None

    def make(**more: Any) -> Settings:
        own: dict[str, Any] = {"data_dir": tmp_path / f"data-{next(NUMBERS)}", **more}
        if server:
            own["ledger_url"] = new_database(server)
        return build_settings(**own)

    return make


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of a PostgreSQL server on loopback, run as a normal user."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [Path(shutil.which("initdb") or "")]
    if not found[-1].is_file():
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    programs = found[-1].parent
    folder = Path(tempfile.mkdtemp(prefix="nq-postgres-"))
    become = _as_normal_user(folder)
    data, password = folder / "data", folder / "password"
    password.write_text(PASSWORD)
    password.chmod(0o644)

    def run(program: str, *words: str) -> None:
        command = [*become, str(programs / program), *words]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stdout + done.stderr

    try:
        run("initdb", "-D", str(data), "-U", "nq", "--auth=md5", f"--pwfile={password}", "-N")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        # What a test writes need not outlive it; that commits are synchronous is asked per transaction.
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        run("pg_ctl", "-D", str(data), "-w", "-l", str(folder / "log"), "-o", options, "start")
        try:
            yield f"postgresql://nq:{PASSWORD}@127.0.0.1:{port}"
        finally:
            run("pg_ctl", "-D", str(data), "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def new_database(server: str) -> str:
    import psycopg

    name = f"ledger_{next(NUMBERS)}"
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{server}/{name}"


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
