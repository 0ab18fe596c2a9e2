"""One table on disk: its data files, and the manifest that says which of them are current.

<table>/manifest.json
<table>/trade_date=2025-07-01/00000042.parquet   named after the version that added it
<table>/.lock                                    held while a version is made
<table>/.compaction.lock                         held while files are merged
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from datetime import date
from pathlib import Path

import polars as pl

from nq_pipeline.errors import LakeError
from nq_pipeline.files import locked, make_folder, rename_durably, temporary_for
from nq_pipeline.lake import manifest, parquet
from nq_pipeline.lake.manifest import DATA_FILES, DataFile, Manifest
from nq_pipeline.lake.tables import PARTITION, Table


class TableFiles:
    """The files of `table` in `folder`."""

    def __init__(self, folder: Path, table: Table) -> None:
        self.folder = folder
        self.table = table

    def manifest(self) -> Manifest:
        """The newest version; `LakeError` when the manifest is damaged or lost."""
        return manifest.read(self.folder)

    def publish(self, version: Manifest) -> None:
        """Make a version the newest one; the caller holds the lock."""
        manifest.publish(self.folder, version)

    def lock(self) -> AbstractContextManager[bool]:
        """Lock out other writers of this table; waits for them."""
        return locked(self.folder / ".lock")

    def merge_lock(self, *, wait: bool = True) -> AbstractContextManager[bool]:
        """Lock out other merges of this table. Without `wait`, yields False while one runs."""
        return locked(self.folder / ".compaction.lock", wait=wait)

    def current_paths(self, trade_dates: Collection[date] | None = None) -> list[Path]:
        """The current files of some trade dates, or of all; `LakeError` where one is damaged."""
        return self.checked_paths(self.manifest().of(trade_dates))

    def checked_paths(self, files: Iterable[DataFile]) -> list[Path]:
        """The paths of these files; `LakeError` when one is missing, truncated or not Parquet."""
        paths = []
        for file in files:
            path = self.folder / file.path
            if fault := parquet.find_fault(path, file.bytes):
                raise self.damaged(path, fault)
            paths.append(path)
        return paths

    def damaged(self, path: Path, fault: str) -> LakeError:
        """The error for a damaged data file."""
        return LakeError(
            f"{path} {fault}; restore it from a backup, or remove it from the manifest with "
            f"`nq repair {self.table.name}`"
        )

    def unlisted_paths(self) -> list[Path]:
        """Data files that the manifest lists neither as current nor as superseded."""
        current = self.manifest()
        listed = {file.path for file in current.files} | {file.path for file in current.superseded}
        return [path for path in sorted(self.folder.glob(DATA_FILES)) if self.relative(path) not in listed]

    def relative(self, path: Path) -> str:
        """A data file's path as in the manifest."""
        return path.relative_to(self.folder).as_posix()

    def write(self, version: int, frame: pl.DataFrame, runs: Sequence[str]) -> DataFile:
        """Write rows of one trade date, sorted, as a file that no version lists yet."""
        day = frame.item(0, PARTITION)
        with self.stage(day) as staged:
            written = parquet.write(staged, self.table, [frame], runs)
            return self._place(version, day, 0, staged, written)

    def stage(self, trade_date: date) -> AbstractContextManager[Path]:
        """A temporary path in the folder of a trade date."""
        folder = self.folder / f"{PARTITION}={trade_date.isoformat()}"
        make_folder(folder)
        return temporary_for(folder / "staged.parquet")

    def replace(self, group: Sequence[DataFile], staged: Path, written: parquet.WrittenFile) -> None:
        """Replace files by the staged file into which they were merged, in one manifest version.

        Raises
        ------
        LakeError
            The row counts differ, or one of the files is no longer current.
        """
        name = self.table.name
        if written.rows != sum(file.rows for file in group):
            raise LakeError(f"merging files of {name} changed the number of rows; nothing was replaced")
        with self.lock():
            current = self.manifest()
            if not current.lists(group):
                raise LakeError(f"files of {name} changed while they were merged; nothing was replaced")
            level = 1 + max(file.level for file in group)
            merged = self._place(current.version + 1, group[0].trade_date, level, staged, written)
            self.publish(current.next(add=[merged], remove=group, at=time.time_ns()))

    def _place(
        self, version: int, day: date, level: int, staged: Path, written: parquet.WrittenFile
    ) -> DataFile:
        path = _unused(staged.with_name(f"{version:08d}.parquet"))
        rename_durably(staged, path)
        return DataFile(
            path=self.relative(path),
            trade_date=day,
            rows=written.rows,
            bytes=written.bytes,
            level=level,
            since_min=written.since_min,
            since_max=written.since_max,
            schema_version=self.table.version,
        )


def _unused(path: Path) -> Path:
    """The path, or a numbered variant if a file has it: an unlisted file may hold the only copy of rows."""
    number, free = 0, path
    while free.exists():
        number += 1
        free = path.with_stem(f"{path.stem}-{number}")
    return free
