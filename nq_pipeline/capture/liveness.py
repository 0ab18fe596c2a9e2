"""Who is alive: locks of the operating system, which the kernel drops when a process dies.

Dagster's run status tells neither: after a power cut a run counts as started for ever, and one
marked as cancelled may still run. A run of the capture therefore holds a lock named after it for
as long as its process lives, and the capture log has its own.
"""

from __future__ import annotations

import fcntl
import os
from datetime import UTC, datetime
from pathlib import Path

from nq_pipeline import files
from nq_pipeline.capture import log
from nq_pipeline.capture.capture_policy import Recorder

_RUN = ".run-"
_held: list[int] = []


def claim(folder: Path, run_id: str) -> None:
    """Hold the lock of a run until this process ends: it is alive until its last event is written."""
    for path in folder.glob(f"{_RUN}*"):
        with files.locked(path, wait=False) as left_over:
            if left_over:
                path.unlink(missing_ok=True)
    files.make_folder(folder)
    mine = folder / f"{_RUN}{run_id}"
    while True:
        handle = os.open(mine, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(handle, fcntl.LOCK_EX)
        # Between the two, another claim may have taken the file for a left-over one.
        if _is_at(handle, mine):
            break
        os.close(handle)
    _held.append(handle)


def is_alive(folder: Path, run_id: str) -> bool:
    """Whether the process of a run holds its lock."""
    path = folder / f"{_RUN}{run_id}"
    if not path.exists():
        return False
    with files.locked(path, wait=False) as free:
        return not free


def recorder(folder: Path, dataset: str) -> Recorder | None:
    """Whoever captures to a folder, a Dagster run or a terminal; None when nobody does."""
    process = log.holder(folder)
    if process is None:
        return None
    # The lock file was written when the capture began, a segment when records last came.
    segments = log.segments(folder / dataset)
    grew = _changed(segments[-1].path) if segments else None
    since = _changed(folder / log.LOCK) or datetime.now(UTC)
    return Recorder(process, since, grew)


def _is_at(handle: int, path: Path) -> bool:
    """Whether an open file still has its name."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _changed(path: Path) -> datetime | None:
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except FileNotFoundError:
        return None
