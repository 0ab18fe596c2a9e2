"""Proof that the holder of a lease still runs on this machine: a locked file with the holder's name.

The kernel releases the lock when the process dies. So a successor on the same machine need not wait for the
lease to lapse, and a process that was only suspended keeps it.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from urllib.parse import quote

from nq_pipeline import files


class Presence:
    """The lock file of one lease in `folder`."""

    def __init__(self, folder: Path, lease: str) -> None:
        self.path = folder / f"{quote(lease, safe='')}.lock"
        self._handle: int | None = None

    def lock(self) -> bool:
        """Lock the file unless another holder has it; raises `OSError` where it cannot be created."""
        files.make_folder(self.path.parent)
        while True:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                return False
            if _has_name(handle, self.path):  # else the holder before has just removed it
                self._handle = handle
                return True
            os.close(handle)

    def names(self) -> list[str]:
        """The holders that last wrote their name; of those, only one that has the lock is alive."""
        try:
            return self.path.read_text(errors="replace").split()
        except FileNotFoundError:
            return []

    def write(self, *names: str) -> None:
        """Replace the names in the locked file."""
        assert self._handle is not None
        text = "\n".join((*names, "")).encode()
        os.pwrite(self._handle, text, 0)
        os.ftruncate(self._handle, len(text))

    def is_alive(self, holder: str) -> bool | None:
        """Whether a holder on this machine lives; None if the holder never was in this folder."""
        if holder not in self.names():
            return None
        try:
            handle = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:  # removed by a holder that has released it
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    def unlock(self, *, remove: bool = False) -> None:
        if self._handle is None:
            return
        if remove:
            self.path.unlink(missing_ok=True)
        os.close(self._handle)
        self._handle = None


def _has_name(handle: int, path: Path) -> bool:
    """Whether an open file is still found under its path."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
