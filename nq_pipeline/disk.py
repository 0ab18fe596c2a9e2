"""Recognizes errors that a full or read-only disk caused, and reserves room before something is paid for."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path
from tempfile import TemporaryFile, gettempdir

from nq_pipeline.errors import LedgerError, LogFailed, NoRoom, SandboxError

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


class Room:
    """Disk space that is reserved by a file without a name, which a killed process does not leave behind."""

    def __init__(self, file: FileIO, size: int) -> None:
        self._file, self._size = file, size

    def give_back(self, size: int) -> None:
        """Free so many bytes, which are about to be written."""
        self._size = max(0, self._size - size)
        self._file.truncate(self._size)


@contextmanager
def reserve_room(folder: Path, size: int) -> Iterator[Room]:
    """Reserve disk space for an answer of `size` bytes in a folder, and a little more.

    Vendors say how long an answer is uncompressed. It arrives compressed, so the room is several times what
    it takes; how far it compresses is not known before it is paid for.

    Raises
    ------
    NoRoom
        The disk, a quota or a limit of the file size does not allow it.
    """
    place, wanted = _there(folder), size + LEAST
    with ExitStack() as held:
        try:
            file = held.enter_context(TemporaryFile(dir=place, buffering=0))
            if not _allocate(file, wanted) and _free(place) < wanted:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise NoRoom(
                f"an answer of up to {size / 2**20:,.1f} MiB was not requested, because {place} has no room "
                f"for it ({error.strerror}); free some space there, for example with `nq retention`"
            ) from None
        yield Room(file, wanted)


def _allocate(file: FileIO, size: int) -> bool:
    """Reserve the blocks of a file; False on macOS and on file systems that cannot."""
    allocate = getattr(os, "posix_fallocate", None)
    try:
        if allocate is not None:
            allocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        return False
    return allocate is not None


def is_full(error: BaseException) -> bool:
    """Whether an error says that a file could not grow."""
    return _matches([error], (*FULL, errno.EFBIG), (*WORDS_FULL, "file too large"))


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
