"""Atomic, durable writes of files, and locks between processes.

A file is written under a temporary name in its folder, synced and renamed, and then the folder is synced.
A reader sees the whole new file or the old one, and a power cut loses neither. Temporary names start with
a dot and end in `.tmp`, so that no glob for data finds them.
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
"""A temporary file that was not written to for this long has lost its writer."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file durably; readers see the whole new file or the old one."""
    make_folder(path.parent)
    with temporary_for(path) as temporary:
        temporary.write_bytes(content)
        rename_durably(temporary, path)


@contextmanager
def temporary_for(path: Path) -> Iterator[Path]:
    """A temporary name in the folder of `path`. A file that still has it at the end is removed."""
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
    """Create a folder and its parents durably."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync(folder.parent)


def sync(path: Path) -> None:
    """fsync a file or a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def stale_temporaries(folder: Path, before: int) -> Iterator[Path]:
    """Temporary files below a folder that were last written before an instant (nanoseconds UTC).

    With `before` set to `GRACE_NS` ago, these are the leftovers of dead processes.
    """
    for path in folder.rglob(TEMPORARY):
        with suppress(FileNotFoundError):  # renamed meanwhile
            if path.stat().st_mtime_ns < before:
                yield path


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold an operating system lock on `path`; without `wait`, yield False if another process holds it.

    The kernel releases the lock when the process dies, so no stale lock remains.
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
