"""Copies of sealed log segments in the object store, in case the capturing machine is lost.

    capture/<dataset>/<log id>/trade_date=YYYY-MM-DD/<segment>.dbn.zst       the segment, zstd
    capture/<dataset>/<log id>/trade_date=YYYY-MM-DD/<segment>.dbn.sha256    proof that the copy was read back

A segment is sealed when a newer one exists, or when nobody captures and its torn tail, if it had one, is cut:
what is copied never changes. The proof is written after the copy was read back and the digest of its content
compared; without it a segment is copied again. Retention compares it with the segment before it removes that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zstandard

from nq_pipeline import files
from nq_pipeline.capture.log.locks import hold_capture_lock
from nq_pipeline.capture.log.recovery import is_torn, recover
from nq_pipeline.capture.log.segments import Segment, list_segments, log_id
from nq_pipeline.errors import CaptureBusy, CaptureError, StoreError
from nq_pipeline.lake.objects import Objects


def copy_sealed_segments(capture: Path, objects: Objects) -> int:
    """Copy the sealed segments below this machine's capture folder that have no proven copy yet.

    Returns how many. `objects` are those below `capture` in the store. Raises `StoreError` if the store does
    not answer, or a copy is not what was written; the segments stay.
    """
    logs = {folder: list_segments(folder) for folder in sorted(capture.glob("*/"))}
    try:
        with hold_capture_lock(capture):
            pass  # a segment that begins from now on is none of these
        newest = {segment.path for segments in logs.values() for segment in segments[-1:]}
    except CaptureBusy:
        logs, newest = {folder: segments[:-1] for folder, segments in logs.items()}, set()
    copied = 0
    for folder, segments in logs.items():
        proven = {one.name for one in objects.list(_log(folder))} if segments else set()
        for segment in segments:
            if f"{copy_name(segment)}.sha256" in proven:
                continue
            if segment.path in newest and not _cut_torn_tail(capture, segment):
                continue
            copy_segment(segment, objects)
            copied += 1
    return copied


def _cut_torn_tail(capture: Path, segment: Segment) -> bool:
    """Cut the tail that a dead capture has left, as the next one would; False if that one is doing so."""
    try:
        if is_torn(segment):
            with hold_capture_lock(capture):
                recover(segment.path.parents[1])
    except CaptureBusy:
        return False
    except CaptureError:  # the header is damaged, and nothing is cut
        pass
    return True


def copy_after_capture(capture: Path, objects: Objects | None, warn: Callable[[str], object]) -> None:
    """Copy what a capture has sealed, if there is an object store; a failure is only a warning."""
    try:
        if objects is not None:
            copy_sealed_segments(capture, objects)
    except (StoreError, OSError) as error:
        warn(f"{error}; `nq retention` copies the capture log again")


def has_proven_copy(segment: Segment, objects: Objects) -> bool:
    """Whether the store has all of a segment, proven by its digest."""
    try:
        return objects.get(f"{copy_name(segment)}.sha256").decode().strip() == _digest(segment.path)
    except FileNotFoundError:
        return False


def copy_name(segment: Segment) -> str:
    """The name of a segment's copy, relative to `capture` and without `.zst`."""
    return f"{_log(segment.path.parents[1])}/{segment.path.parent.name}/{segment.path.name}"


def _log(folder: Path) -> str:
    return f"{folder.name}/{log_id(folder)}"


def copy_segment(segment: Segment, objects: Objects) -> None:
    """Copy a sealed segment and prove the copy; raises as `copy_sealed_segments`."""
    name, digest = copy_name(segment), _digest(segment.path)
    with files.temporary_for(segment.path) as packed, files.temporary_for(segment.path) as back:
        with segment.path.open("rb") as source, packed.open("wb") as target:
            zstandard.ZstdCompressor(3).copy_stream(source, target)
        objects.put_file(f"{name}.zst", packed)
        objects.fetch_file(f"{name}.zst", back)
        if _unpacked_digest(back) != digest:
            raise StoreError(
                f"the copy {objects.uri(name)}.zst is not what was written; the segment stays here, and the "
                "next run copies it again"
            )
    objects.put(f"{name}.sha256", f"{digest}\n".encode())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpacked_digest(path: Path) -> str:
    """The digest of what a zstd file holds; empty for a damaged one."""
    with path.open("rb") as file:
        try:
            content: Any = zstandard.ZstdDecompressor().stream_reader(file)
            return hashlib.file_digest(content, "sha256").hexdigest()
        except zstandard.ZstdError:
            return ""
