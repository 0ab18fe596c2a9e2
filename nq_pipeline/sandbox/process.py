"""The process that serves the stand-ins: start one or share the one that runs, and let go of it.

A run that needs stand-ins looks into `<data folder>/sandbox/sandbox.json` for the port of the
last one. If a stand-in of this version answers there, the run takes a lease on it; otherwise it
starts one, on the same port when that is free, so that cached answers stay valid. A server
started by a run ends when that run has ended, however it ended, and nobody holds a lease any
more. One started by hand (`nq sandbox`) runs until Ctrl-C.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPException
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nq_pipeline.clock import Clock, ShiftedClock
from nq_pipeline.errors import SandboxError, SettingsError
from nq_pipeline.market import sessions
from nq_pipeline.settings import SOURCE_NAMES, Settings

HOST = "127.0.0.1"
START_S = 30.0
"""Seconds a server may take until it answers."""

# The addresses of each vendor's settings below its mount point, and credentials for stand-ins.
# Real ones are never sent to a stand-in, even where they are set.
ADDRESSES = {
    "barchart": {"barchart_url": "http:"},
    "polygon": {"polygon_url": "http:"},
    "tradovate": {"tradovate_url": "http:/v1", "tradovate_md_url": "ws:/v1/websocket"},
    "databento": {"databento_url": "http:"},
}
CREDENTIALS = {
    "polygon": {"polygon_api_key": "sandbox-polygon-key"},
    "tradovate": {
        "tradovate_username": "sandbox-user",
        "tradovate_password": "sandbox-password",
        "tradovate_app_id": "sandbox-app",
        "tradovate_cid": "0",
        "tradovate_sec": "sandbox-sec",
        "tradovate_device_id": "sandbox-device",
    },
    "databento": {"databento_api_key": "db-sandbox-not-a-real-key-000000"},
}
SECRETS = {"polygon_api_key", "tradovate_cid", "tradovate_sec", "databento_api_key"} | {
    "tradovate_username",
    "tradovate_password",
}


@contextmanager
def endpoints(settings: Settings) -> Iterator[Settings]:
    """Settings whose vendors answer: unchanged in live, on loopback in the sandbox.

    An address that was set explicitly is left alone, with its vendor's credentials. Raises
    SandboxError when no server can be started, SettingsError for a fault that is none.
    """
    chosen = [v for v in SOURCE_NAMES if not settings.model_fields_set & set(ADDRESSES[v])]
    if settings.environment != "sandbox" or not chosen:
        yield settings
        return
    options = vendor_options(settings)
    with _server(settings.environment_dir, settings.sandbox_port) as server:
        changes: dict[str, Any] = {}
        for vendor in chosen:
            theirs = _over(server.defaults.get(vendor, ""), options[vendor])
            mount = f"//{HOST}:{server.port}{f'/with/{theirs}' if theirs else ''}/{vendor}"
            for field, form in ADDRESSES[vendor].items():
                scheme, _, path = form.partition(":")
                changes[field] = f"{scheme}:{mount}{path}"
            changes |= {name: _value(name, text) for name, text in CREDENTIALS.get(vendor, {}).items()}
        if "databento" in chosen and "databento_gateway" not in settings.model_fields_set:
            changes["databento_gateway"] = _gateway(changes["databento_url"])
        yield settings.model_copy(update=changes)


def vendor_options(settings: Settings) -> dict[str, str]:
    """The sandbox's options for each vendor as the settings have them; '' where they say nothing."""
    from nq_pipeline.sandbox.scenario import FAULTS, format_options

    faults = {}
    for pair in settings.sandbox_faults:
        vendor, _, fault = pair.partition("=")
        if vendor not in SOURCE_NAMES or fault not in FAULTS:
            raise SettingsError(
                f"NQ_SANDBOX_FAULTS: {pair!r} is no fault of a stand-in; write VENDOR=FAULT with a vendor "
                f"of {', '.join(SOURCE_NAMES)} and a fault of {', '.join(FAULTS)}"
            )
        faults[vendor] = fault
    told = {
        "now": settings.now,
        "seed": None if _is_usual(settings, "sandbox_seed") else settings.sandbox_seed,
        "products": None if _is_usual(settings, "products") else ",".join(settings.products),
    }
    return {vendor: format_options({"fault": faults.get(vendor), **told}) for vendor in SOURCE_NAMES}


def _is_usual(settings: Settings, name: str) -> bool:
    return bool(getattr(settings, name) == Settings.model_fields[name].default)


def serve(settings: Settings) -> None:
    """Serve in the foreground until Ctrl-C, saying where and what to paste elsewhere."""
    options = vendor_options(settings)
    bound = _bind(settings.sandbox_port or _remembered(settings.environment_dir), settings.sandbox_port != 0)

    def ready(gateway: str) -> None:
        _remember(settings.environment_dir, bound.getsockname()[1], gateway)
        print(_announcement(bound.getsockname()[1], gateway, options), flush=True)

    _run(bound, options, ready)


def serve_owned(environment_dir: Path, port: int, *, exact: bool) -> None:
    """Serve for the process that holds the other end of stdin, and for whoever holds a lease."""
    bound = _bind(port, exact)

    def ready(gateway: str) -> None:
        _remember(environment_dir, bound.getsockname()[1], gateway)
        print(bound.getsockname()[1], flush=True)

    _run(bound, {}, ready, owner=sys.stdin.fileno())


# Finding or starting a server


@dataclass(frozen=True)
class _Server:
    port: int
    defaults: Mapping[str, str]


@contextmanager
def _server(environment_dir: Path, wanted: int) -> Iterator[_Server]:
    """A server that lives at least as long as this context."""
    environment_dir.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        with _only_one_at_a_time(environment_dir / "sandbox.lock"):
            port = wanted or _remembered(environment_dir)
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
def _only_one_at_a_time(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _lease(port: int) -> Iterator[_Server | None]:
    """Hold the server on a port open; None when what answers there, if anything, is not ours."""
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


def gateway_clock(settings: Settings) -> Clock:
    """The clock that a capture follows: in the sandbox the stand-in gateway's, which always runs.

    Of settings as `endpoints` gives them. A gateway named by hand has the clock of the machine.
    """
    if settings.environment != "sandbox" or urlsplit(settings.databento_url).hostname != HOST:
        return settings.clock
    said = _ask_gateway(settings.databento_url)
    if said["address"] != settings.databento_gateway:
        return settings.clock
    return ShiftedClock(datetime.fromisoformat(said["now"]))


def market_clock(settings: Settings) -> Clock:
    """The clock that a capture started now would follow; asks a server that runs, and starts none."""
    given = settings.model_fields_set & {"databento_url", "databento_gateway"}
    if settings.environment != "sandbox" or given:
        return gateway_clock(settings)
    port = settings.sandbox_port or _remembered(settings.environment_dir)
    with _lease(port) if port else nullcontext() as server:
        if server:
            with endpoints(settings) as reachable:
                return gateway_clock(reachable)
    from nq_pipeline.sandbox.gateway.gateway import moving_clock

    return ShiftedClock(settings.now) if settings.now else moving_clock(datetime.now(UTC))


def _gateway(url: str) -> str:
    """host:port of the live gateway of the world that a Databento address shows."""
    return _ask_gateway(url)["address"]


def _ask_gateway(url: str) -> dict[str, str]:
    parts = urlsplit(url)
    connection = HTTPConnection(HOST, parts.port, timeout=START_S)
    try:
        connection.request("GET", f"{parts.path}/gateway")
        said = json.loads(connection.getresponse().read())
        return {name: str(said[name]) for name in ("address", "now")}
    except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
        raise SandboxError(f"The stand-in of Databento names no live gateway ({error}).") from None
    finally:
        connection.close()


@contextmanager
def _started(environment_dir: Path, port: int, *, exact: bool) -> Iterator[int]:
    """Start a server that ends with this process; gives its port once it answers."""
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


def _remembered(environment_dir: Path) -> int:
    """The port of the last server of this folder; 0 when there was none."""
    try:
        port = int(json.loads((environment_dir / "sandbox.json").read_text())["port"])
        return port if 1_024 <= port < 65_536 else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _remember(environment_dir: Path, port: int, gateway: str) -> None:
    environment_dir.mkdir(parents=True, exist_ok=True)
    state = {
        "pid": os.getpid(),
        "port": port,
        "databento_gateway": gateway,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": version("nq_pipeline"),
    }
    path = environment_dir / "sandbox.json"
    temporary = path.with_name(f".sandbox.{os.getpid()}.json")
    with temporary.open("w") as file:
        json.dump(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


# Serving


def _bind(port: int, exact: bool) -> socket.socket:
    """A loopback socket on the port; on a free one where the port is taken and need not be exact."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((HOST, port))
    except OSError as error:
        if exact:
            raise SandboxError(
                f"Port {port} is taken by another program ({error.strerror}); choose another NQ_SANDBOX_PORT."
            ) from None
        bound.bind((HOST, 0))
    return bound


def _run(
    bound: socket.socket, defaults: Mapping[str, str], ready: Callable[[str], None], owner: int | None = None
) -> None:
    """Serve until interrupted, or until the owner's pipe is closed and the last lease returned.

    `ready` is told the address of the live gateway.
    """
    import asyncio

    import uvicorn

    from nq_pipeline.sandbox.gateway.gateways import Gateways
    from nq_pipeline.sandbox.server import Leases, application, default_scenarios

    leases, gateways = Leases(), Gateways()
    config = uvicorn.Config(
        application(defaults, leases, gateways),
        log_level="error",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)

    async def main() -> None:
        serving = asyncio.create_task(server.serve(sockets=[bound]))
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        ready((await gateways.of(default_scenarios(defaults)["databento"])).address)
        warm = asyncio.create_task(asyncio.to_thread(sessions.current_session, datetime.now(UTC)))
        if owner is not None:
            await asyncio.to_thread(_read_to_end, owner)
            while leases.held:
                await asyncio.sleep(0.1)
            leases.closed = server.should_exit = True
        await serving
        await warm

    with suppress(KeyboardInterrupt):
        asyncio.run(main())


def _read_to_end(descriptor: int) -> None:
    while os.read(descriptor, 4096):
        pass


def _announcement(port: int, gateway: str, options: Mapping[str, str]) -> str:
    root = f"http://{HOST}:{port}"
    lines = [f"Stand-ins of a synthetic market (no real data) on {root}; Ctrl-C ends them.", ""]
    lines += [
        f"  {vendor:<10} {root}/{vendor}" + (f"   {options[vendor]}" if options[vendor] else "")
        for vendor in SOURCE_NAMES
    ]
    lines += [
        "",
        "`nq run` with the same data folder finds them by itself. For another program:",
        "",
        f"  NQ_BARCHART_URL={root}/barchart",
        f"  NQ_POLYGON_URL={root}/polygon",
        f"  NQ_TRADOVATE_URL={root}/tradovate/v1",
        f"  NQ_TRADOVATE_MD_URL=ws://{HOST}:{port}/tradovate/v1/websocket",
        f"  NQ_DATABENTO_URL={root}/databento",
        f"  NQ_DATABENTO_GATEWAY={gateway}",
    ]
    return "\n".join(lines)


def _over(defaults: str, options: str) -> str:
    """One vendor's options: the server's defaults, replaced where the run says otherwise."""
    merged: dict[str, str] = {}
    for part in filter(None, [*defaults.split(";"), *options.split(";")]):
        name, _, value = part.partition("=")
        merged[name] = value
    return ";".join(f"{name}={value}" for name, value in merged.items())


def _value(name: str, text: str) -> Any:
    from pydantic import SecretStr

    return SecretStr(text) if name in SECRETS else text
