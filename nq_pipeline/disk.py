"""Recognizes errors that a full or read-only disk caused."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import gettempdir

from nq_pipeline.errors import LedgerError, LogFailed, SandboxError

FULL = (errno.ENOSPC, errno.EDQUOT)
READ_ONLY = (errno.EROFS,)
WORDS_FULL = ("no space left", "disk is full", "disk quota exceeded")
WORDS_READ_ONLY = ("read-only file system", "readonly database")
"""Phrases in libraries' error messages, in lower case."""
LIBRARIES = ("sqlite3", "sqlalchemy", "polars", "duckdb", "_duckdb", "pyarrow")
OURS = (OSError, LedgerError, LogFailed, SandboxError)
"""Our errors that a disk may cause without naming it."""
LEAST = 1024 * 1024
"""A disk with fewer free bytes counts as full."""


def explain_disk_error(error: BaseException, folder: Path) -> str | None:
    """One sentence if a disk caused the error: that of the file it names, of `folder` or of temporary files.

    None for any other or an uncertain cause.
    """
    chain = list(_chain(error))
    named = [Path(str(one.filename)) for one in chain if isinstance(one, OSError) and one.filename]
    places = [_there(path) for path in (*named, folder, Path(gettempdir()))]
    maybe = any(isinstance(one, OURS) or type(one).__module__.partition(".")[0] in LIBRARIES for one in chain)
    fullest = next((place for place in places if _free(place) < LEAST), None)
    if _matches(chain, FULL, WORDS_FULL) or (maybe and fullest):
        disk = fullest or places[0]
        return (
            f"the disk with {disk} is full, {_free(disk) / 2**20:,.1f} MiB are free; `nq retention` removes "
            "old files, or set NQ_DATA_DIR to a folder on another disk"
        )
    locked = next((place for place in places if os.statvfs(place).f_flag & os.ST_RDONLY), None)
    if _matches(chain, READ_ONLY, WORDS_READ_ONLY) or (maybe and locked):
        return (
            f"the disk with {locked or places[0]} is read-only, so nothing can be written; make it writable, "
            "or set NQ_DATA_DIR to another folder"
        )
    return None


def _there(path: Path) -> Path:
    """The path, or its nearest parent that exists."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def _free(place: Path) -> int:
    state = os.statvfs(place)
    return state.f_bavail * state.f_frsize


def _matches(chain: list[BaseException], numbers: tuple[int, ...], words: tuple[str, ...]) -> bool:
    return any(
        (isinstance(one, OSError) and one.errno in numbers)
        or any(phrase in str(one).lower() for phrase in words)
        for one in chain
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes, suppressed ones included."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__
