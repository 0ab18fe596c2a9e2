"""Commands that read the lake: `nq sql`, `nq report`, `nq tables`."""

from __future__ import annotations

import io
import shutil
import sys
from contextlib import redirect_stdout
from datetime import date, datetime
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

import click

from nq_pipeline.cli.exit_codes import SQL_FAILED, lake_damage, report_errors
from nq_pipeline.cli.help import DatedHelp
from nq_pipeline.cli.options import day_or_instant
from nq_pipeline.cli.output import load, note_sandbox
from nq_pipeline.workspace import Workspace

if TYPE_CHECKING:
    import duckdb

    from nq_pipeline.lake.results import OutputFormat


EVERY_COLUMN = 100_000
"""A line width, in characters, that no result reaches."""


@click.command(short_help="Run a read-only query on the newest data in the lake.")
@click.argument("query")
@click.option("--json", "form", flag_value="json", help="One JSON object per row, as a list.")
@click.option("--csv", "form", flag_value="csv", help="Comma-separated values with a header.")
@report_errors
def sql(query: str, form: OutputFormat | None) -> None:
    """Run a read-only query against the newest data in the lake.

    \b
    Tables: option_chain_latest, option_chain, source_chain, decisions, spend, …; see nq tables.
    Example:
      nq sql "select series, count(*) as contracts from option_chain_latest group by 1 order by 1"
    """
    import duckdb

    from nq_pipeline.errors import LakeError
    from nq_pipeline.lake import catalog, results

    settings = load()
    memory_mb, lake = settings.query.memory_mb, Workspace.of(settings).existing_lake
    with catalog.connect(lake, guarded=True, memory_mb=memory_mb) as connection:

        def run_query() -> list[str]:
            relation = catalog.query(connection, query)
            return (
                [*results.format_result(relation, form, memory_mb=memory_mb)] if form else [_shown(relation)]
            )

        try:
            texts = results.run_within_limits(
                connection, run_query, seconds=settings.query.timeout_s, memory_mb=memory_mb
            )
        except (duckdb.Error, LakeError) as error:
            # DuckDB reports a damaged file with these errors, but does not name it.
            unreadable = type(error) in (duckdb.Error, duckdb.IOException, duckdb.InvalidInputException)
            cause = (lake_damage(error) if unreadable else None) or error
            click.echo(f"nq: the query failed: {cause}\n`nq tables` lists tables and columns.", err=True)
            sys.exit(SQL_FAILED)
    if form is None:
        note_sandbox(settings)
    for text in texts:
        click.echo(text, nl=False)
    if form is None and " shown)" in texts[-1].splitlines()[-1]:
        click.echo("nq: not everything is shown; --csv or --json prints every row and column", err=True)


def _shown(relation: duckdb.DuckDBPyRelation) -> str:
    """The first and last rows as a table, as wide as the terminal; in full width without a terminal."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else EVERY_COLUMN
    with redirect_stdout(io.StringIO()) as table:
        relation.show(max_width=width)
    return table.getvalue().rstrip("\n") + "\n"


@click.command(cls=DatedHelp, short_help="Write the newest snapshot as one HTML page and open it.")
@click.option("--snapshot", "moment", type=day_or_instant, metavar="DATE|INSTANT",
              help="The newest snapshot of this trade date, or the chain as of this instant.")  # fmt: skip
@click.option(
    "--list",
    "only_list",
    is_flag=True,
    help="Only list the snapshots of the lake or, with --snapshot, of a trade date.",
)
@click.option("--no-open", is_flag=True, help="Write the page without opening it.")
@report_errors
def report(moment: date | None, only_list: bool, no_open: bool) -> None:
    """Write the report of a snapshot, one HTML page, and open it in the browser.

    It shows volatility, positions, gamma exposure, trades, what changed since earlier snapshots, the sources
    of the chain, gaps and spend. The page needs no network; you can send or print it as it is.

    \b
    Examples:
      nq report
      nq report --list
      nq report --snapshot 2025-06-10 --no-open
      nq report --snapshot 2025-06-10T15:00:00Z --no-open
    """
    import webbrowser

    from nq_pipeline.report import snapshots
    from nq_pipeline.report.page import write_report

    instant = moment if isinstance(moment, datetime) else None
    day = None if instant else moment
    if only_list and instant:
        raise click.UsageError(f"--list --snapshot {instant.isoformat()}: write a trade date like 2025-06-10")
    settings = load()
    note_sandbox(settings)
    if only_list:
        found = snapshots.find_snapshots(settings, day)
        for row in found.iter_rows(named=True):
            click.echo(_snapshot_line(**row))
        if found.is_empty():
            click.echo(f"nq: the lake has no snapshots{f' of trade date {day}' if day else ''}", err=True)
        return
    snapshot_ts = snapshots.newest_snapshot(settings, day) if day else instant
    written = write_report(settings, snapshot_ts=snapshot_ts)
    path = written.path
    if path is None and not no_open:  # a browser needs a file
        path = Path(mkdtemp(prefix="nq-report-")) / "report.html"
        path.write_bytes(written.page)
    opened = path is not None and not no_open and webbrowser.open(path.as_uri())
    where = written.uri if path is None or path == written.path else f"{written.uri}, a copy in {path}"
    click.echo(f"Report: {where}{'' if opened else '; open it in any browser'}")


def _snapshot_line(
    snapshot_ts: datetime, trade_date: date, contracts: int, series: int, sources: list[str]
) -> str:
    """A line of `nq report --list`; it begins with the instant as `--snapshot` takes it."""
    from nq_pipeline.market.sessions import CHICAGO

    instant = snapshot_ts.isoformat().replace("+00:00", "Z")
    return (
        f"{instant:<27}  {snapshot_ts.astimezone(CHICAGO):%a %d %b %H:%M} CT  trade date {trade_date}  "
        f"{contracts:>6,} contracts in {series} series from {', '.join(sources)}"
    )


@click.command(short_help="List the tables and views and what every column means.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--markdown", is_flag=True, help="Print the reference page `docs/tables.md`.")
def tables(names: tuple[str, ...], markdown: bool) -> None:
    """List the tables and views and what every column means: all, or those named."""
    from nq_pipeline.lake import reference

    if unknown := [name for name in names if name not in reference.NAMES]:
        raise click.BadParameter(f"{', '.join(unknown)}: not a table or view; `nq tables` lists them all")
    click.echo(reference.markdown() if markdown else reference.text(names))
