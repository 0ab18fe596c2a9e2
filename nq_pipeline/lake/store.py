"""The lake: Parquet tables by trade date, for concurrent readers and writers.

Read through `Lake.scan` or the DuckDB catalog. A glob over the folders would also find the superseded
files of the last hour and count their rows twice.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path

import polars as pl

from nq_pipeline.clock import real_now, real_ns, to_ns
from nq_pipeline.errors import LakeError, StaleToken
from nq_pipeline.files import GRACE_NS, stale_temporaries
from nq_pipeline.lake import compaction, migration, parquet
from nq_pipeline.lake.delta.files import DATA_FILE, LOG, DeltaFiles
from nq_pipeline.lake.manifest import DATA_FILES, NAME, DataFile, Manifest
from nq_pipeline.lake.objects import LocalObjects, Objects
from nq_pipeline.lake.table_files import ManifestFiles, TableFiles, remove_paths
from nq_pipeline.lake.tables import INSTANT, PARTITION, TABLES, Table, conform

RECOVERY_ROWS = 4 * parquet.ROW_GROUP_ROWS
"""Rows of an unlisted file that are read at a time."""
FENCE = "lease/capture"
"""The mark of a table with the newest capture's lease token under which rows were accepted."""


@dataclass(frozen=True, slots=True)
class AppendResult:
    """The result of an append.

    Attributes
    ----------
    rows
        New rows.
    known
        Rows left out because their key was in the table already or occurred twice in the frame.
    files
        The paths or URIs of the files written, one per trade date.
    version
        The version of the table that contains the rows.
    """

    rows: int
    known: int
    files: tuple[str, ...]
    version: int


@dataclass(frozen=True, slots=True)
class BatchResult:
    """The result of appending to several tables: new rows by table, and errors of damaged tables."""

    rows: dict[str, int] = field(default_factory=dict)
    failures: list[LakeError] = field(default_factory=list)

    def check(self) -> None:
        """Raise the first failure."""
        if self.failures:
            raise self.failures[0]


class Lake:
    """The tables below `root` (`<data>/<environment>/lake`).

    Safe for any number of processes and threads: an operating system lock serializes the writers of a
    table, and readers need no lock. Grace periods use the machine's clock, never a pinned one, because
    they protect running readers.

    Parameters
    ----------
    root
        The lake's folder on this host: the tables, or with `objects` only locks and files being written.
    tables
        The tables of the lake.
    objects
        Where the tables are, if not below `root`; then they are Delta tables.
    delta
        Whether new tables below `root` are Delta tables. Existing tables are read as they are.
    """

    def __init__(
        self,
        root: Path,
        tables: Iterable[Table] = TABLES.values(),
        *,
        objects: Objects | None = None,
        delta: bool = False,
    ) -> None:
        self.root = root
        self.tables = tuple(tables)
        self.objects = objects
        self.delta = delta

    @property
    def uri(self) -> str:
        """Where the tables are, for people and other programs: a path, or an address."""
        return self.objects.uri() if self.objects else str(self.root)

    @property
    def environment(self) -> str:
        """sandbox or live."""
        return self.root.absolute().parent.name

    def folder(self, table: Table) -> Path:
        return self.root / table.name

    def table_files(self, table: Table) -> TableFiles:
        """The files of one table."""
        folder = self.folder(table)
        if self.objects:
            return DeltaFiles(folder, table, self.objects.within(table.name))
        is_delta = self.delta
        if (folder / NAME).exists():
            is_delta = False
        elif (folder / LOG).is_dir():
            is_delta = True
        elif first := next(folder.glob(DATA_FILES), None):  # its manifest or log is lost
            is_delta = DATA_FILE.fullmatch(first.relative_to(folder).as_posix()) is not None
        return DeltaFiles(folder, table, LocalObjects(folder)) if is_delta else ManifestFiles(folder, table)

    def manifest(self, table: Table, marks: Collection[str] = ()) -> Manifest:
        """The newest version of a table, with these marks."""
        return self.table_files(table).manifest(marks)

    def files(self, table: Table, trade_dates: Collection[date] | None = None) -> list[str]:
        """The paths or URIs of the current files of some trade dates, or of all.

        Raises
        ------
        LakeError
            A file is missing or damaged.
        """
        stored = self.table_files(table)
        return stored.check(stored.manifest().of(trade_dates))

    def scan(self, table: Table, trade_dates: Collection[date] | None = None) -> pl.LazyFrame:
        """The rows of some trade dates, or of all, as of now.

        The frame reads one version of the table. Collect it within an hour; after that its files may be
        removed.
        """
        stored = self.table_files(table)
        files = stored.manifest().of(trade_dates)
        stored.check(files)
        return stored.scan(files)

    def append(
        self,
        table: Table,
        frame: pl.DataFrame,
        *,
        run_id: str,
        now: datetime | None = None,
        marks: Mapping[str, int] | None = None,
        token: int = 0,
    ) -> AppendResult:
        """Add the rows whose key is not in the table, durably and atomically.

        To complete a call that was killed, repeat it. The cost depends on the new rows and on the files of
        their trade dates that overlap them in time, not on the size of the table.

        Parameters
        ----------
        now
            Decides which trade dates are over, for merging their files; by default the machine's clock.
        marks
            Numbers that the version carries from then on, with the rows or without any.
        token
            The fencing token of the capture's lease; 0 for a writer that needs none.

        Raises
        ------
        LakeError
            The frame does not fit the table, or the table is damaged at its trade dates.
        StaleToken
            Rows were accepted from a capture with a newer lease.
        """
        return self._append(table, conform(table, frame), [run_id], now, marks or {}, token)

    def append_all(self, frames: Iterable[tuple[Table, pl.DataFrame]], *, run_id: str) -> BatchResult:
        """Append to several tables in this order, skipping damaged ones.

        The last table marks a run as complete, so it gets rows only if all others did.
        """
        *parts, last = frames
        result = BatchResult()
        for table, frame in (*parts, last):
            result.rows[table.name] = 0
            if table is last[0] and result.failures:
                continue
            try:
                result.rows[table.name] = self.append(table, frame, run_id=run_id).rows
            except LakeError as error:
                result.failures.append(error)
        return result

    def compact(self, table: Table, trade_date: date, *, now: datetime, wait: bool = True) -> int:
        """Merge the files of one trade date; see `compaction.compact`."""
        self.take_over(table)
        return compaction.compact(self.table_files(table), trade_date, now=now, wait=wait)

    def collect_garbage(self, now: datetime | None = None) -> int:
        """Remove files superseded an hour ago, and leftovers of dead processes; returns how many.

        Publish the catalog first, so that its views name current files. An unlisted data file is removed
        only when it is an hour old, after rows that only it has are recovered. Nothing is removed from a
        damaged table.

        Parameters
        ----------
        now
            Real time; by default the machine's clock.
        """
        before = (to_ns(now) if now else real_ns()) - GRACE_NS
        return sum(self._sweep(table, before) for table in self.tables)

    def take_over(self, table: Table) -> int:
        """Make a table with a manifest a Delta table, if this lake writes those; returns its rows.

        The first write to the table does it, too.
        """
        is_wanted = self.delta and self.objects is None
        return migration.migrate(self.folder(table), table) if is_wanted else 0

    def copy_from(self, other: Lake, table: Table) -> int:
        """Append the rows of another lake's table that this lake lacks; returns how many."""
        stored, added = other.table_files(table), 0
        files = stored.manifest().files
        stored.check(files)
        for file in files:
            runs = stored.read_runs([file])
            added += sum(self._append(table, rows, runs).rows for rows in migration.slices(stored, file))
        return added

    def recover_rows(self, table: Table, *files: DataFile) -> bool:
        """Append the rows of unlisted files that the table lacks; False if a file cannot be read.

        They come back together, because an append may have written several. Such files are left by an append
        that died before its commit, or by an older manifest that was restored from a backup.
        """
        stored = self.table_files(table)
        try:
            runs = stored.read_runs(files)
            rows = stored.scan(files).select(pl.len()).collect().item()
            for offset in range(0, rows, RECOVERY_ROWS):
                part = stored.scan(files).slice(offset, RECOVERY_ROWS).collect()
                self._append(table, part, runs)
        except (pl.exceptions.PolarsError, OSError, ValueError):
            return False
        return True

    def _append(
        self,
        table: Table,
        frame: pl.DataFrame,
        runs: Sequence[str],
        now: datetime | None = None,
        marks: Mapping[str, int] = {},
        token: int = 0,
    ) -> AppendResult:
        self.take_over(table)
        stored, distinct = self.table_files(table), _distinct(table, frame)
        wanted = {**marks, FENCE: token} if token else dict(marks)
        with stored.lock():
            while True:  # another host's writer may be first: then its rows are known, too
                current = stored.manifest(wanted)
                if token < current.marks.get(FENCE, 0) and token:
                    raise StaleToken(
                        f"{table.name} has rows of a capture with a newer lease "
                        f"({current.marks[FENCE]}, this one has {token}); nothing was written"
                    )
                new = _without_known(stored, current, distinct)
                moved = {name: mark for name, mark in wanted.items() if current.marks.get(name) != mark}
                if (new.height or moved) and not current.version:
                    current = stored.create(current)
                added = [stored.write(current, part, runs) for part in _by_trade_date(new)]
                if not added and not moved:
                    break
                if made := stored.commit(current, add=added, marks=moved):
                    current = made
                    break
                if added and stored.manifest().lists(added):
                    break  # it was ours: the answer was lost
                stored.remove(added)
        for day in {file.trade_date for file in added}:
            if sum(file.level == 0 for file in current.of({day})) >= compaction.FAN_IN:
                compaction.compact(stored, day, now=now or real_now(), wait=False)
        files = tuple(map(stored.location, added))
        return AppendResult(new.height, frame.height - new.height, files, current.version)

    def _sweep(self, table: Table, before: int) -> int:
        stored = self.table_files(table)
        removed = remove_paths(stale_temporaries(stored.folder, before))
        try:
            if not stored.exists():
                return removed
            with stored.lock():
                if old := stored.superseded(before):
                    days = {file.trade_date for file in old}
                    # Only if their successors are intact: else these files have the only copy of the rows.
                    successors = stored.manifest().of(days)
                    stored.check(successors)
                    stored.check_sizes(successors)
                    # The files first: after a crash the versions still name those that are left.
                    removed += stored.remove(old)
                    stored.forget(before)
            unlisted = stored.unlisted(before)
            if unlisted and self.recover_rows(table, *unlisted):
                removed += stored.remove(unlisted)
            else:
                removed += sum(stored.remove([f]) for f in unlisted if self.recover_rows(table, f))
            removed += migration.sweep(stored.folder, before)
            stored.tidy()
        except LakeError:
            # Readers of the table get the error. No file is removed until the table is repaired.
            return removed
        return removed


def _without_known(stored: TableFiles, current: Manifest, new: pl.DataFrame) -> pl.DataFrame:
    """The rows of `new` whose key is not in the table."""
    if new.is_empty():
        return new
    table = stored.table
    candidates = current.of(set(new[PARTITION].unique()))
    inside = pl.lit(True)
    if table.pruning_column in table.key:
        # Rows with the same key have the same instant, so only files that overlap in time can hold it.
        instants = new[table.pruning_column].to_physical()
        low, high = int(instants.min()), int(instants.max())  # type: ignore[arg-type]
        candidates = tuple(f for f in candidates if f.since_min <= high and low <= f.since_max)
        inside = pl.col(table.pruning_column).is_between(
            pl.lit(low).cast(INSTANT), pl.lit(high).cast(INSTANT)
        )
    if not candidates:
        return new
    stored.check(candidates)
    known = stored.scan(candidates).filter(inside).select(table.key).collect()
    return new.join(known, on=table.key, how="anti", maintain_order="left")


def _distinct(table: Table, frame: pl.DataFrame) -> pl.DataFrame:
    """The rows in the table's order, keeping the first of several with the same key.

    The order includes the key, so strictly ascending rows have no duplicates and need no sorting.
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
