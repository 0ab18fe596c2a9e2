"""The process that serves the stand-ins.

A server that a run started ends when that run has ended, in whatever way, and no client holds a lease.
One started by hand (`nq sandbox`) runs until Ctrl-C. `<data folder>/sandbox/sandbox.json` has the port of
the newest, where `nq_pipeline.runtime` finds it.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from nq_pipeline.clock import real_now
from nq_pipeline.errors import SandboxError, SettingsError
from nq_pipeline.market import sessions
from nq_pipeline.sandbox.scenario import FAULTS, format_options
from nq_pipeline.settings import Settings
from nq_pipeline.settings.groups import SandboxSettings
from nq_pipeline.sources.registry import STAND_INS

HOST = "127.0.0.1"


def vendor_options(settings: Settings) -> dict[str, str]:
    """The options by vendor as `parse_options` reads them; '' for the defaults."""
    faults = {}
    for pair in settings.sandbox.faults:
        vendor, _, fault = pair.partition("=")
        if vendor not in STAND_INS or fault not in FAULTS:
            raise SettingsError(
                f"NQ_SANDBOX_FAULTS: {pair!r} is not a fault of a stand-in; write VENDOR=FAULT with a vendor "
                f"of {', '.join(STAND_INS)} and a fault of {', '.join(FAULTS)}"
            )
        faults[vendor] = fault
    default = Settings.model_fields["products"].default
    options = {
        "now": settings.now,
        "seed": None if settings.sandbox.seed == SandboxSettings().seed else settings.sandbox.seed,
        "products": None if settings.products == default else ",".join(settings.products),
    }
    return {vendor: format_options({"fault": faults.get(vendor), **options}) for vendor in STAND_INS}


def serve(settings: Settings) -> None:
    """Serve in the foreground until Ctrl-C; print the addresses and the settings for other programs."""
    options = vendor_options(settings)
    wanted = settings.sandbox.port
    bound = _bind(wanted or remembered_port(settings.environment_dir), wanted != 0)

    def ready(gateway: str) -> None:
        _write_state(settings.environment_dir, bound.getsockname()[1], gateway)
        print(_announcement(bound.getsockname()[1], gateway, options), flush=True)

    _run(bound, options, ready)


def serve_owned(environment_dir: Path, port: int, *, exact: bool) -> None:
    """Serve while another process holds the other end of stdin or a client holds a lease."""
    bound = _bind(port, exact)

    def ready(gateway: str) -> None:
        _write_state(environment_dir, bound.getsockname()[1], gateway)
        print(bound.getsockname()[1], flush=True)

    _run(bound, {}, ready, owner=sys.stdin.fileno())


def remembered_port(environment_dir: Path) -> int:
    """The port of the folder's last server; 0 without one."""
    try:
        port = int(json.loads((environment_dir / "sandbox.json").read_text())["port"])
        return port if 1_024 <= port < 65_536 else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _write_state(environment_dir: Path, port: int, gateway: str) -> None:
    environment_dir.mkdir(parents=True, exist_ok=True)
    state = {
        "pid": os.getpid(),
        "port": port,
        "databento_gateway": gateway,
        "started": real_now().isoformat(timespec="seconds"),
        "version": version("nq_pipeline"),
    }
    path = environment_dir / "sandbox.json"
    temporary = path.with_name(f".sandbox.{os.getpid()}.json")
    with temporary.open("w") as file:
        json.dump(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _bind(port: int, exact: bool) -> socket.socket:
    """A loopback socket on the port. If the port is taken and not `exact`, on a free one."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((HOST, port))
    except OSError as error:
        if exact:
            raise SandboxError(
                f"Port {port} is taken by another program ({error.strerror}); set NQ_SANDBOX_PORT to another."
            ) from None
        bound.bind((HOST, 0))
    return bound


def _run(
    bound: socket.socket, defaults: Mapping[str, str], ready: Callable[[str], None], owner: int | None = None
) -> None:
    """Serve until interrupted, or until the owner's pipe closes and the last lease ends.

    Calls `ready` with the address of the live gateway once the server answers.
    """
    import asyncio

    import uvicorn

    from nq_pipeline.sandbox.gateway.gateways import Gateways
    from nq_pipeline.sandbox.server import ClientCount, application, default_scenarios

    clients, gateways = ClientCount(), Gateways()
    config = uvicorn.Config(
        application(defaults, clients, gateways),
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
        warm = asyncio.create_task(asyncio.to_thread(sessions.current_session, real_now()))
        if owner is not None:
            await asyncio.to_thread(_read_to_end, owner)
            while clients.held:
                await asyncio.sleep(0.1)
            clients.closed = server.should_exit = True
        await serving
        await warm

    with suppress(KeyboardInterrupt):
        asyncio.run(main())


def _read_to_end(descriptor: int) -> None:
    while os.read(descriptor, 4096):
        pass


def _announcement(port: int, gateway: str, options: Mapping[str, str]) -> str:
    root = f"http://{HOST}:{port}"
    lines = [f"Stand-ins of a synthetic market (no real data) on {root}; Ctrl-C stops them.", ""]
    lines += [
        f"  {vendor:<10} {root}/{vendor}" + (f"   {options[vendor]}" if options[vendor] else "")
        for vendor in STAND_INS
    ]
    lines += ["", "`nq run` with the same data folder finds them. For another program set:", ""]
    lines += [
        f"  NQ_{name.upper()}={address}"
        for vendor, stand_in in STAND_INS.items()
        for name, address in stand_in.settings(f"//{HOST}:{port}/{vendor}").items()
    ]
    return "\n".join([*lines, f"  NQ_DATABENTO_GATEWAY={gateway}"])
