"""Reads the records of the log, also while another process appends to it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from nq_pipeline.capture.log.segments import BEGINNING, Position, Segment, list_segments, log_id, sync_data
from nq_pipeline.dbn.framer import Frame, Framer, Head
from nq_pipeline.errors import BadStream, CaptureError

BLOCK = 1024 * 1024
"""Bytes per read."""


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


def tail(
    folder: Path, position: Position = BEGINNING, until: Position | None = None, *, block: int = BLOCK
) -> Iterator[Block]:
    """The whole records of a dataset's log from `position` on, about `block` bytes at a time.

    Ends at `until`, by default at what is there now. That is synced first, so that nothing is read that a
    power cut could undo. The log may grow meanwhile, written by another process. Raises `CaptureError` when
    segments are missing, damaged, or shorter than `position` says.
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
        end = until.offset if until is not None and number == until.segment else None
        yield from _read(segment, offset, end, block, growing=end is None and segment is following[-1])


def _read(segment: Segment, offset: int, end: int | None, block: int, *, growing: bool) -> Iterator[Block]:
    with segment.path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if end is None:
            end = size
            sync_data(file.fileno())
        if max(offset, end) > size:
            raise CaptureError(
                f"{segment.path} ends at byte {size:,}, before the position {max(offset, end):,} that was "
                "already reached: the file was cut; restore the whole file"
            )
        head = read_head(segment, file)
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
            f", or if it is lost delete lake/trades/{folder.name}.published (in an object store "
            f"trades/_published/{folder.name}-{log_id(folder)}): the log is then read from its beginning, "
            "and rows that the lake has are skipped"
        )
    return CaptureError(sentence)


def read_head(segment: Segment, file: BinaryIO) -> Head:
    """The DBN header of a segment; raises `CaptureError` when it cannot be read."""
    try:
        return Head.read(file)
    except BadStream as error:
        raise CaptureError(f"{segment.path} cannot be read ({error}); move it elsewhere") from None
