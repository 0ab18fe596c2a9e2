"""Exit codes, and the display of errors as one sentence on stderr."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from nq_pipeline.cli.output import load
from nq_pipeline.errors import ExportUsage, NoLake, NqError, SettingsError, SettingsWarning
from nq_pipeline.workspace import Workspace

OK, FAULT, USAGE, NO_CHAIN, SQL_FAILED, UNHEALTHY, NO_LAKE = range(7)
EXIT_CODES = """
Exit codes: 0 done; 1 a fault of the program or the disk, or Ctrl-C; 2 wrong usage or setting; 3 no source
gave a chain; 4 the query failed; 5 `nq doctor` found a problem, a check of `nq verify` failed, `nq backfill`
could not get a day, or the webhook refused the message of `nq alert test`; 6 the data folder has no lake.
"""


def report_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Print errors raised on purpose as one sentence on stderr, and end with a documented exit code."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        _warn_of_misspelled_settings()
        try:
            return command(*args, **kwargs)
        except Exception as error:
            if (sentence := _explain(error)) is None:
                raise
            click.echo(f"nq: {sentence}", err=True)
            usage = isinstance(error, SettingsError | ExportUsage)
            sys.exit(USAGE if usage else NO_LAKE if isinstance(error, NoLake) else FAULT)

    return wrapped


def _explain(error: Exception) -> object | None:
    """The sentence for a person; None for a fault of this program, which shows its traceback."""
    if isinstance(error, SettingsError | NoLake):
        return error
    if problem := disk_trouble(error):
        return problem
    if isinstance(error, NqError):
        return error
    if isinstance(error, OSError):
        where = f"{error.filename}: {error.strerror}"
        return error.filename and f"cannot use {where}; `nq settings` shows what NQ_DATA_DIR is"
    return lake_damage(error)


def disk_trouble(error: Exception) -> str | None:
    """What is wrong with the data's disk, if that caused the error; else None."""
    from nq_pipeline.disk import explain_disk_error

    try:
        return explain_disk_error(error, load().environment_dir)
    except SettingsError:
        return None


def lake_damage(error: Exception) -> Exception | None:
    """The error of the damaged file in the lake that caused a reader's error; None for any other cause."""
    if type(error).__module__.partition(".")[0] not in ("polars", "duckdb", "_duckdb", "pyarrow"):
        return None
    from nq_pipeline.lake.repair import find_damage

    return find_damage(Workspace.of(load()).lake)


def _warn_of_misspelled_settings() -> None:
    """Name on stderr each variable that looks like a setting but is none, once per command line."""
    from nq_pipeline.configuration import misspelled

    context = click.get_current_context(silent=True)
    if context is None or context.meta.setdefault(__name__, context) is not context:
        return
    for sentence in misspelled():
        click.echo(f"nq: {sentence}", err=True)
    warnings.simplefilter("ignore", SettingsWarning)  # `load` warns other programs
