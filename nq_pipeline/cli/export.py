"""`nq export`: the lake's data in the formats of other tools."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import click

from nq_pipeline.cli.exit_codes import report_errors
from nq_pipeline.cli.help import DatedHelp
from nq_pipeline.cli.options import instant
from nq_pipeline.cli.output import load, note_sandbox, status
from nq_pipeline.export import FORMATS


@click.command(
    cls=DatedHelp,
    short_help="Write chains, trades and quotes in the formats of other tools.",
    epilog="\b\nFormats:\n" + "\n".join(f"  {name:<10}{form.meaning}" for name, form in FORMATS.items()),
)
@click.argument("format", type=click.Choice(list(FORMATS)), metavar="FORMAT")
@click.option("--to", required=True, metavar="PATH", help="Output file, which is replaced, or output folder.")
@click.option("--from", "first", type=click.DateTime(["%Y-%m-%d"]), metavar="DATE", help="First trade date.")
@click.option("--until", "last", type=click.DateTime(["%Y-%m-%d"]), metavar="DATE",
              help="Last trade date, inclusive.")  # fmt: skip
@click.option("--as-of", type=instant, metavar="INSTANT",
              help="The chain as of this instant (ISO 8601) instead of trade dates.")  # fmt: skip
@click.option("--table", "tables", multiple=True, metavar="NAME",
              help="For csv and excel: a table or view; may be repeated.")  # fmt: skip
@report_errors
def export(
    format: str,
    to: str,
    first: datetime | None,
    last: datetime | None,
    as_of: datetime | None,
    tables: tuple[str, ...],
) -> None:
    """Write part of the lake in the format of another tool.

    By default optopsy and nautilus hold every trade date, the other formats the current chain.

    \b
    Examples:
      nq export excel --to chain.xlsx
      nq export excel --to chain.xlsx --as-of 2025-06-10T15:00:00Z
      nq export csv --to exported --table trades_enriched --from 2025-06-02 --until 2025-06-06
      nq export nautilus --to catalog
    """
    from nq_pipeline.export import export as write

    settings = load()
    with status(f"{format} …") as show:
        written = write(
            settings,
            format,
            Path(to),
            first=first.date() if first else None,
            last=last.date() if last else None,
            as_of=as_of,
            tables=tables,
            progress=show,
        )
    note_sandbox(settings)
    click.echo(f"Exported: {written.path}")
    for name, rows in written.rows.items():
        click.echo(f"  {name}: {rows:,}")
    for reason, rows in written.left_out.items():
        click.echo(f"  left out: {rows:,} {reason}")
