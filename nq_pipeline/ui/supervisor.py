"""Lock the Dagster instance, check the port, run Dagster, and end every process that it started."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from threading import Event

from dotenv import dotenv_values

from nq_pipeline.errors import UiError
from nq_pipeline.settings import Settings

HOST = "127.0.0.1"
SHIPPED = Path(__file__).with_name("instance")
"""The `dagster.yaml` and `workspace.yaml` for folders that have none."""
GRACE_S = 30.0
"""How long Dagster and its runs may take to end; a capture flushes its log first."""
POLL_S = 0.2


def instance_folder(settings: Settings) -> Path:
    """The folder of the Dagster instance; a missing `dagster.yaml` is written there.

    It is DAGSTER_HOME if that is set (also in `.env`), or the working directory if it has a `dagster.yaml`
    (a checkout has one), or `.dagster` in the data folder.
    """
    named = os.environ.get("DAGSTER_HOME") or dotenv_values(".env").get("DAGSTER_HOME")
    if named:
        folder = Path(named).expanduser().absolute()
    elif Path("dagster.yaml").is_file():
        folder = Path.cwd()
    else:
        folder = settings.data_dir.absolute() / ".dagster"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "dagster.yaml").exists():
        shutil.copyfile(SHIPPED / "dagster.yaml", folder / "dagster.yaml")
    return folder


def uses_postgres(folder: Path) -> bool:
    """Whether the instance of a folder keeps its history in PostgreSQL, where other hosts can share it."""
    file = folder / "dagster.yaml"
    return file.is_file() and "postgres" in file.read_text()


def dagster_command(port: int) -> list[str]:
    """The command that starts Dagster's web server and daemon."""
    workspace = Path("workspace.yaml") if Path("workspace.yaml").is_file() else SHIPPED / "workspace.yaml"
    return [
        sys.executable,
        # Dagster recommends a program that needs thirty more packages.
        *("-W", "ignore:Function `dev_command` is superseded"),
        *("-m", "nq_pipeline.orchestration.guarded_dagster", "dev"),
        *("--workspace", str(workspace), "--host", HOST, "--port", str(port)),
    ]


@contextmanager
def hold_instance(folder: Path, port: int) -> Iterator[int]:
    """Lock the instance while the context lasts; yields the descriptor that holds the lock.

    A second daemon on one instance would launch every scheduled run twice. Raises `UiError` when the instance
    or the port is in use.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UiError(
                f"another `nq ui`, or the Dagster of a killed one, uses the instance in {folder}; "
                "stop it first"
            ) from None
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError as error:
                raise UiError(
                    f"port {port} of {HOST} cannot be used ({error.strerror}); "
                    f"stop the program that uses it, or choose another with `nq ui --port {port % 65535 + 1}`"
                ) from None
        yield descriptor
    finally:
        os.close(descriptor)


def run_dagster(
    command: Sequence[str],
    port: int,
    *,
    environment: Mapping[str, str],
    stop: Event,
    hold: int | None = None,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Run Dagster until `stop` is set, then end every process of its group.

    `environment` adds variables to those of this process. Dagster inherits `hold`, the descriptor that locks
    the instance, so that the instance stays locked if this process is killed. `on_ready` is called once, when
    the web server answers on the port. Raises `UiError` when Dagster ends by itself.
    """
    variables = {**os.environ, **environment, "DAGSTER_DISABLE_TELEMETRY": "1"}
    inherited = () if hold is None else (hold,)
    process = subprocess.Popen(command, env=variables, start_new_session=True, pass_fds=inherited)
    ready = False
    try:
        while not stop.wait(POLL_S):
            if process.poll() is not None:
                raise UiError("Dagster ended by itself; its messages above say why")
            if not ready and _is_serving(port):
                ready = True
                on_ready()
    finally:
        _end_group(process)


def _is_serving(port: int) -> bool:
    """Whether Dagster's web server answers on the port."""
    connection = HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", "/server_info")
        return "dagster_webserver_version" in json.loads(connection.getresponse().read(65_536))
    except (OSError, HTTPException, ValueError):
        return False
    finally:
        connection.close()


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End the whole process group: first Dagster in its own order, then its runs, then the rest."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
    for signal_number, patience_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, 5.0)):
        deadline = time.monotonic() + patience_s
        try:
            os.killpg(process.pid, signal_number)
            while time.monotonic() < deadline:
                process.poll()
                os.killpg(process.pid, 0)
                time.sleep(POLL_S)
        except ProcessLookupError:  # the group is empty
            return
