"""A table of the lake as a Delta table, in a folder or in an object store.

Polars, DuckDB, Spark and other engines read it in place. Files have the types of `delta.types`; rows are
compared, sorted and pruned by exact nanoseconds, and `scan` gives the table's own types.

A commit is one JSON file in `_delta_log`, created only if there is none of its number. It and its data
files are durable before any reader can see them (the deltalake library does not sync files), so a power cut
leaves no torn commit. The library reads the log, writes its checkpoints and removes its old files.
"""

from __future__ import annotations

import math
import re
import threading
import uuid
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import orjson
import polars as pl

from nq_pipeline.clock import real_ns
from nq_pipeline.errors import LakeError
from nq_pipeline.files import make_folder, rename_durably, sync, temporary_for
from nq_pipeline.lake import parquet
from nq_pipeline.lake.delta.types import EXACT, column_names, decoded, delta_schema, encode, stored_table
from nq_pipeline.lake.manifest import DataFile, Manifest
from nq_pipeline.lake.objects import LocalObjects, Objects, RemoteObjects, store_error
from nq_pipeline.lake.table_files import DAMAGED, DataFiles, TableFiles, day_of, set_path_aside
from nq_pipeline.lake.tables import PARTITION, Table

if TYPE_CHECKING:
    from deltalake import DeltaTable

LOG = "_delta_log"
CHECKPOINT_EVERY = 20
"""Commits between checkpoints. A reader that opens the table reads the commits since the last one."""
KEEP_LOG, KEEP_REMOVED = "interval 1 hours", "interval 2 hours"
"""For how long the log keeps its old files, and the names of removed data files."""
OPEN_TABLES = 64
"""Tables that a process keeps open."""
PLACED_NS = 1_800_000_000_000
"""A file placed longer ago is no longer committed: another host may take it for a leftover soon."""
DATA_FILE = re.compile(
    r"trade_date=\d{4}-\d\d-\d\d/\d{8,}-(?P<level>\d+)-v(?P<schema>\d+)-[0-9a-f]{8}\.parquet"
)
_COMMIT = re.compile(r"\d{20}\.json")
_CHECKPOINT = re.compile(r"\d{20}\.checkpoint\.parquet")


class DeltaFiles(TableFiles):
    """A Delta table below `objects`.

    Writers on different hosts need no lock: of two that make the same version, one succeeds, and the other
    reads the table again.
    """

    is_delta = True

    def __init__(self, folder: Path, table: Table, objects: Objects) -> None:
        super().__init__(folder, table, stored_table(table), objects)
        self._placed: dict[str, int] = {}

    @property
    def _options(self) -> dict[str, str] | None:
        return self.objects.storage_options if isinstance(self.objects, RemoteObjects) else None

    def exists(self) -> bool:
        return self._opened() is not None

    def manifest(self, marks: Collection[str] = ()) -> Manifest:
        opened = self._opened()
        if opened is None:
            return Manifest(self.table.name)
        with opened.lock:
            version = opened.table.version()
            return Manifest(
                table=self.table.name,
                version=version + 1,
                files=opened.files(version),
                marks=opened.marks(version, marks),
            )

    def create(self, empty: Manifest) -> Manifest:
        protocol = {"protocol": {"minReaderVersion": 1, "minWriterVersion": 2}}
        self._commit(0, "CREATE TABLE", [protocol, self._metadata(str(uuid.uuid4()))])
        return self.manifest()

    def commit(
        self, base: Manifest, *, add: DataFiles = (), remove: DataFiles = (), marks: Mapping[str, int] = {}
    ) -> Manifest | None:
        now = real_ns()
        if any(now - self._placed.get(file.path, now) > PLACED_NS for file in add):
            raise LakeError(
                f"writing to {self.table.name} took too long, so nothing was written; run it again"
            )
        actions = [
            *self._new_schema(),
            *(self._add(file, now, is_new=not remove) for file in add),
            *(self._remove(file, now) for file in remove),
            *({"txn": {"appId": name, "version": to}} for name, to in marks.items()),
        ]
        if not self._commit(base.version, "OPTIMIZE" if remove else "WRITE", actions):
            return None
        made = base.next(add=add, remove=remove, marks=marks, at=now)
        made = replace(made, superseded=())
        if opened := _tables.get(self.objects.uri()):
            opened.expect(base.version, made)  # so that the next call reads the log only
        if base.version % CHECKPOINT_EVERY == 0:
            self._checkpoint()
        return made

    def scan(self, files: DataFiles) -> pl.LazyFrame:
        older = [self.location(file) for file in files if file.schema_version != self.table.version]
        frames = parquet.scan(self.stored, [*map(self.location, files)], self._options, older)
        return frames.select(decoded(self.table))

    def read_runs(self, files: DataFiles) -> list[str]:
        if self.objects.is_local:
            return super().read_runs(files)
        footers = [pl.read_parquet_metadata(self.location(f), storage_options=self._options) for f in files]
        key = parquet.RUNS.decode()
        return sorted({run for footer in footers for run in orjson.loads(footer.get(key, "[]"))})

    def stage(self, trade_date: date) -> AbstractContextManager[Path]:
        if isinstance(self.objects, LocalObjects):
            return super().stage(trade_date)
        make_folder(self.folder)
        return temporary_for(self.folder / "staged.parquet")

    def encode(self, frame: pl.DataFrame) -> pl.DataFrame:
        return encode(self.table, frame)

    def put(self, base: Manifest, day: date, level: int, staged: Path) -> str:
        version, unique = self.table.version, uuid.uuid4().hex[:8]
        name = f"{PARTITION}={day.isoformat()}/{base.version:08d}-{level}-v{version}-{unique}.parquet"
        if isinstance(self.objects, LocalObjects):
            rename_durably(staged, self.objects.path(name))
        else:
            self.objects.put_file(name, staged)
        self._placed[name] = real_ns()
        return name

    def describe(self, path: str, size: int) -> DataFile | None:
        if not (named := DATA_FILE.fullmatch(path)):
            return None
        return DataFile(path, day_of(path), 0, size, int(named["level"]), 0, 0, int(named["schema"]))

    def set_aside(self, file: DataFile) -> str:
        if self.objects.is_local:
            return super().set_aside(file)
        return self.objects.uri(self._move_aside(file.path))

    def rebuild(self, files: DataFiles, redundant: DataFiles) -> None:
        try:
            current = self.manifest()
        except LakeError:
            if isinstance(self.objects, LocalObjects):
                if (log := self.objects.path(LOG)).exists():
                    set_path_aside(log)
            else:
                for stored in list(self.objects.list(LOG)):
                    self._move_aside(stored.name)
            _tables.pop(self.objects.uri(), None)
            current = Manifest(self.table.name)
        if not current.version:
            current = self.create(current)
        listed, wanted = {file.path for file in current.files}, {file.path for file in files}
        gone = [file for file in current.files if file.path not in wanted]
        new = [file for file in files if file.path not in listed]
        if (new or gone) and not self.commit(current, add=new, remove=gone):
            raise LakeError(f"{self.table.name} was written to while it was repaired; run it again")

    def _move_aside(self, name: str) -> str:
        number, aside = 0, f"{name}{DAMAGED}"
        while not self.objects.put_if_absent(aside, self.objects.get(name)):
            number += 1
            aside = f"{name}{DAMAGED}-{number}"
        self.objects.delete([name])
        return aside

    def tidy(self) -> None:
        if opened := self._opened():
            with opened.lock, self._failing():
                opened.table.cleanup_metadata()

    # ── the log ─────────────────────────────────────────────────────────────────────────────────

    def _commit(self, version: int, operation: str, actions: Sequence[Mapping[str, Any]]) -> bool:
        """Write the log's file of a version; False if there is one."""
        at = real_ns() // 1_000_000
        about = {
            "timestamp": at,
            "operation": operation,
            "operationParameters": {},
            "engineInfo": "nq_pipeline",
        }
        lines = [{"commitInfo": {**about, "commit": uuid.uuid4().hex}}, *actions]
        body = b"\n".join(map(orjson.dumps, lines)) + b"\n"
        return self.objects.put_if_absent(f"{LOG}/{version:020d}.json", body)

    def _add(self, file: DataFile, now: int, *, is_new: bool) -> dict[str, Any]:
        pruning = self.stored.pruning_column
        stats = {
            "numRecords": file.rows,
            "minValues": {pruning: file.since_min},
            "maxValues": {pruning: file.since_max},
            "nullCount": {pruning: 0},
        }
        return {
            "add": {
                "path": file.path,
                "partitionValues": {PARTITION: file.trade_date.isoformat()},
                "size": file.bytes,
                "modificationTime": now // 1_000_000,
                "dataChange": is_new,
                "stats": orjson.dumps(stats).decode(),
            }
        }

    def _remove(self, file: DataFile, now: int) -> dict[str, Any]:
        return {
            "remove": {
                "path": file.path,
                "deletionTimestamp": now // 1_000_000,
                "dataChange": False,
                "extendedFileMetadata": True,
                "partitionValues": {PARTITION: file.trade_date.isoformat()},
                "size": file.bytes,
            }
        }

    def _metadata(self, identity: str) -> dict[str, Any]:
        return {
            "metaData": {
                "id": identity,
                "name": self.table.name,
                "description": self.table.meaning,
                "format": {"provider": "parquet", "options": {}},
                "schemaString": delta_schema(self.table),
                "partitionColumns": [PARTITION],
                "configuration": {
                    "delta.dataSkippingStatsColumns": self.stored.pruning_column,
                    "delta.logRetentionDuration": KEEP_LOG,
                    "delta.deletedFileRetentionDuration": KEEP_REMOVED,
                },
                "createdTime": real_ns() // 1_000_000,
            }
        }

    def _new_schema(self) -> Iterator[dict[str, Any]]:
        """The table's columns, if the log has those of an older version."""
        opened = _tables.get(self.objects.uri())
        if opened and opened.columns != column_names(self.table):
            yield self._metadata(str(opened.table.metadata().id))

    def _checkpoint(self) -> None:
        """Write a checkpoint, durably. Failing is no harm: the commits are there."""
        if opened := self._opened():
            with opened.lock, self._failing():
                opened.table.create_checkpoint()
                version = opened.table.version()
            if isinstance(self.objects, LocalObjects):
                sync(self.objects.path(f"{LOG}/{version:020d}.checkpoint.parquet"))
                sync(self.objects.path(f"{LOG}/_last_checkpoint"))
                sync(self.objects.path(LOG))

    def removed(self, before: int) -> set[str]:
        opened = self._opened()
        if opened is None:
            return set()
        # The library counts whole hours; the hundredth is for the time since the caller's look at the clock.
        hours = max(0, math.ceil((real_ns() - before) / 3_600_000_000_000 - 0.01))
        with opened.lock, self._failing():
            paths = opened.table.vacuum(hours, dry_run=True, enforce_retention_duration=False)
        return {unquote(path) for path in paths}

    def _opened(self) -> _Open | None:
        """The table at its newest version; None if it was never written."""
        place = self.objects.uri()
        with _opening:
            opened = _tables.get(place)
            if opened is None:
                opened = _tables[place] = _Open(self._options)
            _tables.move_to_end(place)
            while len(_tables) > OPEN_TABLES:
                _tables.popitem(last=False)
        log = self.objects.path(LOG) if isinstance(self.objects, LocalObjects) else None
        with opened.lock, self._failing():
            if opened.refresh(place, log):
                return opened
            if not any(name.startswith(f"{PARTITION}=") for name in self.objects.folders()):
                return None
            # A writer makes the log before its first data file: it has done both since, or the log is lost.
            if opened.refresh(place, log):
                return opened
        raise LakeError(
            f"the log {self.objects.uri(LOG)} is missing, but there are data files; restore it from a "
            f"backup, or rebuild it from the data files with `nq repair {self.table.name}`"
        )

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Turn the library's errors into one sentence; they quote paths, requests and worse."""
        from deltalake.exceptions import DeltaError

        try:
            yield
        except Exception as error:
            if isinstance(error, OSError) and not self.objects.is_local:
                raise store_error(error, self._place) from None
            if isinstance(error, DeltaError | OSError) or type(error).__module__.startswith("deltalake"):
                raise LakeError(
                    f"the Delta table {self._place} cannot be read ({type(error).__name__}); restore its "
                    f"{LOG} from a backup, or rebuild it from the data files with "
                    f"`nq repair {self.table.name}`"
                ) from None
            raise


class _Open:
    """A Delta table that stays open; use it while holding `lock`."""

    def __init__(self, options: dict[str, str] | None) -> None:
        self.lock = threading.RLock()
        self._options = options
        self._table: DeltaTable | None = None
        self._files: tuple[int, tuple[DataFile, ...]] = (-1, ())
        self._marks: tuple[int, dict[str, int]] = (-1, {})
        self._seen: tuple[int, int] = (0, 0)
        self._read = -1
        self.columns: tuple[str, ...] = ()

    @property
    def table(self) -> DeltaTable:
        assert self._table is not None
        return self._table

    def refresh(self, place: str, log: Path | None) -> bool:
        """Read new commits; False if there is no table. `log` is a local table's log."""
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError, TableNotFoundError

        if self._table is not None and log and self._seen != _identity(log, self._table.version()):
            self._table = None  # the table was moved away, or an older log was restored
        if self._table is not None:
            try:
                self._table.update_incremental()
            except DeltaError:  # not used for so long that commits it needs are gone
                self._table = None
        if self._table is None:
            if log:
                cut_torn_log(log)
            try:
                self._table = DeltaTable(place, storage_options=self._options)
            except TableNotFoundError:
                return False
            self._files, self._marks = (-1, ()), (-1, {})
        version = self._table.version()
        if log:
            self._seen = _identity(log, version)
        if version != self._read:
            self._read = version
            self.columns = tuple(field.name for field in self._table.schema().fields)
            reader, writer, *_ = self._table.protocol()
            if reader > 1 or writer > 2:
                raise LakeError(
                    f"the Delta table {place} uses features of Delta that nq_pipeline does not write "
                    f"(reader version {reader}, writer version {writer}); copy it to a new table without them"
                )
        return True

    def files(self, version: int) -> tuple[DataFile, ...]:
        """The files of the newest version, in the order in which they were written."""
        if self._files[0] != version:
            self._files = (version, tuple(_read_files(self.table)))
        return self._files[1]

    def marks(self, version: int, names: Collection[str]) -> dict[str, int]:
        """Those of these marks that the newest version has."""
        if self._marks[0] != version:
            self._marks = (version, {})
        known = self._marks[1]
        for name in names:
            if name not in known and (mark := self.table.transaction_version(name)) is not None:
                known[name] = mark
        return {name: known[name] for name in names if name in known}

    def expect(self, version: int, made: Manifest) -> None:
        """Take what this process has just committed as that version."""
        with self.lock:
            self._files, self._marks = (version, made.files), (version, dict(made.marks))


_tables: OrderedDict[str, _Open] = OrderedDict()
_opening = threading.Lock()


def _identity(log: Path, version: int) -> tuple[int, int]:
    """Tells a commit from another with its number, after the table was replaced; zeros without one."""
    try:
        found = (log / f"{version:020d}.json").stat()
    except FileNotFoundError:
        return 0, 0
    return found.st_ino, found.st_mtime_ns


def _read_files(table: DeltaTable) -> Iterator[DataFile]:
    listed = pl.DataFrame(table.get_add_actions(flatten=True))
    ranges = [name for name in listed.columns if name.startswith(("min.", "max."))]
    names = {name.partition(".")[0]: name for name in ranges if name.endswith(EXACT)}
    for row in listed.sort("path").iter_rows(named=True):
        path = unquote(row["path"])
        named = DATA_FILE.fullmatch(path)
        low, high = (row.get(names.get(side, "")) for side in ("min", "max"))
        yield DataFile(
            path=path,
            trade_date=row[f"partition.{PARTITION}"],
            rows=row["num_records"],
            bytes=row["size_bytes"],
            level=int(named["level"]) if named else 0,
            since_min=-(2**63) if low is None else low,
            since_max=2**63 - 1 if high is None else high,
            schema_version=int(named["schema"]) if named else 0,
        )


def cut_torn_log(log: Path) -> list[Path]:
    """Set aside a last commit or checkpoint that a power cut left empty or torn; returns the new names.

    Its rows were not acknowledged, so their writer brings them again.
    """
    try:
        names = sorted(path.name for path in log.iterdir())
    except FileNotFoundError:
        return []
    torn = []
    commits = [name for name in names if _COMMIT.fullmatch(name)]
    checkpoints = [name for name in names if _CHECKPOINT.fullmatch(name)]
    if commits and not _is_whole_commit((log / commits[-1]).read_bytes()):
        torn.append(log / commits[-1])
    if checkpoints and parquet.find_fault(path := log / checkpoints[-1], path.stat().st_size):
        torn += [path, log / "_last_checkpoint"]
    aside = [path.with_name(f"{path.name}.torn") for path in torn if path.exists()]
    for path in torn:
        if path.exists():
            path.rename(path.with_name(f"{path.name}.torn"))
    if torn:
        sync(log)
    return aside


def _is_whole_commit(body: bytes) -> bool:
    try:
        return bool([orjson.loads(line) for line in body.splitlines() if line.strip()])
    except orjson.JSONDecodeError:
        return False
