"""Repairs the end of a log whose process died or lost power while writing."""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from nq_pipeline import files
from nq_pipeline.capture.log.reader import BLOCK, read_head
from nq_pipeline.capture.log.segments import Segment, list_segments
from nq_pipeline.dbn.framer import Framer
from nq_pipeline.errors import BadStream

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recovery:
    """How the newest segment's tail was repaired."""

    segment: Segment
    kept: int  # bytes up to the end of the last whole record
    cut: int  # bytes removed behind it
    aside: Path | None  # where damaged bytes are; None if only the start of a record was removed


def recover(folder: Path) -> Recovery | None:
    """Cut the newest segment after its last whole record and make it durable; requires the lock.

    An incomplete record is removed. Other bytes behind the last record (zeros after a power cut) are kept
    under the segment's name with `.torn`. Raises `CaptureError` when the segment's header cannot be read.
    """
    found = list_segments(folder)
    if not found:
        return None
    segment = found[-1]
    with segment.path.open("r+b") as file:
        whole, damaged = _measure(segment, file)
        size = os.fstat(file.fileno()).st_size
        aside = _set_aside(segment.path, file, whole) if damaged else None
        if aside:
            log.warning("the end of %s was damaged and cut off; %s has it", segment.path, aside.name)
        file.truncate(whole)
        os.fsync(file.fileno())
    return Recovery(segment, whole, size - whole, aside)


def is_torn(segment: Segment) -> bool:
    """Whether `recover` would cut the segment. Raises `CaptureError` when its header cannot be read."""
    with segment.path.open("rb") as file:
        return _measure(segment, file)[0] < os.fstat(file.fileno()).st_size


def _measure(segment: Segment, file: BinaryIO) -> tuple[int, bool]:
    """Where the last whole record ends, and whether something that is no record follows."""
    framer = Framer(read_head(segment, file))
    try:
        while piece := file.read(BLOCK):
            for _ in framer.feed(piece):
                pass
    except BadStream:
        return framer.offset, True
    return framer.offset, False


def _set_aside(path: Path, file: BinaryIO, offset: int) -> Path:
    aside = path.with_name(path.name + ".torn")
    file.seek(offset)
    with files.temporary_for(aside) as temporary:
        with temporary.open("wb") as copy:
            shutil.copyfileobj(file, copy)
        files.rename_durably(temporary, aside)
    return aside
