"""What is renamed into place was on the disk before, and its name is on the disk after.

Watched where the operating system is called, because no test can cut the power.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nq_pipeline.files import write_atomically
from nq_pipeline.lake import catalog
from nq_pipeline.lake.archive import RawEntry
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.lake_samples import DAY, NOON, TICKS, ticks

Watched = tuple[str, int]
"""`sync` of an inode, or the inode that was given its name (`name`)."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Watched]:
    """Every fsync and rename of this process, in order, by inode."""
    seen: list[Watched] = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(handle: int) -> None:
        fsync(handle)
        seen.append(("sync", os.fstat(handle).st_ino))

    def watched_replace(old: str | Path, new: str | Path) -> None:
        replace(old, new)
        seen.append(("name", Path(new).stat().st_ino))
        seen.append(("in", Path(new).parent.stat().st_ino))

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    return seen


def entry(body: bytes) -> RawEntry:
    return RawEntry(
        request_id="r", run_id="run", source="barchart", operation="chain", digest="d", url="", base_url="",
        trade_date=DAY, snapshot_ts=NOON, requested_at=NOON, expires=0, sha256="", bytes=len(body),
    )  # fmt: skip


WRITERS: dict[str, Callable[[Path], object]] = {
    "a file": lambda root: write_atomically(root / "folder" / "file", b"content"),
    "rows": lambda root: Workspace(root).lake.append(TICKS, ticks([(DAY, 1, NOON, 0, 1.0)]), run_id="run"),
    "the catalog": lambda root: catalog.publish(Workspace(root).lake),
    "an archived answer": lambda root: Workspace(root).archive.put(entry(b"answer"), b"answer"),
}


@pytest.mark.parametrize("what", WRITERS)
def test_a_file_is_synced_before_its_name_and_the_folder_after(
    what: str, tmp_path: Path, calls: list[Watched]
) -> None:
    WRITERS[what](tmp_path)
    named = [n for n, (kind, _) in enumerate(calls) if kind == "name"]
    assert named
    for n in named:
        file, folder = calls[n][1], calls[n + 1][1]
        assert ("sync", file) in calls[:n], "renamed before its content was on the disk"
        assert ("sync", folder) in calls[n:], "its new name was not put on the disk"
