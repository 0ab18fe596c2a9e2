"""The manifest of a table: which files are current, in one small JSON file.

A version is published by rename, so a reader that resolves it has one consistent list of files
and needs no lock. Files that a version took off the list stay on disk for an hour (`GRACE_NS`),
so that whoever still reads by an older version finds them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import orjson

from nq_pipeline.errors import LakeError
from nq_pipeline.lake.files import write_atomically

NAME = "manifest.json"


@dataclass(frozen=True, slots=True)
class DataFile:
    """One Parquet file.

    Attributes
    ----------
    path
        Relative to the table's folder: `trade_date=2025-07-01/00000042.parquet`.
    level
        How often its rows were merged: 0 for a file as appended.
    since_min, since_max
        Range of the table's `since` column, nanoseconds UTC, both inclusive.
    schema_version
        Version of the table the file was written with.
    """

    path: str
    trade_date: date
    rows: int
    bytes: int
    level: int
    since_min: int
    since_max: int
    schema_version: int


@dataclass(frozen=True, slots=True)
class Superseded:
    """A file that is no longer current, and since when (nanoseconds UTC, real time)."""

    path: str
    at: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """One version of the list. Version 0 is a table nothing was written to."""

    table: str
    version: int = 0
    files: tuple[DataFile, ...] = ()
    superseded: tuple[Superseded, ...] = ()

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

    def next(self, *, add: Iterable[DataFile] = (), remove: Iterable[DataFile] = (), at: int) -> Manifest:
        """The version after this one, made at `at` (nanoseconds UTC, real time)."""
        gone = [file.path for file in remove]
        return Manifest(
            table=self.table,
            version=self.version + 1,
            files=(*(file for file in self.files if file.path not in gone), *add),
            superseded=(*self.superseded, *(Superseded(path, at) for path in gone)),
        )

    def forget(self, before: int) -> Manifest:
        """The version after this one, without the files superseded before `before`."""
        kept = tuple(file for file in self.superseded if file.at >= before)
        return Manifest(self.table, self.version + 1, self.files, kept)


def read(folder: Path) -> Manifest:
    """The newest version of the table in `folder`; one read, whatever its history.

    Raises `LakeError` when the manifest is damaged.
    """
    path = folder / NAME
    try:
        content = orjson.loads(path.read_bytes())
        return Manifest(
            table=content["table"],
            version=content["version"],
            files=tuple(
                DataFile(**{**file, "trade_date": date.fromisoformat(file["trade_date"])})
                for file in content["files"]
            ),
            superseded=tuple(Superseded(**file) for file in content["superseded"]),
        )
    except FileNotFoundError:
        return Manifest(folder.name)
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise LakeError(
            f"the manifest {path} is damaged ({type(error).__name__}); restore it from a backup, "
            "or move the table's folder away and parse the raw archive again"
        ) from None


def publish(folder: Path, manifest: Manifest) -> None:
    """Make a version the newest one; the caller holds the table's lock."""
    write_atomically(folder / NAME, orjson.dumps(manifest))
