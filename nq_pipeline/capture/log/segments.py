"""The files of the log, their order, and positions in it."""

from __future__ import annotations

import os
import re
import uuid
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from nq_pipeline.lake.objects import LocalObjects

sync_data = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync
LOG_ID = "log_id"
"""The file with the log's identity."""
_NAME = re.compile(r"(\d+)-(\d+)-(\d+)\.dbn")


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
    """One file of the log."""

    number: int
    session: int  # the number of the segment with which its gateway session began
    start_ns: int  # the instant of its creation
    trade_date: date  # that of the instant
    path: Path


def log_id(folder: Path) -> str:
    """The identity of a dataset's log, made at first use. Each host that captured has a log of its own."""
    path = folder / LOG_ID
    with suppress(FileNotFoundError):
        return path.read_text().strip()
    LocalObjects(folder).put_if_absent(LOG_ID, f"{uuid.uuid4().hex}\n".encode())
    return path.read_text().strip()


def list_segments(folder: Path) -> list[Segment]:
    """The segments of a dataset's log, in order."""
    found = []
    for path in folder.glob("trade_date=*/*.dbn"):
        name = _NAME.fullmatch(path.name)
        if name:
            day = date.fromisoformat(path.parent.name.removeprefix("trade_date="))
            found.append(Segment(int(name[2]), int(name[3]), int(name[1]), day, path))
    return sorted(found)
