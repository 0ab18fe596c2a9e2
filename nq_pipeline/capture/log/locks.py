"""Who is capturing: leases, which every machine sees, and the operating system's locks on this one.

Dagster's run status cannot tell. After a power cut a run counts as started for ever, and a cancelled
one may still be running. So each capture run holds the lease `run/<run_id>` while its process lives, and
the one capture of an environment holds the lease `capture`. As a second belt, both hold a lock of the kernel,
which releases it when the process dies; whoever writes the capture log holds that of the capture folder.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nq_pipeline import files
from nq_pipeline.capture.log.segments import list_segments
from nq_pipeline.clock import real_now
from nq_pipeline.errors import CaptureBusy, LeaseHeld, LedgerError
from nq_pipeline.leases.leases import Lease, Leases
from nq_pipeline.settings import Settings
from nq_pipeline.spend.database import is_shared
from nq_pipeline.workspace import Workspace

LEASE, RUN_LEASE = "capture", "run/"
LOCK = ".lock"
LOCK_PATIENCE_S = 0.5
"""`lock_pid` takes the lock for a moment to test it; a capture that starts just then waits this long."""
RUN_LOCK = ".run-"
_held: list[int] = []

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LockHolder:
    """The process that writes the capture log: a Dagster run or a terminal. UTC by the machine's clock."""

    process: int  # its ID; 0 until it has written it
    since: datetime
    grew: datetime | None = None  # when its log last grew
    host: str = ""  # its machine; empty for this one


def hold_capture_lease(
    settings: Settings, *, run_id: str, on_lost: Callable[[], object], above: int = 0
) -> Lease:
    """Hold the lease by which one process on any machine captures an environment; `on_lost` must stop it.

    `above` is the newest token under which rows were published. Raises `CaptureBusy` when another process
    holds the lease, and as `_acquire`.
    """
    try:
        return _acquire(settings, LEASE, run_id=run_id, above=above, on_lost=on_lost)
    except LeaseHeld as error:
        raise CaptureBusy(f"another capture is running: {error}; stop it before you start this one") from None


def hold_run_lease(settings: Settings, run_id: str) -> Lease:
    """Show every machine that the process of a capture run is alive. Raises as `_acquire`."""
    return _acquire(settings, f"{RUN_LEASE}{run_id}", run_id=run_id)


def _acquire(settings: Settings, name: str, *, above: int = 0, **how: Any) -> Lease:
    """A lease. On a single machine, where locks of files do the same, it may be without the database.

    Raises `LedgerError` when the database that several machines share cannot be used.
    """
    try:
        return Leases.of(settings).acquire(name, ttl_s=settings.capture.lease_s, above=above, **how)
    except LedgerError as error:
        if is_shared(settings):
            raise
        log.warning("the capture continues without a lease (%s): %s", name, error)
        return Lease.without_database(name, above)


def runs_alive(settings: Settings) -> frozenset[str]:
    """The capture runs whose lease has not lapsed, on any machine. `LedgerError` if that cannot be read."""
    try:
        names = Leases.of(settings).holders(RUN_LEASE)
    except LedgerError:
        if is_shared(settings):
            raise
        return frozenset()  # `is_run_alive` knows those of this machine
    return frozenset(name.removeprefix(RUN_LEASE) for name in names)


def read_capture_holder(settings: Settings, dataset: str) -> LockHolder | None:
    """The process that captures the environment, here or elsewhere; None without one.

    Raises `LedgerError` when the database that several machines share cannot be used.
    """
    here = read_lock_holder(Workspace.of(settings).capture, dataset)
    if here or not is_shared(settings):
        return here
    holder = Leases.of(settings).holder(LEASE)
    return LockHolder(holder.process, holder.since, host=holder.host) if holder else None


@contextmanager
def hold_capture_lock(root: Path) -> Iterator[None]:
    """Hold the lock of a capture folder; raises `CaptureBusy` when another process holds it."""
    path = root / LOCK
    give_up = time.monotonic() + LOCK_PATIENCE_S
    while True:
        with files.locked(path, wait=False) as acquired:
            if acquired:
                path.write_text(f"{os.getpid()}\n")
                yield
                return
        if time.monotonic() > give_up:
            raise CaptureBusy(
                f"another capture (process {lock_pid(root) or 'unknown'}) writes to {root}; "
                "stop it before you start this one"
            )
        time.sleep(LOCK_PATIENCE_S / 10)


def lock_pid(root: Path) -> int | None:
    """The ID of the process that captures to `root`: None without one, 0 until it has written its ID."""
    path = root / LOCK
    if not path.exists():
        return None
    with files.locked(path, wait=False) as free:
        text = path.read_text().strip()
        return None if free else int(text) if text.isdecimal() else 0


def claim_run(folder: Path, run_id: str) -> None:
    """Hold the lock of a run until this process ends, and remove the lock files of dead runs."""
    for path in folder.glob(f"{RUN_LOCK}*"):
        with files.locked(path, wait=False) as left_over:
            if left_over:
                path.unlink(missing_ok=True)
    files.make_folder(folder)
    path = folder / f"{RUN_LOCK}{run_id}"
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(handle, fcntl.LOCK_EX)
        # Between the two calls, another claim may have removed the file as a dead run's.
        if _has_name(handle, path):
            break
        os.close(handle)
    _held.append(handle)


def is_run_alive(folder: Path, run_id: str) -> bool:
    """Whether the process of a run still holds its lock."""
    path = folder / f"{RUN_LOCK}{run_id}"
    if not path.exists():
        return False
    with files.locked(path, wait=False) as free:
        return not free


def _has_name(handle: int, path: Path) -> bool:
    """Whether an open file is still found under its path."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def read_lock_holder(root: Path, dataset: str) -> LockHolder | None:
    """The process that captures to a folder; None without one."""
    process = lock_pid(root)
    if process is None:
        return None
    # The lock file is written when the capture starts, a segment whenever records arrive.
    found = list_segments(root / dataset)
    since = _modified(root / LOCK) or real_now()
    return LockHolder(process, since, _modified(found[-1].path) if found else None)


def _modified(path: Path) -> datetime | None:
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except FileNotFoundError:
        return None
