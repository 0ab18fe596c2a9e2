"""One table: its data files, and the versions that say which of them are current.

Two formats keep the same contract. `ManifestFiles` (here) is a folder of this machine with a small JSON
manifest. `delta.files.DeltaFiles` is a Delta table, in a folder or in an object store.

<table>/manifest.json
<table>/trade_date=2025-07-01/00000042.parquet   named after the version that added it
<table>/.lock                                    held while a version is made
<table>/.compaction.lock                         held while files are merged
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from datetime import date
from pathlib import Path

import polars as pl

from nq_pipeline.clock import real_ns
from nq_pipeline.errors import LakeError
from nq_pipeline.files import locked, make_folder, rename_durably, sync, temporary_for
from nq_pipeline.lake import manifest, parquet
from nq_pipeline.lake.manifest import DATA_FILE, DataFile, Manifest, Superseded
from nq_pipeline.lake.objects import LocalObjects, Objects
from nq_pipeline.lake.tables import PARTITION, Table

DAMAGED = ".damaged"
"""Suffix of a damaged file's new name."""
DataFiles = Sequence[DataFile]


class TableFiles(ABC):
    """The files and versions of `table`.

    Parameters
    ----------
    folder
        The table's folder on this host. It holds the locks and files that are being written; without an
        object store also the table itself.
    table
        The table; `stored` is the table as its files have it.
    objects
        Where the data files are.
    """

    is_delta = False

    def __init__(self, folder: Path, table: Table, stored: Table, objects: Objects) -> None:
        self.folder = folder
        self.table = table
        self.stored = stored
        self.objects = objects
        self._place = objects.uri()

    @abstractmethod
    def exists(self) -> bool:
        """Whether the table was ever written."""

    @abstractmethod
    def manifest(self, marks: Collection[str] = ()) -> Manifest:
        """The newest version, with these marks; `LakeError` when it is damaged or lost."""

    @abstractmethod
    def create(self, empty: Manifest) -> Manifest:
        """The first version of a table that was never written; it has no files."""

    @abstractmethod
    def commit(
        self, base: Manifest, *, add: DataFiles = (), remove: DataFiles = (), marks: Mapping[str, int] = {}
    ) -> Manifest | None:
        """Make the version after `base`, durably and all or nothing; None if another writer was first."""

    @abstractmethod
    def scan(self, files: DataFiles) -> pl.LazyFrame:
        """The rows of some files, which need not be current. The files are not checked."""

    @abstractmethod
    def put(self, base: Manifest, day: date, level: int, staged: Path) -> str:
        """Move a staged file, durably, to where the version after `base` may list it; returns its path."""

    @abstractmethod
    def removed(self, before: int) -> set[str]:
        """The paths of files that were replaced before an instant (ns UTC), as far as the versions say."""

    @abstractmethod
    def describe(self, path: str, size: int) -> DataFile | None:
        """What the path of a data file says of it; None for any other file."""

    @abstractmethod
    def rebuild(self, files: DataFiles, redundant: DataFiles) -> None:
        """Make a version with exactly these files, whatever the newest one is, or if it cannot be read.

        All rows of the `redundant` files are in others; they go after an hour.
        """

    def encode(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Rows of the table in the types of its files."""
        return frame

    def forget(self, before: int) -> None:
        """After `remove`: drop what the versions still say about files replaced before an instant."""
        return

    def stamp(self) -> object:
        """A value that is different for each version, cheaper to read than the version."""
        return self.manifest().version

    def tidy(self) -> None:
        """Remove what the format itself no longer needs."""
        return

    # ── the same for every format ───────────────────────────────────────────────────────────────

    def lock(self) -> AbstractContextManager[bool]:
        """Lock out this host's other writers of the table; waits for them."""
        return locked(self.folder / ".lock")

    def merge_lock(self, *, wait: bool = True) -> AbstractContextManager[bool]:
        """Lock out this host's other merges of the table. Without `wait`, yields False while one runs."""
        return locked(self.folder / ".compaction.lock", wait=wait)

    def stage(self, trade_date: date) -> AbstractContextManager[Path]:
        """A temporary path in the folder of a trade date."""
        folder = self.folder / f"{PARTITION}={trade_date.isoformat()}"
        make_folder(folder)
        return temporary_for(folder / "staged.parquet")

    def location(self, file: DataFile) -> str:
        """The path or URI of a file."""
        return f"{self._place}/{file.path}"

    def find_fault(self, file: DataFile, whole_at: int = 0) -> str:
        """What is wrong with a file, as `parquet.find_fault` says."""
        # An object store has whole objects only; one that is gone shows when it is read.
        return parquet.find_fault(self.location(file), file.bytes, whole_at) if self.objects.is_local else ""

    def read_runs(self, files: DataFiles) -> list[str]:
        """The runs that the footers of some files name, sorted."""
        return parquet.read_runs(Path(self.location(file)) for file in files)

    def local_copy(self, file: DataFile) -> AbstractContextManager[Path]:
        """A local file with the content of a data file; `FileNotFoundError` if it is not there."""
        return self.objects.local_copy(file.path)

    def set_aside(self, file: DataFile) -> str:
        """Rename a damaged file so that nothing reads it; returns the new path or URI."""
        return set_path_aside(Path(self.location(file)))

    def remove(self, files: Iterable[DataFile]) -> int:
        """Delete files that no version lists; returns how many there were."""
        names = [file.path for file in files]
        self.objects.delete(names)
        return len(names)

    def data_files(self) -> list[DataFile]:
        """Every data file that is there, ordered by path; only paths, and what they say, are known."""
        return [file for file, _ in self._stored_files()]

    def superseded(self, before: int) -> list[DataFile]:
        """Files that were replaced before an instant (ns UTC) and are still there."""
        removed = self.removed(before)
        return [file for file in self.data_files() if file.path in removed] if removed else []

    def unlisted(self, before: int) -> list[DataFile]:
        """Data files last written before an instant (ns UTC) that no version lists."""
        found = [file for file, at in self._stored_files() if at < before]
        if not found:
            return []
        listed = {file.path for file in self.manifest().files} | self.removed(real_ns())
        return [file for file in found if file.path not in listed]

    def _stored_files(self) -> Iterator[tuple[DataFile, int]]:
        """Every data file that is there, and when it was written."""
        for path, size, at in self.objects.list():
            if file := self.describe(path, size):
                yield file, at

    def write_staged(
        self, staged: Path, frames: Iterable[pl.DataFrame], runs: Sequence[str], *, group_rows: int
    ) -> parquet.WrittenFile:
        """Write sorted frames of one trade date to a local file."""
        return parquet.write(staged, self.stored, map(self.encode, frames), runs, group_rows=group_rows)

    def place(
        self, base: Manifest, day: date, level: int, staged: Path, written: parquet.WrittenFile
    ) -> DataFile:
        """Move a staged file, durably, to where the version after `base` may list it."""
        return DataFile(
            path=self.put(base, day, level, staged),
            trade_date=day,
            rows=written.rows,
            bytes=written.bytes,
            level=level,
            since_min=written.since_min,
            since_max=written.since_max,
            schema_version=self.table.version,
        )

    def write(self, base: Manifest, frame: pl.DataFrame, runs: Sequence[str]) -> DataFile:
        """Write rows of one trade date, sorted, as a file that no version lists yet."""
        day = frame.item(0, PARTITION)
        with self.stage(day) as staged:
            written = self.write_staged(staged, [frame], runs, group_rows=parquet.ROW_GROUP_ROWS)
            return self.place(base, day, 0, staged, written)

    def replace(self, group: DataFiles, staged: Path, written: parquet.WrittenFile) -> bool:
        """Replace files by the staged file into which they were merged, in one version.

        False, with nothing replaced, if another host has replaced one of them meanwhile. Raises `LakeError`
        when the row counts differ.
        """
        if written.rows != sum(file.rows for file in group):
            raise LakeError(
                f"merging files of {self.table.name} changed the number of rows; nothing was replaced"
            )
        level = 1 + max(file.level for file in group)
        merged: DataFile | None = None
        with self.lock():
            while True:
                current = self.manifest()
                if not current.lists(group):
                    if merged and current.lists([merged]):  # the answer to our commit was lost
                        return True
                    self.remove([merged] if merged else [])
                    return False
                merged = merged or self.place(current, group[0].trade_date, level, staged, written)
                if self.commit(current, add=[merged], remove=group):
                    return True

    def check_sizes(self, files: Iterable[DataFile]) -> None:
        """`LakeError` when a file is missing or has another size, also in an object store."""
        there = {file.path: file.bytes for file in self.data_files()}
        for file in files:
            if (size := there.get(file.path)) != file.bytes:
                what = "is missing" if size is None else f"has {size:,} of its {file.bytes:,} bytes"
                raise self.damaged(file, what)

    def check(self, files: Iterable[DataFile]) -> list[str]:
        """The locations of these files; `LakeError` when one is missing, truncated or not Parquet."""
        locations = []
        for file in files:
            if fault := self.find_fault(file):
                raise self.damaged(file, fault)
            locations.append(self.location(file))
        return locations

    def damaged(self, file: DataFile, fault: str) -> LakeError:
        """The error for a damaged data file."""
        return LakeError(
            f"{self.location(file)} {fault}; restore it from a backup, or remove it from the manifest with "
            f"`nq repair {self.table.name}`"
        )


class ManifestFiles(TableFiles):
    """A table in a folder of this machine, with a manifest. Every writer holds its lock."""

    def __init__(self, folder: Path, table: Table) -> None:
        super().__init__(folder, table, table, LocalObjects(folder))

    def exists(self) -> bool:
        return self.folder.is_dir()

    def manifest(self, marks: Collection[str] = ()) -> Manifest:
        return manifest.read(self.folder)

    def stamp(self) -> object:
        try:
            found = (self.folder / manifest.NAME).stat()
        except FileNotFoundError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size

    def create(self, empty: Manifest) -> Manifest:
        # So that data files without a manifest mean that it was lost.
        manifest.publish(self.folder, empty)
        return empty

    def commit(
        self, base: Manifest, *, add: DataFiles = (), remove: DataFiles = (), marks: Mapping[str, int] = {}
    ) -> Manifest | None:
        made = base.next(add=add, remove=remove, marks=marks, at=real_ns())
        manifest.publish(self.folder, made)
        return made

    def scan(self, files: DataFiles) -> pl.LazyFrame:
        return parquet.scan(self.table, [self.location(file) for file in files])

    def put(self, base: Manifest, day: date, level: int, staged: Path) -> str:
        path = _unused(staged.with_name(f"{base.version + 1:08d}.parquet"))
        rename_durably(staged, path)
        return path.relative_to(self.folder).as_posix()

    def removed(self, before: int) -> set[str]:
        return {file.path for file in self.manifest().superseded if file.at < before}

    def forget(self, before: int) -> None:
        manifest.publish(self.folder, self.manifest().forget(before))

    def describe(self, path: str, size: int) -> DataFile | None:
        # A folder within a partition is not of the table.
        return DataFile(path, day_of(path), 0, size, 0, 0, 0, 0) if re.match(DATA_FILE, path) else None

    def rebuild(self, files: DataFiles, redundant: DataFiles) -> None:
        try:
            known = self.manifest()
        except LakeError:
            known = Manifest(self.table.name)
        at, there = real_ns(), self.data_files()
        version = max([known.version, *(_number(file.path) for file in there)], default=0)
        gone = tuple(Superseded(file.path, at) for file in redundant)
        manifest.publish(self.folder, Manifest(self.table.name, version + 1, tuple(files), gone, known.marks))


def day_of(path: str) -> date:
    """The trade date of a data file, from its path below the table."""
    return date.fromisoformat(path.partition("/")[0].removeprefix(f"{PARTITION}="))


def remove_paths(paths: Iterable[Path]) -> int:
    """Remove existing files; returns how many."""
    removed = 0
    for path in paths:
        with suppress(FileNotFoundError):
            path.unlink()
            removed += 1
    return removed


def set_path_aside(path: Path) -> str:
    """Rename a damaged file or folder so that nothing reads it; never replaces another. The new path."""
    number, aside = 0, path.with_name(path.name + DAMAGED)
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}{DAMAGED}-{number}")
    path.rename(aside)
    sync(path.parent)
    return str(aside)


def _unused(path: Path) -> Path:
    """The path, or a numbered variant if a file has it: an unlisted file may hold the only copy of rows."""
    number, free = 0, path
    while free.exists():
        number += 1
        free = path.with_stem(f"{path.stem}-{number}")
    return free


def _number(path: str) -> int:
    """The version in a file's name; 0 for any other name."""
    number = Path(path).stem.partition("-")[0]
    return int(number) if number.isdecimal() else 0
