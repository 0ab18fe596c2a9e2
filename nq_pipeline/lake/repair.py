"""Rebuilds a table's list of files from its data files.

Nothing is deleted. A damaged file is renamed and keeps its bytes. A file whose rows are all in other
files becomes superseded, so that each key still has one row.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date

import orjson
import polars as pl

from nq_pipeline.errors import LakeError
from nq_pipeline.lake import parquet
from nq_pipeline.lake.manifest import DataFile, Manifest
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.table_files import DAMAGED, TableFiles
from nq_pipeline.lake.tables import Table

_NEVER = 2**63 - 1
"""An instant after all others, nanoseconds."""
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
    damaged: tuple[str, ...] = ()
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
            *(f"{self.table}: kept as {path}" for path in self.damaged if f".parquet{DAMAGED}" in path),
            *(f"{self.table}: {rows:,} rows of {day} are in no other file" for day, rows in self.lost),
        ]


def repair(lake: Lake, table: Table) -> RepairResult:
    """Read every file of a table, and rebuild its list of files if something is wrong.

    It holds the locks of this host's writers and merges, so it may run at any time.
    """
    stored = lake.table_files(table)
    try:
        if not stored.exists():
            return RepairResult(table.name, (), 0, 0)
    except LakeError:
        pass
    with stored.merge_lock(), stored.lock():
        known, why = _read_manifest(stored)
        listed = {file.path: file for file in known.files}
        there = {file.path: file for file in stored.data_files()}
        faults = {
            name: fault
            for name, file in there.items()
            if (fault := _read_fault(stored, file, listed.get(name)))
        }
        why += [f"{stored.location(file)} is missing" for name, file in listed.items() if name not in there]
        why += [f"{stored.location(there[name])} {fault}" for name, fault in faults.items()]
        past = {file.path for file in stored.superseded(_NEVER)} if known.version else set()
        why += [
            f"{stored.location(file)} is not on the list"
            for name, file in there.items()
            if name not in listed.keys() | past
        ]
        if not why:
            return RepairResult(table.name, (), known.rows, len(known.files))
        aside = [stored.set_aside(there.pop(name)) for name in faults]
        files = [_describe(stored, file) for file in there.values()]
        current, redundant, partial = _select(stored, files)
        stored.rebuild(current, redundant)
    for file in partial:  # unlisted: append their missing rows; garbage collection removes the files
        lake.recover_rows(table, file)
    now = lake.manifest(table)
    gone = [
        stored.location(file) for name, file in listed.items() if name not in there and name not in faults
    ]
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
    tables = list(map(lake.table_files, lake.tables))
    for whole in (False, True):
        for stored in tables:
            try:
                files = stored.manifest().files
                stored.check(files)
            except LakeError as error:
                return error
            for file in files if whole else ():
                if fault := _read_fault(stored, file, file):
                    return stored.damaged(file, fault)
    return None


def _read_manifest(stored: TableFiles) -> tuple[Manifest, list[str]]:
    """The newest version, or an empty one and the fault if it cannot be read."""
    try:
        return stored.manifest(), []
    except LakeError as error:
        return Manifest(stored.table.name), [str(error).partition(";")[0]]


def _read_fault(stored: TableFiles, file: DataFile, listed: DataFile | None) -> str:
    """The fault of a file, found by reading all of it; empty if there is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with stored.local_copy(file) as path:
            if fault := parquet.find_fault(path, listed.bytes if listed else path.stat().st_size):
                return fault
            with pq.ParquetFile(path) as opened:
                about = opened.metadata.metadata or {}
                if about.get(parquet.TABLE) != stored.table.name.encode():
                    return f"is not a file of {stored.table.name}"
                rows = sum(batch.num_rows for batch in opened.iter_batches())
            orjson.loads(about.get(parquet.RUNS, b"[]"))
        stored.scan([file]).select(stored.table.key).head(1).collect()
    except FileNotFoundError:
        return "is missing"
    except (pa.ArrowException, pl.exceptions.PolarsError, OSError, ValueError) as error:
        return f"cannot be read ({type(error).__name__})"
    return "" if listed is None or rows == listed.rows else f"has {rows:,} of its {listed.rows:,} rows"


def _describe(stored: TableFiles, file: DataFile) -> DataFile:
    """A file's entry in the list, with level 0."""
    import pyarrow.parquet as pq

    with stored.local_copy(file) as path:
        about, size = pq.read_metadata(path), path.stat().st_size
    pruning = pl.col(stored.table.pruning_column).to_physical()
    instants = stored.scan([file]).select(pruning).collect().to_series()
    return replace(
        file,
        rows=about.num_rows,
        bytes=size,
        level=0,
        since_min=int(instants.min()),  # type: ignore[arg-type]
        since_max=int(instants.max()),  # type: ignore[arg-type]
        schema_version=int(about.metadata[parquet.SCHEMA_VERSION]),
    )


def _select(
    stored: TableFiles, files: Sequence[DataFile]
) -> tuple[list[DataFile], list[DataFile], list[DataFile]]:
    """The files to list, those whose rows are all in listed files, and those of which only some rows are.

    Starts with the largest, so that a merged file takes precedence over its parts.
    """
    table = stored.table
    current: list[DataFile] = []
    redundant: list[DataFile] = []
    partial: list[DataFile] = []
    for file in sorted(files, key=lambda file: (-file.rows, file.path)):
        others = [other for other in current if _may_share_keys(table, file, other)]
        new = file.rows
        if others:
            own, theirs = (stored.scan(some).select(table.key) for some in ([file], others))
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
