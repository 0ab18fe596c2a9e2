"""How a command ends: a documented exit code and, where it failed, one sentence on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from nq_pipeline.workspace import Workspace

OK, FAULT, USAGE, NO_CHAIN, SQL_FAILED, UNHEALTHY, NO_LAKE = range(7)
EXIT_CODES = """
Exit codes: 0 done; 1 a fault of the program or the disk, or Ctrl-C; 2 wrong usage or setting; 3 no source
gave a chain; 4 the query failed; 5 `nq doctor` found something to mend, a check of `nq verify` failed, a
day of `nq backfill` could not be had, or the webhook did not take the message of `nq alert test`; 6 the
data folder has no lake.
"""


def sentences(command: Callable[..., Any]) -> Callable[..., Any]:
    """Errors raised on purpose end as one sentence on stderr and a documented exit code."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        from nq_pipeline.errors import NoLake, NqError, SettingsError

        _say_what_is_misspelled()
        try:
            return command(*args, **kwargs)
        except SettingsError as error:
            click.echo(f"nq: {error}", err=True)
            sys.exit(USAGE)
        except NoLake as error:
            click.echo(f"nq: {error}", err=True)
            sys.exit(NO_LAKE)
        except NqError as error:
            click.echo(f"nq: {disk_trouble(error) or error}", err=True)
            sys.exit(FAULT)
        except OSError as error:
            if said := disk_trouble(error):
                click.echo(f"nq: {said}", err=True)
                sys.exit(FAULT)
            if error.filename is None:  # not of a file: a fault of this program
                raise
            where = f"{error.filename}: {error.strerror}"
            click.echo(f"nq: cannot use {where}; `nq settings` shows what NQ_DATA_DIR is", err=True)
            sys.exit(FAULT)
        except Exception as error:
            if (cause := disk_trouble(error) or damage(error)) is None:
                raise
            click.echo(f"nq: {cause}", err=True)
            sys.exit(FAULT)

    return wrapped


def disk_trouble(error: Exception) -> str | None:
    """What is wrong with the disk of the data, where an error comes of it."""
    from nq_pipeline.disk import trouble
    from nq_pipeline.errors import SettingsError
    from nq_pipeline.settings import load

    try:
        return trouble(error, load().environment_dir)
    except SettingsError:
        return None


def damage(error: Exception) -> Exception | None:
    """The damage of the lake that a reader of its files has met; None when there is another cause."""
    if type(error).__module__.partition(".")[0] not in ("polars", "duckdb", "_duckdb", "pyarrow"):
        return None
    from nq_pipeline.lake.repair import find_damage
    from nq_pipeline.settings import load

    return find_damage(Workspace.of(load()).lake)


def _say_what_is_misspelled() -> None:
    """Name on stderr each variable that looks like a setting and is none, once for a command line."""
    import warnings

    from nq_pipeline.errors import SettingsWarning
    from nq_pipeline.settings import misspelled

    context = click.get_current_context(silent=True)
    if context is None or context.meta.setdefault(__name__, context) is not context:
        return
    for sentence in misspelled():
        click.echo(f"nq: {sentence}", err=True)
    warnings.simplefilter("ignore", SettingsWarning)  # what `load` says to those that are no command line
