"""The lake: Parquet tables by trade date that many may read while some write.

    lake/<table>/manifest.json                            which files are current
    lake/<table>/trade_date=2025-07-01/00000042.parquet   named after the version that brought it

Read through `Lake.scan` or the DuckDB catalog: a glob over the folders would also find files
that were merged away within the last hour and count their rows twice.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl

from nq_pipeline.clock import to_ns
from nq_pipeline.errors import LakeError
from nq_pipeline.files import (
    GRACE_NS,
    left_over,
    locked,
    make_folder,
    put_in_place,
    temporary_for,
)
from nq_pipeline.lake import compaction, manifest, parquet
from nq_pipeline.lake.manifest import DATA_FILES, DataFile, Manifest
from nq_pipeline.lake.tables import INSTANT, PARTITION, TABLES, Table, conform

BRING_BACK_ROWS = 4 * parquet.ROW_GROUP_ROWS
"""Rows of an unlisted file that are in memory at a time."""


@dataclass(frozen=True, slots=True)
class Appended:
    """What an append did.

    Attributes
    ----------
    rows
        Rows that were new.
    known
        Rows left out because their key was there already, or twice in the frame.
    files
        The files written, one per trade date.
    version
        Manifest version that shows the rows.
    """

    rows: int
    known: int
    files: tuple[Path, ...]
    version: int


@dataclass(frozen=True, slots=True)
class Appends:
    """What appending to several tables did: new rows by table, and why a table took none."""

    rows: dict[str, int] = field(default_factory=dict)
    failures: list[LakeError] = field(default_factory=list)

    def check(self) -> None:
        """Raise the first failure."""
        if self.failures:
            raise self.failures[0]


class Lake:
    """The tables below `root` (`<data>/<environment>/lake`).

    Safe for any number of processes and threads: writers of a table take turns by an operating
    system lock, readers need none. Bookkeeping uses the machine's clock, never a pinned one,
    because it protects readers that are running now.

    Parameters
    ----------
    tables
        The tables it may hold.
    """

    def __init__(self, root: Path, tables: Iterable[Table] = TABLES.values()) -> None:
        self.root = root
        self.tables = tuple(tables)

    def append(
        self, table: Table, frame: pl.DataFrame, *, run_id: str, now: datetime | None = None
    ) -> Appended:
        """Add the rows whose key is not there yet, durably and all at once.

        A call that was killed is completed by making it again. Costs the new rows and the files
        of their trade dates that overlap them in time, not the size of the table.

        Parameters
        ----------
        now
            Tells which trade dates are over, for merging their files; the machine's clock when not
            given.

        Raises
        ------
        LakeError
            The frame is not what the table declares, or the table is damaged there.
        """
        return self._append(table, conform(table, frame), [run_id], now)

    def _append(
        self, table: Table, frame: pl.DataFrame, runs: Sequence[str], now: datetime | None = None
    ) -> Appended:
        distinct = _distinct(table, frame)
        with locked(self.folder(table) / ".lock"):
            current = self.manifest(table)
            new = self._unknown(table, current, distinct)
            if new.height and not current.version:
                manifest.publish(self.folder(table), current)  # data files without one mean that it was lost
            added = [self._write(table, current.version + 1, part, runs) for part in _by_trade_date(new)]
            if added:
                current = current.next(add=added, at=time.time_ns())
                manifest.publish(self.folder(table), current)
        for day in {file.trade_date for file in added}:
            if sum(file.level == 0 for file in current.of({day})) >= compaction.FAN_IN:
                compaction.compact(self, table, day, now=now or datetime.now(UTC), wait=False)
        files = tuple(self.folder(table) / file.path for file in added)
        return Appended(new.height, frame.height - new.height, files, current.version)

    def append_all(self, frames: Iterable[tuple[Table, pl.DataFrame]], *, run_id: str) -> Appends:
        """Append to several tables in this order; one that is damaged does not keep the others from it.

        The last table says that a run is complete, so it gets rows only when all others got theirs.
        """
        *parts, last = frames
        done = Appends()
        for table, frame in parts:
            self._append_one(table, frame, run_id, done)
        done.rows[last[0].name] = 0
        if not done.failures:
            self._append_one(*last, run_id, done)
        return done

    def _append_one(self, table: Table, frame: pl.DataFrame, run_id: str, done: Appends) -> None:
        try:
            done.rows[table.name] = self.append(table, frame, run_id=run_id).rows
        except LakeError as error:
            done.rows[table.name] = 0
            done.failures.append(error)

    def scan(self, table: Table, trade_dates: Collection[date] | None = None) -> pl.LazyFrame:
        """The rows of some trade dates, or of all, as of now.

        The frame reads one version of the table. Collect it within the hour; later its files
        may be gone.
        """
        return parquet.scan(table, self.files(table, trade_dates))

    def files(self, table: Table, trade_dates: Collection[date] | None = None) -> list[Path]:
        """The current files of some trade dates, or of all; `LakeError` where one is missing or damaged."""
        return self.sound(table, self.manifest(table).of(trade_dates))

    def sound(self, table: Table, files: Iterable[DataFile]) -> list[Path]:
        """Where these files are; `LakeError` when one is missing, cut off or no Parquet file."""
        paths = []
        for file in files:
            paths.append(self.folder(table) / file.path)
            if fault := parquet.fault(paths[-1], file.bytes):
                raise unreadable(table.name, paths[-1], fault)
        return paths

    def manifest(self, table: Table) -> Manifest:
        """The newest manifest version."""
        return manifest.read(self.folder(table))

    def folder(self, table: Table) -> Path:
        return self.root / table.name

    def collect_garbage(self, now: datetime | None = None) -> int:
        """Remove files superseded an hour ago, and what dead processes left; returns how many.

        Publish the catalog first, so that its views name current files. A data file that the manifest
        does not list goes only when it is an hour old and the table has every row of it; rows that it
        alone has come back to the table first. A damaged table is left as it is.

        Parameters
        ----------
        now
            Real time; the machine's clock when not given.
        """
        before = (to_ns(now) if now else time.time_ns()) - GRACE_NS
        return sum(self._sweep(table, before) for table in self.tables if self.folder(table).is_dir())

    def stage(self, table: Table, trade_date: date) -> AbstractContextManager[Path]:
        """A temporary name in the folder of a trade date, to write a file that will be current."""
        folder = self.folder(table) / f"{PARTITION}={trade_date.isoformat()}"
        make_folder(folder)
        return temporary_for(folder / "staged.parquet")

    def replace(
        self, table: Table, group: Sequence[DataFile], staged: Path, written: parquet.WrittenFile
    ) -> Manifest:
        """Put a staged file in the place of the files it was merged from, in one version.

        Raises
        ------
        LakeError
            The staged file does not hold as many rows, or one of the files is no longer current.
        """
        if written.rows != sum(file.rows for file in group):
            raise LakeError(f"merging files of {table.name} changed the number of rows; nothing was replaced")
        with locked(self.folder(table) / ".lock"):
            current = self.manifest(table)
            if not current.lists(group):
                raise LakeError(f"files of {table.name} changed while they were merged; nothing was replaced")
            level = 1 + max(file.level for file in group)
            merged = self._place(table, current.version + 1, group[0].trade_date, level, staged, written)
            current = current.next(add=[merged], remove=group, at=time.time_ns())
            manifest.publish(self.folder(table), current)
        return current

    def bring_back(self, table: Table, path: Path) -> bool:
        """Append what the table lacks of a file's rows; False when the file cannot be read.

        A commit that died between its file and its manifest left it, or the manifest is an older one
        from a backup.
        """
        try:
            rows, runs = parquet.rows_of(path), parquet.runs_of([path])
            for offset in range(0, rows, BRING_BACK_ROWS):
                self._append(
                    table, parquet.scan(table, [path]).slice(offset, BRING_BACK_ROWS).collect(), runs
                )
        except (pl.exceptions.PolarsError, OSError, ValueError):
            return False
        return True

    def _unknown(self, table: Table, current: Manifest, new: pl.DataFrame) -> pl.DataFrame:
        """The rows whose key is not in the lake."""
        if new.is_empty():
            return new
        candidates = current.of(set(new[PARTITION].unique()))
        inside = pl.lit(True)
        if table.since in table.key:
            # The same key has the same instant, so only what spans the new rows' time can hold it.
            since = new[table.since].to_physical()
            low, high = int(since.min()), int(since.max())  # type: ignore[arg-type]
            candidates = tuple(
                file for file in candidates if file.since_min <= high and low <= file.since_max
            )
            inside = pl.col(table.since).is_between(pl.lit(low).cast(INSTANT), pl.lit(high).cast(INSTANT))
        if not candidates:
            return new
        paths = self.sound(table, candidates)
        known = parquet.scan(table, paths).filter(inside).select(table.key).collect()
        return new.join(known, on=table.key, how="anti", maintain_order="left")

    def _write(self, table: Table, version: int, frame: pl.DataFrame, runs: Sequence[str]) -> DataFile:
        day = frame.item(0, PARTITION)
        with self.stage(table, day) as staged:
            written = parquet.write(staged, table, [frame], runs)
            return self._place(table, version, day, 0, staged, written)

    def _place(
        self, table: Table, version: int, day: date, level: int, staged: Path, written: parquet.WrittenFile
    ) -> DataFile:
        path = _free(staged.with_name(f"{version:08d}.parquet"))
        put_in_place(staged, path)
        return DataFile(
            path=path.relative_to(self.folder(table)).as_posix(),
            trade_date=day,
            rows=written.rows,
            bytes=written.bytes,
            level=level,
            since_min=written.since_min,
            since_max=written.since_max,
            schema_version=table.version,
        )

    def _sweep(self, table: Table, before: int) -> int:
        folder = self.folder(table)
        removed = _remove(left_over(folder, before))
        try:
            with locked(folder / ".lock"):
                current = self.manifest(table)
                old = [folder / file.path for file in current.superseded if file.at < before]
                if old:
                    days = {path.parent.name for path in old}
                    # What took their place is there; else they are what is left of the rows.
                    self.sound(table, (file for file in current.files if file.path.partition("/")[0] in days))
                    # The files first: after a crash between the two the manifest still knows their names.
                    removed += _remove(old)
                    manifest.publish(folder, current.forget(before))
            for path in self._unlisted(table):
                if path.stat().st_mtime_ns < before and self.bring_back(table, path):
                    removed += _remove([path])
        except LakeError:
            # Whoever reads the table hears of it. Until it is repaired, nothing of it goes.
            return removed
        return removed

    def _unlisted(self, table: Table) -> list[Path]:
        """Data files that the manifest neither lists nor calls superseded."""
        folder, current = self.folder(table), self.manifest(table)
        known = {file.path for file in current.files} | {file.path for file in current.superseded}
        return [
            path for path in sorted(folder.glob(DATA_FILES)) if f"{path.parent.name}/{path.name}" not in known
        ]


def unreadable(table: str, path: Path, fault: str) -> LakeError:
    """The error that names a data file and the way out."""
    return LakeError(
        f"{path} {fault}; restore it from a backup, or take it off the table's list with `nq repair {table}`"
    )


def _free(path: Path) -> Path:
    """The path, or a free one beside it: a file that no version lists may hold rows nothing else has."""
    number, free = 0, path
    while free.exists():
        number += 1
        free = path.with_stem(f"{path.stem}-{number}")
    return free


def _remove(paths: Iterable[Path]) -> int:
    """Remove files that are there; returns how many."""
    removed = 0
    for path in paths:
        with suppress(FileNotFoundError):
            path.unlink()
            removed += 1
    return removed


def _distinct(table: Table, frame: pl.DataFrame) -> pl.DataFrame:
    """The rows in the table's order; of several with one key, the first.

    The order includes the key, so rows that ascend strictly have no key twice: they are neither
    sorted again nor searched for doubles.
    """
    ascends = pl.lit(False)
    for name in reversed(table.total_order):
        value, before = pl.col(name), pl.col(name).shift(1)
        ascends = (value > before) | ((value == before) & ascends)
    if frame.select(ascends.slice(1).fill_null(False).all()).item():
        return frame
    if not frame.select(table.key).is_unique().all():
        frame = frame.unique(subset=table.key, keep="first", maintain_order=True)
    return frame.sort(table.total_order)


def _by_trade_date(frame: pl.DataFrame) -> list[pl.DataFrame]:
    if frame.is_empty() or frame[PARTITION].n_unique() == 1:
        return [frame] if len(frame) else []
    return frame.partition_by(PARTITION, maintain_order=True)
