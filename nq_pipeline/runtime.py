"""The endpoints and the clock of a run: those of the vendors or of the stand-ins.

A run in the sandbox takes a lease on the stand-ins of its data folder. If no stand-ins of this version
answer on the port in `sandbox.json`, it starts them, on the same port if that is free, so that cached
answers stay valid.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from http.client import HTTPConnection, HTTPException
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

from nq_pipeline.clock import Clock, ShiftedClock, real_now
from nq_pipeline.errors import SandboxError
from nq_pipeline.files import locked
from nq_pipeline.sandbox.process import HOST, remembered_port, vendor_options
from nq_pipeline.settings import Settings
from nq_pipeline.sources.databento.spec import DatabentoSettings
from nq_pipeline.sources.registry import STAND_INS
from nq_pipeline.spend.database import refuse_other_lake

START_S = 30.0
"""Maximum seconds until a server answers."""


@contextmanager
def endpoints(settings: Settings) -> Iterator[Settings]:
    """The settings to use for requests: unchanged in live, with the stand-ins' addresses in the sandbox.

    A vendor whose address was set explicitly keeps its address and credentials. Raises `SandboxError` when no
    server can be started, `SettingsError` for an unknown fault in NQ_SANDBOX_FAULTS, `OtherLake` when the
    ledger that machines share belongs to another lake.
    """
    refuse_other_lake(settings)
    chosen = {
        vendor: stand_in
        for vendor, stand_in in STAND_INS.items()
        if not settings.given & stand_in.addresses.keys()
    }
    if settings.environment != "sandbox" or not chosen:
        yield settings
        return
    options = vendor_options(settings)
    with _server(settings.environment_dir, settings.sandbox.port) as server:
        changes: dict[str, str] = {}
        for vendor, stand_in in chosen.items():
            merged = _merged(server.defaults.get(vendor, ""), options[vendor])
            mount = f"//{HOST}:{server.port}{f'/with/{merged}' if merged else ''}/{vendor}"
            changes |= {**stand_in.settings(mount), **stand_in.credentials}
        if "databento" in chosen and "databento_gateway" not in settings.given:
            changes["databento_gateway"] = _ask_gateway(changes["databento_url"])["address"]
        yield settings.with_values(**changes)


def gateway_clock(settings: Settings) -> Clock:
    """The clock that a capture follows: in the sandbox the stand-in gateway's, which always runs.

    Pass settings from `endpoints`. A gateway that was set explicitly has the machine's clock.
    """
    if settings.environment != "sandbox" or urlsplit(settings.vendor(DatabentoSettings).url).hostname != HOST:
        return settings.clock
    state = _ask_gateway(settings.vendor(DatabentoSettings).url)
    if state["address"] != settings.vendor(DatabentoSettings).gateway:
        return settings.clock
    return ShiftedClock(datetime.fromisoformat(state["now"]))


def market_clock(settings: Settings) -> Clock:
    """The clock that a capture started now would follow; asks a running server and does not start one."""
    given = settings.given & {"databento_url", "databento_gateway"}
    if settings.environment != "sandbox" or given:
        return gateway_clock(settings)
    port = settings.sandbox.port or remembered_port(settings.environment_dir)
    with _lease(port) if port else nullcontext() as server:
        if server:
            with endpoints(settings) as reachable:
                return gateway_clock(reachable)
    from nq_pipeline.sandbox.gateway.gateway import moving_clock

    return ShiftedClock(settings.now) if settings.now else moving_clock(real_now())


@dataclass(frozen=True)
class _Server:
    port: int
    defaults: Mapping[str, str]


@contextmanager
def _server(environment_dir: Path, wanted: int) -> Iterator[_Server]:
    """A server that lives at least as long as this context."""
    with ExitStack() as stack:
        with locked(environment_dir / "sandbox.lock"):
            port = wanted or remembered_port(environment_dir)
            server = stack.enter_context(_lease(port)) if port else None
            if server is None:
                port = stack.enter_context(_started(environment_dir, port, exact=wanted != 0))
                server = stack.enter_context(_lease(port))
        if server is None:
            raise SandboxError(
                f"The stand-ins were started on port {port} but do not answer; "
                f"see {environment_dir / 'sandbox.log'}."
            )
        yield server


@contextmanager
def _lease(port: int) -> Iterator[_Server | None]:
    """Keep the server on a port alive; yields None if none of ours answers there."""
    connection = HTTPConnection(HOST, port, timeout=5)
    try:
        try:
            connection.request("GET", "/lease")
            answer = json.loads(connection.getresponse().readline(65_536))
            ours = answer["program"] == "nq sandbox" and answer["version"] == version("nq_pipeline")
            server = _Server(port, dict(answer["defaults"])) if ours else None
        except (OSError, HTTPException, ValueError, KeyError, TypeError):
            server = None
        yield server
    finally:
        connection.close()


def _ask_gateway(url: str) -> dict[str, str]:
    parts = urlsplit(url)
    connection = HTTPConnection(HOST, parts.port, timeout=START_S)
    try:
        connection.request("GET", f"{parts.path}/gateway")
        state = json.loads(connection.getresponse().read())
        return {name: str(state[name]) for name in ("address", "now")}
    except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
        raise SandboxError(f"The stand-in of Databento did not report its live gateway ({error}).") from None
    finally:
        connection.close()


@contextmanager
def _started(environment_dir: Path, port: int, *, exact: bool) -> Iterator[int]:
    """Start a server that ends with this process; yields its port once it answers."""
    command = [sys.executable, "-m", "nq_pipeline.sandbox", str(environment_dir.resolve()), str(port)]
    with (environment_dir / "sandbox.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "exact"] if exact else command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    assert process.stdin and process.stdout
    try:
        answered, _, _ = select.select([process.stdout], [], [], START_S)
        line = process.stdout.readline() if answered else b""
        if not line.strip().isdigit():
            reason = (environment_dir / "sandbox.log").read_text().strip().splitlines()
            raise SandboxError(f"The stand-ins could not be started: {reason[-1] if reason else 'no answer'}")
        yield int(line)
    finally:
        process.stdin.close()
        process.stdout.close()


def _merged(defaults: str, options: str) -> str:
    """One vendor's options: the server's defaults, overridden by those of the run."""
    merged: dict[str, str] = {}
    for part in filter(None, [*defaults.split(";"), *options.split(";")]):
        name, _, value = part.partition("=")
        merged[name] = value
    return ";".join(f"{name}={value}" for name, value in merged.items())
