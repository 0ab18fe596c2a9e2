"""The manifest of a table: which files are current, in one small JSON file.

A version is published by rename, so a reader gets one consistent list of files and needs no lock. Files
that a version supersedes stay on disk for an hour (`GRACE_NS`) for readers of older versions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Annotated

import orjson
from pydantic import Field, TypeAdapter, ValidationError

from nq_pipeline.errors import LakeError
from nq_pipeline.files import write_atomically

NAME = "manifest.json"
DATA_FILES = "trade_date=*/*.parquet"
"""Glob of the files a manifest may list, below the table's folder."""

MOST_KNOWN = 64
"""Tables whose newest version a process remembers; then all are forgotten."""

DATA_FILE = r"^trade_date=\d{4}-\d{2}-\d{2}/[\w-]+\.parquet$"
"""The form of their paths, which cannot lead out of the table's folder."""
RelativePath = Annotated[str, Field(pattern=DATA_FILE)]
Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, slots=True)
class DataFile:
    """One Parquet file.

    Attributes
    ----------
    path
        Relative to the table's folder: `trade_date=2025-07-01/00000042.parquet`.
    level
        How often its rows were merged; 0 for an appended file.
    since_min, since_max
        Range of the table's `pruning_column`, nanoseconds UTC, both inclusive.
    schema_version
        Version of the table the file was written with.
    """

    path: RelativePath
    trade_date: date
    rows: Count
    bytes: Count
    level: Count
    since_min: int
    since_max: int
    schema_version: int


@dataclass(frozen=True, slots=True)
class Superseded:
    """A file that is no longer current. `at` is when it was replaced, nanoseconds UTC, real time."""

    path: RelativePath
    at: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """One version of the file list. Version 0 is a table that was never written.

    `marks` are numbers that a version carries with its rows: how far a capture log is published, and the
    newest lease under which rows were accepted.
    """

    table: str
    version: Count = 0
    files: tuple[DataFile, ...] = ()
    superseded: tuple[Superseded, ...] = ()
    marks: dict[str, int] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)

    def of(self, trade_dates: Collection[date] | None) -> tuple[DataFile, ...]:
        """The current files of some trade dates, or of all."""
        if trade_dates is None:
            return self.files
        return tuple(file for file in self.files if file.trade_date in trade_dates)

    def lists(self, files: Iterable[DataFile]) -> bool:
        """Whether all these files are still current."""
        current = {file.path for file in self.files}
        return all(file.path in current for file in files)

    def next(
        self,
        *,
        add: Iterable[DataFile] = (),
        remove: Iterable[DataFile] = (),
        marks: Mapping[str, int] = {},
        at: int,
    ) -> Manifest:
        """The version after this one, made at `at` (nanoseconds UTC, real time)."""
        gone = [file.path for file in remove]
        return Manifest(
            table=self.table,
            version=self.version + 1,
            files=(*(file for file in self.files if file.path not in gone), *add),
            superseded=(*self.superseded, *(Superseded(path, at) for path in gone)),
            marks={**self.marks, **marks},
        )

    def forget(self, before: int) -> Manifest:
        """The version after this one, without the files superseded before `before`."""
        remaining = tuple(file for file in self.superseded if file.at >= before)
        return Manifest(self.table, self.version + 1, self.files, remaining, self.marks)


_FORM = TypeAdapter(Manifest)
_known: dict[Path, tuple[bytes, Manifest]] = {}
"""The contents that this process read or published last, so that it parses none twice."""


def read(folder: Path) -> Manifest:
    """The newest version of the table in `folder`.

    Raises
    ------
    LakeError
        The manifest is damaged, or missing although there are data files. A writer publishes an empty
        manifest before its first data file, so a crash never leaves data files without one.
    """
    path = folder / NAME
    remedy = f"restore it from a backup, or rebuild it from the data files with `nq repair {folder.name}`"
    try:
        content = path.read_bytes()
        if (known := _known.get(path)) and known[0] == content:
            return known[1]
        manifest = parse(content)
    except FileNotFoundError:
        if next(folder.glob(DATA_FILES), None) is None:
            return Manifest(folder.name)
        if path.exists():  # published meanwhile
            return read(folder)
        raise LakeError(f"the manifest {path} is missing, but there are data files; {remedy}") from None
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        reason = ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))
        raise LakeError(f"the manifest {path} is damaged ({reason}); {remedy}") from None
    _remember(path, content, manifest)
    return manifest


def parse(content: bytes) -> Manifest:
    """A version from its JSON; raises `ValidationError` when it is damaged."""
    return _FORM.validate_json(content, strict=True)


def publish(folder: Path, manifest: Manifest) -> None:
    """Make a version the newest one; the caller holds the table's lock."""
    content = orjson.dumps(manifest)
    write_atomically(folder / NAME, content)
    _remember(folder / NAME, content, manifest)


def _remember(path: Path, content: bytes, manifest: Manifest) -> None:
    if len(_known) >= MOST_KNOWN:
        _known.clear()
    _known[path] = content, manifest
