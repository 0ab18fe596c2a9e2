"""Rebuilds a table's manifest from its data files.

Nothing is deleted. A damaged file is renamed and keeps its bytes. A file whose rows are all in other
files becomes superseded, so that each key still has one row.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import orjson
import polars as pl

from nq_pipeline.errors import LakeError
from nq_pipeline.files import sync
from nq_pipeline.lake import manifest, parquet
from nq_pipeline.lake.manifest import DATA_FILES, DataFile, Manifest, Superseded
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.table_files import ManifestFiles
from nq_pipeline.lake.tables import PARTITION, Table

DAMAGED = ".damaged"
"""Suffix of a damaged file's new name."""
LISTED_FAULTS = 20
"""Maximum of faults that the result lists for a table."""


@dataclass(frozen=True, slots=True)
class RepairResult:
    """What a repair did to one table.

    Attributes
    ----------
    why
        The faults; if there are none, nothing was changed.
    rows, files
        Size of the table after the repair.
    damaged
        Files removed from the manifest: the new name, or for a missing file the old one.
    lost
        Counts of lost rows by trade date; unknown without a readable manifest.
    """

    table: str
    why: tuple[str, ...]
    rows: int
    files: int
    damaged: tuple[Path, ...] = ()
    lost: tuple[tuple[date, int], ...] = ()

    @property
    def lines(self) -> list[str]:
        """The result for a person: faults, actions, losses."""
        wrong = [f"{self.table}: {why}" for why in self.why[:LISTED_FAULTS]]
        more = len(self.why) - len(wrong)
        return [
            *wrong,
            *([f"{self.table}: and {more:,} more files"] if more else []),
            f"{self.table}: the manifest was rebuilt: {self.files:,} files, {self.rows:,} rows",
            *(f"{self.table}: kept as {path}" for path in self.damaged if path.exists()),
            *(f"{self.table}: {rows:,} rows of {day} are in no other file" for day, rows in self.lost),
        ]


def repair(lake: Lake, table: Table) -> RepairResult:
    """Read every file of a table, and rebuild its manifest if something is wrong.

    It holds the locks of writers and merges, so it may run at any time.
    """
    stored = lake.table_files(table)
    if not stored.exists():
        return RepairResult(table.name, (), 0, 0)
    assert isinstance(stored, ManifestFiles)
    folder = stored.folder
    with stored.merge_lock(), stored.lock():
        known, why = _read_manifest(folder)
        listed = {file.path: file for file in known.files}
        there = {stored.relative(path): path for path in sorted(folder.glob(DATA_FILES))}
        faults = {
            name: fault
            for name, path in there.items()
            if (fault := _read_fault(table, path, listed.get(name)))
        }
        why += [f"{folder / name} is missing" for name in listed if name not in there]
        why += [f"{folder / name} {fault}" for name, fault in faults.items()]
        past = {file.path for file in known.superseded}
        why += [
            f"{path} is not on the list" for name, path in there.items() if name not in listed.keys() | past
        ]
        if not why:
            return RepairResult(table.name, (), known.rows, len(known.files))
        aside = [_set_aside(there.pop(name)) for name in faults]
        files = [_describe(stored, path) for path in there.values()]
        current, redundant, partial = _select(lake, table, files)
        at = time.time_ns()
        made = Manifest(
            table=table.name,
            version=1 + max([known.version, *(_number(path) for path in there.values())], default=0),
            files=tuple(current),
            superseded=tuple(Superseded(file.path, at) for file in redundant),
        )
        stored.publish(made)
    for file in partial:  # unlisted: append their missing rows; garbage collection removes the files
        lake.recover_rows(table, file)
    now = lake.manifest(table)
    gone = [folder / name for name in listed if name not in there and name not in faults]
    return RepairResult(
        table=table.name,
        why=tuple(why),
        rows=now.rows,
        files=len(now.files),
        damaged=(*aside, *gone),
        lost=tuple(_lost(known, now)),
    )


def find_damage(lake: Lake) -> LakeError | None:
    """The first damage in the lake. Checks sizes and ends of all files first, then reads them completely."""
    tables = [stored for stored in map(lake.table_files, lake.tables) if stored.exists()]
    for whole in (False, True):
        for stored in tables:
            try:
                files = stored.manifest().files
                stored.check(files)
            except LakeError as error:
                return error
            for file in files if whole else ():
                if fault := _read_fault(stored.table, stored.folder / file.path, file):
                    return stored.damaged(file, fault)
    return None


def _read_manifest(folder: Path) -> tuple[Manifest, list[str]]:
    """The manifest, or an empty one and the fault if it cannot be read."""
    try:
        return manifest.read(folder), []
    except LakeError as error:
        return Manifest(folder.name), [str(error).partition(";")[0]]


def _read_fault(table: Table, path: Path, listed: DataFile | None) -> str:
    """The fault of a file, found by reading all of it; empty if there is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if fault := parquet.find_fault(path, listed.bytes if listed else path.stat().st_size):
        return fault
    try:
        with pq.ParquetFile(path) as file:
            about = file.metadata.metadata or {}
            if about.get(parquet.TABLE) != table.name.encode():
                return f"is not a file of {table.name}"
            rows = sum(batch.num_rows for batch in file.iter_batches())
        orjson.loads(about.get(parquet.RUNS, b"[]"))
        parquet.scan(table, [str(path)]).select(table.key).head(1).collect()
    except (pa.ArrowException, pl.exceptions.PolarsError, OSError, ValueError) as error:
        return f"cannot be read ({type(error).__name__})"
    return "" if listed is None or rows == listed.rows else f"has {rows:,} of its {listed.rows:,} rows"


def _set_aside(path: Path) -> Path:
    """Rename a damaged file so that nothing reads it; never replaces another file."""
    number, aside = 0, path.with_name(path.name + DAMAGED)
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}{DAMAGED}-{number}")
    path.rename(aside)
    sync(path.parent)
    return aside


def _describe(stored: ManifestFiles, path: Path) -> DataFile:
    """A file's manifest entry, with level 0."""
    import pyarrow.parquet as pq

    about = pq.read_metadata(path)
    table = stored.table
    pruning = pl.col(table.pruning_column).to_physical()
    instants = parquet.scan(table, [str(path)]).select(pruning).collect().to_series()
    return DataFile(
        path=stored.relative(path),
        trade_date=date.fromisoformat(path.parent.name.removeprefix(f"{PARTITION}=")),
        rows=about.num_rows,
        bytes=path.stat().st_size,
        level=0,
        since_min=int(instants.min()),  # type: ignore[arg-type]
        since_max=int(instants.max()),  # type: ignore[arg-type]
        schema_version=int(about.metadata[parquet.SCHEMA_VERSION]),
    )


def _select(
    lake: Lake, table: Table, files: Sequence[DataFile]
) -> tuple[list[DataFile], list[DataFile], list[DataFile]]:
    """The files to list, those whose rows are all in listed files, and those of which only some rows are.

    Starts with the largest, so that a merged file takes precedence over its parts.
    """
    current: list[DataFile] = []
    redundant: list[DataFile] = []
    partial: list[DataFile] = []
    for file in sorted(files, key=lambda file: (-file.rows, file.path)):
        others = [
            str(lake.folder(table) / other.path) for other in current if _may_share_keys(table, file, other)
        ]
        new = file.rows
        if others:
            own = parquet.scan(table, [str(lake.folder(table) / file.path)]).select(table.key)
            theirs = parquet.scan(table, others).select(table.key)
            new = own.join(theirs, on=table.key, how="anti").select(pl.len()).collect().item()
        (current if new == file.rows else partial if new else redundant).append(file)
    return sorted(current, key=lambda file: file.path), redundant, partial


def _may_share_keys(table: Table, one: DataFile, other: DataFile) -> bool:
    if one.trade_date != other.trade_date:
        return False
    # Rows with the same key have the same instant.
    apart = one.since_max < other.since_min or other.since_max < one.since_min
    return not (table.pruning_column in table.key and apart)


def _lost(known: Manifest, now: Manifest) -> Iterator[tuple[date, int]]:
    for day in sorted({file.trade_date for file in known.files}):
        fewer = _rows(known.of({day})) - _rows(now.of({day}))
        if fewer > 0:
            yield day, fewer


def _rows(files: Collection[DataFile]) -> int:
    return sum(file.rows for file in files)


def _number(path: Path) -> int:
    """The version in a file's name; 0 for any other name."""
    number = path.stem.partition("-")[0]
    return int(number) if number.isdecimal() else 0
