"""How a file comes into place, whole or not at all, and how writers take turns.

A temporary name in the same folder, fsync, rename, fsync of the folder: a reader sees all of a
file or what was there before, and a power cut loses neither. Temporary names start with a dot
and end in `.tmp`, so that no glob for data finds them.
"""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nq_pipeline.clock import NS_PER_S

TEMPORARY = ".*.tmp"
"""Glob of temporary names."""
GRACE_NS = 3_600 * NS_PER_S
"""What was not written to for so long, nobody writes to any more."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that a reader sees all of it or what was there before."""
    make_folder(path.parent)
    with temporary_for(path) as temporary:
        temporary.write_bytes(content)
        rename_durably(temporary, path)


@contextmanager
def temporary_for(path: Path) -> Iterator[Path]:
    """A fresh name beside `path` to write to; whatever is still there at the end is removed."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def rename_durably(temporary: Path, path: Path) -> None:
    """Rename a written file to its final name, durably."""
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents so that their names survive a power cut."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync(folder.parent)


def sync(path: Path) -> None:
    """fsync of a file or a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def stale_temporaries(folder: Path, before: int) -> Iterator[Path]:
    """Temporary files below a folder that were last written before an instant (nanoseconds UTC).

    With an instant `GRACE_NS` ago: what processes left that died.
    """
    for path in folder.rglob(TEMPORARY):
        with suppress(FileNotFoundError):  # put in place meanwhile
            if path.stat().st_mtime_ns < before:
                yield path


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the operating system's lock on `path`; without `wait`, yields False when it is taken.

    The kernel drops the lock when the process dies, however it dies, so none is ever left over.
    """
    make_folder(path.parent)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)
