"""The capture log: the gateway's records on disk before anything else is done with them.

    capture/.lock                                                one capture at a time
    capture/GLBX.MDP3/trade_date=2025-06-10/1749562200000000000-00000017-00000015.dbn

A segment is a DBN file as `databento.DBNStore` reads it: one header, then whole records as the gateway
sent them. Records are only appended, and synced in groups. A segment belongs to one gateway session. If
a session continues in another segment, that segment begins with the session's symbol mappings, so each
can be read alone. The second number of the name orders the segments of all trade dates, whatever the
clock did; the third is the number of the segment with which the session began.

A segment is synced before the next one begins, so only the newest can have a torn tail. A wrong length or
rtype reveals bytes that were never synced. DBN has no checksums, so damage inside a record goes unnoticed.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import BinaryIO, NoReturn, Self

from nq_pipeline import files
from nq_pipeline.capture.locks import LOCK, LockHolder, hold_capture_lock, lock_pid
from nq_pipeline.clock import Clock, SystemClock, to_ns
from nq_pipeline.dbn.framer import Frame, Framer, Head, SymbolMapping
from nq_pipeline.errors import BadStream, CaptureError, LogFailed
from nq_pipeline.market import sessions

SYNC_EVERY_S = 0.05
SEGMENT_BYTES = 256 * 1024 * 1024
SEGMENT_AGE_S = 3600.0
BLOCK = 1024 * 1024
"""Bytes per read."""

_sync_data = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync
_NAME = re.compile(r"(\d+)-(\d+)-(\d+)\.dbn")
_REMEDY = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "raise the limit of the file size",
    errno.EACCES: "make the folder writable",
    errno.EPERM: "make the folder writable",
    errno.EROFS: "make the folder writable",
}


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place between two records of the log, ordered as the log is; `17:4096` as text."""

    segment: int
    offset: int

    @classmethod
    def parse(cls, text: str) -> Position:
        """The inverse of `str()`; raises ValueError for any other text."""
        segment, colon, offset = text.partition(":")
        if not (colon and segment.isdecimal() and offset.isdecimal()):
            raise ValueError(
                f"{text!r} is not a position in a capture log; write SEGMENT:OFFSET, e.g. 17:4096"
            )
        return cls(int(segment), int(offset))

    def __str__(self) -> str:
        return f"{self.segment}:{self.offset}"


BEGINNING = Position(0, 0)


@dataclass(frozen=True, slots=True, order=True)
class Segment:
    """One file of the log, with the instant and the trade date of its creation.

    `session` is the number of the segment with which its gateway session began.
    """

    number: int
    session: int
    start_ns: int
    trade_date: date
    path: Path


@dataclass(frozen=True, slots=True)
class Block:
    """Whole records of one segment."""

    segment: Segment
    frame: Frame

    @property
    def start(self) -> Position:
        return Position(self.segment.number, self.frame.offset)

    @property
    def end(self) -> Position:
        """The position after these records, which a publisher stores with their rows."""
        return Position(self.segment.number, self.frame.end)


@dataclass(frozen=True, slots=True)
class Recovery:
    """How the newest segment's tail was repaired.

    Attributes
    ----------
    kept, cut
        Bytes up to the end of the last whole record, and bytes removed behind it.
    aside
        Where damaged bytes were kept; None if only the start of a record was removed.
    """

    segment: Segment
    kept: int
    cut: int
    aside: Path | None


class CaptureLog:
    """The single writer of a dataset's log. A context manager; one thread appends.

    Parameters
    ----------
    root
        The capture folder, which is locked for all its datasets.
    clock
        Names the segments and decides their trade date.
    sync_every_s
        Records are durable at most this long, and one fsync, after `append`; 0 syncs every call.
    segment_bytes, segment_age_s
        Limits of a segment; a new trade date begins a new segment too.
    after
        New segments get higher numbers than this, even if that segment was lost.

    Attributes
    ----------
    recovery
        How the tail of the last capture was repaired; None for an empty log.

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
        self._after = after
        self._clock = clock or SystemClock()
        self._sync_every_s = sync_every_s
        self._segment_bytes = segment_bytes
        self._segment_age_s = segment_age_s
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

    def tail(self, position: Position = BEGINNING) -> Iterator[Block]:
        """The records from `position` up to what is synced now."""
        return tail(self.folder, position, self._synced)

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
            _sync_data(self._handle)
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


# ── reading ─────────────────────────────────────────────────────────────────────────────────────


def list_segments(folder: Path) -> list[Segment]:
    """The segments of a dataset's log, in order."""
    found = []
    for path in folder.glob("trade_date=*/*.dbn"):
        name = _NAME.fullmatch(path.name)
        if name:
            day = date.fromisoformat(path.parent.name.removeprefix("trade_date="))
            found.append(Segment(int(name[2]), int(name[3]), int(name[1]), day, path))
    return sorted(found)


def tail(
    folder: Path, position: Position = BEGINNING, until: Position | None = None, *, block: int = BLOCK
) -> Iterator[Block]:
    """The whole records of a dataset's log from `position` on, about `block` bytes at a time.

    Ends at `until`, by default at what is there now. That is synced first, so that nothing is read that
    a power cut could undo. The log may grow meanwhile, written by another process.

    Raises
    ------
    CaptureError
        Segments are missing, damaged, or shorter than `position` says.
    """
    following = [s for s in list_segments(folder) if s.number >= position.segment]
    if until is not None:
        following = [s for s in following if s.number <= until.segment]
    if not following and position.segment:
        raise _missing(folder, position.segment, is_published=True)
    first = position.segment or (following[0].number if following else 0)
    for number, segment in enumerate(following, start=first):
        if segment.number != number:
            raise _missing(folder, number, is_published=number == position.segment)
        offset = position.offset if number == position.segment else 0
        if until is not None and number == until.segment:
            yield from _read(segment, offset, until.offset, block)
        else:
            yield from _read(segment, offset, None, block, growing=segment is following[-1])


def read_mappings(folder: Path, position: Position) -> dict[int, SymbolMapping]:
    """instrument_id to its symbol at `position`, for a reader that starts there.

    One segment holds all mappings that its records need.
    """
    known = {}
    for part in tail(folder, Position(position.segment, 0), position):
        for message in part.frame.control():
            if isinstance(message, SymbolMapping):
                known[message.instrument_id] = message
    return known


def recover(folder: Path) -> Recovery | None:
    """Cut the newest segment after its last whole record and make it durable; requires the lock.

    An incomplete record is removed. Other bytes that are no record (zeros after a power cut) are kept
    under the segment's name with `.torn`.

    Raises
    ------
    CaptureError
        The header of the segment cannot be read.
    """
    for leftover in folder.rglob(files.TEMPORARY):
        leftover.unlink()
    found = list_segments(folder)
    if not found:
        return None
    segment = found[-1]
    damaged = False
    with segment.path.open("r+b") as file:
        framer = Framer(_head(segment, file))
        try:
            while piece := file.read(BLOCK):
                for _ in framer.feed(piece):
                    pass
        except BadStream:
            damaged = True
        size = os.fstat(file.fileno()).st_size
        aside = _set_aside(segment.path, file, framer.offset) if damaged else None
        file.truncate(framer.offset)
        os.fsync(file.fileno())
    return Recovery(segment, framer.offset, size - framer.offset, aside)


def _set_aside(path: Path, file: BinaryIO, offset: int) -> Path:
    aside = path.with_name(path.name + ".torn")
    file.seek(offset)
    with files.temporary_for(aside) as temporary:
        with temporary.open("wb") as copy:
            shutil.copyfileobj(file, copy)
        files.rename_durably(temporary, aside)
    return aside


def _read(
    segment: Segment, offset: int, end: int | None, block: int, *, growing: bool = False
) -> Iterator[Block]:
    with segment.path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if end is None:
            end = size
            _sync_data(file.fileno())
        if max(offset, end) > size:
            raise CaptureError(
                f"{segment.path} ends at byte {size:,}, before the position {max(offset, end):,} that was "
                "already reached: the file was cut; restore the whole file"
            )
        head = _head(segment, file)
        framer = Framer(head, offset=max(offset, len(head.raw)))
        file.seek(framer.offset)
        try:
            while piece := file.read(max(0, min(block, end - framer.offset - framer.pending))):
                for frame in framer.feed(piece):
                    yield Block(segment, frame)
        except BadStream as error:
            raise CaptureError(f"{segment.path} is damaged: {error}; restore a whole copy") from None
        if framer.pending and not growing:
            raise CaptureError(f"{segment.path} ends within a record, at byte {framer.offset:,}")


def _missing(folder: Path, number: int, *, is_published: bool) -> CaptureError:
    sentence = f"segment {number} of the capture log in {folder} is missing; restore it"
    if is_published:
        sentence += (
            f", or if it is lost delete lake/trades/{folder.name}.published: the log is then read from its "
            "beginning, and rows that the lake has are skipped"
        )
    return CaptureError(sentence)


def _head(segment: Segment, file: BinaryIO) -> Head:
    try:
        return Head.read(file)
    except BadStream as error:
        raise CaptureError(f"{segment.path} cannot be read ({error}); move it elsewhere") from None


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


def _write(handle: int, records: memoryview) -> None:
    while records:
        records = records[os.write(handle, records) :]
