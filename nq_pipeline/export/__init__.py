"""Copies of the lake's data in the formats of other tools: `nq export`.

Each format is a module of its name with a function `write(selection, to)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nq_pipeline.settings import Settings


@dataclass(frozen=True, slots=True)
class Format:
    """What a format holds.

    Attributes
    ----------
    of_moment
        Whether it can hold the chain of one moment.
    of_dates
        Whether it can hold trade dates.
    is_folder
        Whether it is a folder, not one file.
    """

    meaning: str
    of_moment: bool = False
    of_dates: bool = False
    is_folder: bool = False


FORMATS: dict[str, Format] = {
    "csv": Format("a folder of CSV files, one per table", of_moment=True, of_dates=True, is_folder=True),
    "excel": Format("an Excel workbook, one sheet per table", of_moment=True, of_dates=True),
    "openbb": Format("a JSON file that OpenBB's OptionsChainsData reads", of_moment=True),
    "optopsy": Format("a CSV file that optopsy reads", of_dates=True),
    "quantlib": Format("a JSON file of the surface for QuantLib's BlackVarianceSurface", of_moment=True),
    "nautilus": Format("a folder that is NautilusTrader's Parquet catalog", of_dates=True, is_folder=True),
}
"""The formats by name, in the order of the help."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written.

    Attributes
    ----------
    rows
        Rows by table, or by kind of data.
    left_out
        Rows that the format cannot hold, by reason.
    """

    path: Path
    rows: dict[str, int]
    left_out: dict[str, int]


def export(
    settings: Settings,
    name: str,
    to: Path,
    *,
    first: date | None = None,
    last: date | None = None,
    as_of: datetime | None = None,
    tables: Sequence[str] = (),
    progress: Callable[[str], object] = lambda line: None,
) -> Exported:
    """Write a part of the lake in another tool's format.

    Without trade dates and without a moment, it is the current chain, or every trade date for a format that
    holds only trade dates. The memory does not grow with the number of trade dates.

    Parameters
    ----------
    name
        One of `FORMATS`.
    to
        A file, which is replaced, or a folder.
    first, last
        The first and the last trade date, both included; None for no limit.
    as_of
        Export the snapshots that were current at this instant, which needs a time zone.
    tables
        Tables or views, for a format that takes any.
    progress
        Called with a line that says what is being written.

    Raises
    ------
    ExportUsage
        The options do not fit each other, the format or a table.
    ExportError
        The format cannot hold what was selected, or there is nothing.
    NoLake
        The data folder has no lake.
    """
    from importlib import import_module

    from nq_pipeline.errors import ExportUsage
    from nq_pipeline.export.selection import select
    from nq_pipeline.workspace import Workspace

    form, dated = FORMATS[name], first is not None or last is not None
    if as_of is not None and (dated or not form.of_moment):
        raise ExportUsage(f"{name} takes trade dates here; use --from and --until instead of --as-of")
    if first is not None and last is not None and last < first:
        raise ExportUsage(f"--until {last} is before --from {first}; swap them")
    if dated and not form.of_dates:
        raise ExportUsage(f"{name} holds the chain of one moment; use --as-of instead of --from and --until")
    if tables and name not in ("csv", "excel"):
        raise ExportUsage(f"{name} has tables of its own; leave out --table, or export csv or excel")
    if to.exists() and to.is_dir() != form.is_folder:
        kind, needed = ("file", "a folder") if form.is_folder else ("folder", "a file")
        raise ExportUsage(f"{to} is a {kind}, but {name} is {form.meaning}; give --to {needed}")
    lake = Workspace.of(settings).existing_lake
    with select(
        lake,
        first=first,
        last=last,
        as_of=as_of,
        is_moment=form.of_moment and not dated,
        tables=tables,
        memory_mb=settings.query.memory_mb,
        progress=progress,
    ) as selection:
        written: Exported = import_module(f"{__name__}.{name}").write(selection, to)
    return written
