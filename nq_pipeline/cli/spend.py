"""Commands that handle money: `nq budget` and `nq backfill`."""

from __future__ import annotations

import sys
import uuid
from dataclasses import asdict
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import click

from nq_pipeline.cli.exit_codes import OK, UNHEALTHY, disk_trouble, report_errors
from nq_pipeline.cli.options import usd
from nq_pipeline.cli.output import load, note_sandbox, printable, progress, to_json
from nq_pipeline.workspace import Workspace

if TYPE_CHECKING:
    from nq_pipeline.settings import Settings
    from nq_pipeline.spend.ledger import Ledger


@click.group(
    invoke_without_command=True, short_help="Show what the month has cost, what is reserved and what is left."
)
@click.option("--month", "named", metavar="YYYY-MM", help="A month; by default the current one.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
@report_errors
def budget(context: click.Context, named: str | None, as_json: bool) -> None:
    """Show what this month has cost, what is reserved, what is left and the projected total.

    \b
    Examples:
      nq budget
      nq budget --month 2026-10
      nq budget reconcile 1f0c9a7be2d4 --usd 1.25 --reason "the vendor's usage page"
    """
    from nq_pipeline.spend import report
    from nq_pipeline.spend.ledger import read_ledger

    if context.invoked_subcommand is not None:
        return
    settings = load()
    ledger = read_ledger(settings)
    month = ledger.month(_first_of(named, settings.spend.budget_timezone) if named else None)
    _export_spend(settings, ledger)
    if as_json:
        click.echo(to_json(report.statement_json(month)))
        return
    note_sandbox(settings)
    click.echo("\n".join(map(printable, report.statement_text(month).splitlines())))


@budget.command(short_help="Book what the vendor billed for a reservation.")
@click.argument("reservation")
@click.option(
    "--usd", type=usd, required=True, metavar="USD", help="What the vendor billed for it; 0 for nothing."
)
@click.option("--reason", required=True, help="How you know; recorded with the booking.")
@report_errors
def reconcile(reservation: str, usd: Decimal, reason: str) -> None:
    """Book what the vendor billed for a reservation that a crash or a broken download left open.

    For a closed reservation the difference is booked as a correction.
    """
    from nq_pipeline.spend.ledger import Ledger
    from nq_pipeline.spend.money import format_usd

    settings = load()
    ledger = Ledger(settings)
    ledger.reconcile(reservation, usd, reason)
    _export_spend(settings, ledger)
    left = ledger.month().remaining_usd
    click.echo(f"Booked: {reservation} cost {format_usd(usd)}. {format_usd(left)} is left this month.")


@budget.command("restore", short_help="Rebuild a lost or older ledger from the table spend.")
@report_errors
def restore_ledger() -> None:
    """Add the lines that a lost or older spend ledger lacks from its copy in the lake, the table spend."""
    from nq_pipeline.spend.export import restore_ledger

    lines, newest = restore_ledger(load())
    click.echo(
        f"Restored: {lines:,} lines, the last of {newest:%Y-%m-%d %H:%M} UTC. Later bookings are "
        "missing: compare `nq budget` with the vendor's usage page."
    )


@budget.command("trust-clock", short_help="Trust this machine's clock again.")
@click.option("--reason", required=True, help="What was wrong with it; recorded in the ledger.")
@report_errors
def trust_clock(reason: str) -> None:
    """Trust this machine's clock again after it was wrong and the budgets stopped following it."""
    from nq_pipeline.spend.ledger import Ledger

    ledger = Ledger(load())
    ledger.trust_clock(reason)
    click.echo(f"Budgets count as of {ledger.month().as_of:%Y-%m-%d %H:%M} UTC.")


@budget.command("adopt-lake", short_help="Tie the shared ledger to this machine's lake.")
@report_errors
def adopt_lake() -> None:
    """Tie the ledger in PostgreSQL to the lake that this machine sees, in place of another one."""
    from nq_pipeline.spend.database import adopt_this_lake

    click.echo(f"The ledger belongs to the lake {adopt_this_lake(load())}. Other lakes are refused.")


def _export_spend(settings: Settings, ledger: Ledger) -> None:
    """Export new lines of the ledger to the table `spend`."""
    from nq_pipeline.lake import catalog
    from nq_pipeline.spend.export import export_lines

    if ledger.is_copy:
        return  # a copy in memory, lost when the command ends
    try:
        if export_lines(ledger, Workspace.of(settings).lake, run_id="nq budget"):
            catalog.publish(Workspace.of(settings).lake)
    except Exception as error:
        if (problem := disk_trouble(error)) is None:
            raise
        click.echo(f"nq: the table spend was not updated: {problem}", err=True)


def _first_of(month: str, zone: str) -> datetime:
    """Parse YYYY-MM to the first moment of the month."""
    try:
        return datetime.strptime(month, "%Y-%m").replace(tzinfo=ZoneInfo(zone))
    except ValueError:
        raise click.UsageError(f"--month {month}: write a month like 2026-10") from None


@click.command(short_help="Buy days of Databento's history, each priced first.")
@click.option("--schema", required=True, metavar="SCHEMA",
              help="trades, mbo, definition, statistics, ohlcv-1m, ohlcv-1d or bbo-1m.")  # fmt: skip
@click.option("--from", "first", required=True, type=click.DateTime(["%Y-%m-%d"]), metavar="DATE",
              help="First trade date.")  # fmt: skip
@click.option("--to", "last", required=True, type=click.DateTime(["%Y-%m-%d"]), metavar="DATE",
              help="Last trade date, inclusive.")  # fmt: skip
@click.option("--symbols", metavar="PARENTS", default="",
              help="Parent symbols, e.g. NQ.OPT,NQ.FUT; by default NQ_BACKFILL_SYMBOLS.")  # fmt: skip
@click.option("--max-usd", type=usd, default="0", show_default=True, metavar="USD",
              help="Maximum cost in total; the budgets of `nq budget` apply, too.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Show what each day would cost, and buy nothing.")
@click.option("--yes", is_flag=True, help="Spend without asking for confirmation.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; needs --yes or --dry-run.")
@report_errors
def backfill(
    schema: str,
    first: datetime,
    last: datetime,
    symbols: str,
    max_usd: Decimal,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Buy trade dates of Databento's history, after showing what each one costs.

    A day is complete when it has as many records as the vendor counts. A complete day is never
    bought again, so you can repeat the command to continue where it stopped.

    \b
    Examples:
      nq backfill --schema trades --from 2025-06-02 --to 2025-06-06 --dry-run
      nq backfill --schema statistics --from 2025-06-02 --to 2025-06-06 --max-usd 5
    """
    from nq_pipeline.analytics.daily import measure_days
    from nq_pipeline.backfill.day import backfill_day
    from nq_pipeline.backfill.plan import budget_refusal, plan_backfill
    from nq_pipeline.runtime import endpoints
    from nq_pipeline.spend.export import publish_spend
    from nq_pipeline.spend.money import format_usd

    if as_json and not (yes or dry_run):
        raise click.UsageError("--json cannot ask for confirmation; add --yes or --dry-run")
    parents = [name.strip() for name in symbols.split(",") if name.strip()]
    left = max_usd
    with endpoints(load()) as settings:
        priced = plan_backfill(settings, schema, first.date(), last.date(), symbols=parents)
        total = sum((day.usd for day in priced), Decimal(0))
        no = budget_refusal(settings, priced, symbols=parents)
        if dry_run and as_json:
            click.echo(to_json({"total_usd": total, "refusal": no, "days": [asdict(day) for day in priced]}))
            return
        if not as_json:
            note_sandbox(settings)
            for price in priced:
                what = price.state or f"{format_usd(price.usd)} for {(price.size or 0) / 2**20:,.1f} MiB"
                click.echo(f"{price.trade_date}  {schema}  {what}{', as a batch job' if price.batch else ''}")
            at = min((price.at for price in priced if price.at), default=None)
            by = f" at the vendor's prices of {at:%Y-%m-%d %H:%M} UTC" if at else ""
            click.echo(f"{format_usd(total)} in all{by}; --max-usd allows {format_usd(left)}.")
            if no:
                click.echo(f"Not all of it can be bought: {printable(no)}.")
        if dry_run or (total and not yes and not click.confirm("Buy it?")):
            click.echo("Nothing was bought.")
            if dry_run and total > left:
                click.echo(f"To buy it, leave out --dry-run and allow {format_usd(total)} with --max-usd.")
            return
        done, run_id = [], uuid.uuid4().hex
        report = (lambda message: None) if as_json else progress
        try:
            for price in priced:
                day = backfill_day(
                    settings,
                    schema,
                    price.trade_date,
                    max_usd=left,
                    symbols=parents,
                    run_id=run_id,
                    report=report,
                )
                left = max(Decimal(0), left - day.cost_usd)
                done.append(day)
                if not as_json:
                    click.echo(f"{day.trade_date}  {schema}  {day.state}: {printable(day.summary)}")
        finally:  # also after Ctrl-C
            measure_days(settings, [day.trade_date for day in done], run_id=run_id)
            publish_spend(settings, run_id=run_id)
    if as_json:
        spent = sum((day.cost_usd for day in done), Decimal(0))
        click.echo(to_json({"cost_usd": spent, "days": [asdict(day) for day in done]}))
    sys.exit(OK if all(day.state in ("complete", "empty", "missing") for day in done) else UNHEALTHY)
