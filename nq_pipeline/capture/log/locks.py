"""Who is capturing: operating-system locks, which the kernel releases when a process dies.

Dagster's run status cannot tell. After a power cut a run counts as started for ever, and a cancelled
one may still be running. So each capture run holds a lock named after it while its process lives, and
whoever writes the capture log holds the lock of the capture folder.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from nq_pipeline import files
from nq_pipeline.capture.log.segments import list_segments
from nq_pipeline.errors import CaptureBusy

LOCK = ".lock"
LOCK_PATIENCE_S = 0.5
"""`lock_pid` takes the lock for a moment to test it; a capture that starts just then waits this long."""
RUN_LOCK = ".run-"
_held: list[int] = []


@dataclass(frozen=True, slots=True)
class LockHolder:
    """The process that writes the capture log: a Dagster run or a terminal.

    Attributes
    ----------
    process
        Its process ID; 0 until it has written it.
    since, grew
        When it started, and when its log last grew; UTC by the machine's clock.
    """

    process: int
    since: datetime
    grew: datetime | None = None


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
    since = _modified(root / LOCK) or datetime.now(UTC)
    return LockHolder(process, since, _modified(found[-1].path) if found else None)


def _modified(path: Path) -> datetime | None:
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except FileNotFoundError:
        return None
