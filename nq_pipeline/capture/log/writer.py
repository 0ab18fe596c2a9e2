"""Appends the gateway's records to the log; each is durable at most one sync interval later."""

from __future__ import annotations

import errno
import os
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn, Self

from nq_pipeline import files
from nq_pipeline.capture.log.locks import hold_capture_lock
from nq_pipeline.capture.log.recovery import recover
from nq_pipeline.capture.log.segments import BEGINNING, Position, sync_data
from nq_pipeline.clock import Clock, SystemClock, to_ns
from nq_pipeline.dbn.framer import Frame, Head
from nq_pipeline.errors import LogFailed
from nq_pipeline.market import sessions

SYNC_EVERY_S = 0.05
SEGMENT_BYTES = 256 * 1024 * 1024
SEGMENT_AGE_S = 3600.0

_REMEDY = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "raise the limit of the file size",
    errno.EACCES: "make the folder writable",
    errno.EPERM: "make the folder writable",
    errno.EROFS: "make the folder writable",
}


class CaptureLog:
    """The single writer of a dataset's log. A context manager; one thread appends.

    It locks the capture folder `root` for all datasets. Records are durable at most `sync_every_s`, and one
    fsync, after `append`; 0 syncs every call. A segment ends at its limits of bytes and age, and with its
    trade date. New ones get higher numbers than `after`, even if that segment was lost. `recovery` says how
    the tail of the last capture was repaired; None for an empty log.

    Raises
    ------
    CaptureBusy
        Another process holds the lock.
    LogFailed
        The disk refuses writes. From then on every method raises it: what was appended after `synced`
        may be lost and must be replayed.
    """

    def __init__(
        self,
        root: Path,
        dataset: str,
        *,
        clock: Clock | None = None,
        sync_every_s: float = SYNC_EVERY_S,
        segment_bytes: int = SEGMENT_BYTES,
        segment_age_s: float = SEGMENT_AGE_S,
        after: int = 0,
    ) -> None:
        self.folder = root / dataset
        self._after, self._clock, self._sync_every_s = after, clock or SystemClock(), sync_every_s
        self._segment_bytes, self._segment_age_s = segment_bytes, segment_age_s
        self._failure: str | None = None
        self._handle: int | None = None
        self._head: Head | None = None
        self._session = 0
        self._mappings: dict[int, bytes] = {}
        self._written = self._synced = BEGINNING
        self._syncing = threading.Lock()  # held while the open segment is synced or replaced
        self._closing = threading.Event()
        self._syncer = threading.Thread(target=self._sync_periodically, name="capture-log-sync", daemon=True)
        with ExitStack() as opening:
            try:
                opening.enter_context(hold_capture_lock(root))
                files.make_folder(self.folder)
                self.recovery = recover(self.folder)
            except OSError as error:
                self._fail(error)
            if self.recovery:
                self._written = self._synced = Position(self.recovery.segment.number, self.recovery.kept)
            # Computed now, because the calendar takes a while to load.
            self._trade_date = sessions.trade_date(self._clock.now())
            self._opened, self._began = self._clock.monotonic(), 0
            if sync_every_s:
                self._syncer.start()
            self._release = opening.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def written(self) -> Position:
        """The end of what was appended."""
        return self._written

    @property
    def synced(self) -> Position:
        """The end of what survives a power cut."""
        return self._synced

    def check(self) -> None:
        """Raise `LogFailed` if the log has failed, perhaps in the background."""
        if self._failure:
            raise LogFailed(self._failure)

    def append(self, frame: Frame) -> Position:
        """Write whole records; frames of another stream begin a new segment."""
        self.check()
        if self._handle is None or self._needs_new_segment(frame):
            self._begin_segment(frame.head)
        assert self._handle is not None
        try:
            _write(self._handle, frame.records)
        except OSError as error:
            self._fail(error)
        self._mappings.update(frame.mappings())
        self._written = Position(self._written.segment, self._written.offset + len(frame.records))
        if not self._sync_every_s:
            self.sync()
        return self._written

    def sync(self) -> Position:
        """Make everything appended so far durable."""
        with self._syncing:
            self._sync()
        return self._synced

    def close(self) -> None:
        """Sync, end the segment and release the lock, even if it raises `LogFailed`."""
        self._closing.set()
        if self._syncer.is_alive():
            self._syncer.join()
        try:
            with self._syncing:
                self._seal()
        finally:
            self._release.close()

    # ── the open segment ────────────────────────────────────────────────────────────────────────

    def _needs_new_segment(self, frame: Frame) -> bool:
        return (
            frame.head is not self._head
            or self._written.offset - self._began + len(frame.records) > self._segment_bytes
            or self._clock.monotonic() - self._opened > self._segment_age_s
            or sessions.trade_date(self._clock.now()) != self._trade_date
        )

    def _begin_segment(self, head: Head) -> None:
        with self._syncing:
            self._seal()
            now, number = self._clock.now(), max(self._written.segment, self._after) + 1
            if head is not self._head:
                self._head, self._mappings, self._session = head, {}, number
            self._trade_date = sessions.trade_date(now)
            name = f"{to_ns(now)}-{number:08d}-{self._session:08d}.dbn"
            path = self.folder / f"trade_date={self._trade_date}" / name
            beginning = head.raw + b"".join(self._mappings.values())
            try:
                files.write_atomically(path, beginning)
                self._handle = os.open(path, os.O_WRONLY | os.O_APPEND)
            except OSError as error:
                self._fail(error)
            self._opened, self._began = self._clock.monotonic(), len(beginning)
            self._written = self._synced = Position(number, len(beginning))

    def _seal(self) -> None:
        if self._handle is None:
            self.check()
            return
        try:
            self._sync()
        finally:
            os.close(self._handle)
            self._handle = None

    def _sync(self) -> None:
        self.check()
        written = self._written
        if self._handle is None or written == self._synced:
            return
        try:
            sync_data(self._handle)
            if not os.fstat(self._handle).st_nlink:
                raise FileNotFoundError(errno.ENOENT, "the open segment was deleted")
        except OSError as error:
            # Never retried: after a failed fsync the kernel marks the lost pages clean.
            self._fail(error)
        self._synced = written

    def _sync_periodically(self) -> None:
        while not self._closing.wait(self._sync_every_s):
            try:
                self.sync()
            except LogFailed:
                return  # stored: the next append, sync or close raises it

    def _fail(self, error: OSError) -> NoReturn:
        remedy = _REMEDY.get(error.errno or 0, "check the disk")
        self._failure = (
            f"the capture log in {self.folder} cannot be written ({error.strerror or error}); {remedy} and "
            f"start the capture again: all up to {self._synced} is safe, later records must be replayed"
        )
        raise LogFailed(self._failure) from error


def _write(handle: int, records: memoryview) -> None:
    while records:
        records = records[os.write(handle, records) :]
