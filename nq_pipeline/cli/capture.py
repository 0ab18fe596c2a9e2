"""Commands on the live feed and its files: `nq capture`, `nq verify`, `nq convert`."""

from __future__ import annotations

import signal
import sys
import threading
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nq_pipeline.cli.exit_codes import OK, UNHEALTHY, report_errors
from nq_pipeline.cli.options import usd
from nq_pipeline.cli.output import load, note_sandbox, printable, program, to_json

if TYPE_CHECKING:
    from nq_pipeline.capture.stats import CaptureStats


@click.command(short_help="Capture trades and books live from Databento's gateway.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), metavar="N",
              help="Stop after N minutes; by default at the close of the window or at Ctrl-C.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print only one JSON object, at the end.")
@report_errors
def capture(minutes: float | None, as_json: bool) -> None:
    """Capture options and futures live from Databento's gateway, without Dagster.

    Everything the gateway sends goes to the capture log first, and to the tables trades, gaps and
    sessions about a second later. After a lost connection the capture reconnects, replays what it
    missed and counts the records. In the sandbox the market is open at any hour.

    \b
    Example:
      nq capture --minutes 1
    """
    from nq_pipeline.capture.capture import Capture
    from nq_pipeline.market import sessions
    from nq_pipeline.runtime import endpoints, gateway_clock
    from nq_pipeline.signals import on_signal
    from nq_pipeline.sources.databento.gap_history import DatabentoHistory
    from nq_pipeline.sources.databento.spec import DatabentoSettings
    from nq_pipeline.workspace import Workspace

    stop = threading.Event()
    with on_signal(lambda _: stop.set(), signal.SIGINT, signal.SIGTERM), endpoints(load()) as settings:
        if not as_json:
            note_sandbox(settings)
        clock, workspace = gateway_clock(settings), Workspace.of(settings)
        day = sessions.trade_date(clock.now())
        if not as_json and day != sessions.trade_date(settings.clock.now()):
            click.echo(f"The stand-in streams the regular hours of trade date {day}, the last one.")
        log = workspace.capture / settings.vendor(DatabentoSettings).dataset
        engine = Capture(settings, clock=clock, history=DatabentoHistory(settings))
        if minutes:
            timer = threading.Timer(minutes * 60, stop.set)
            timer.daemon = True
            timer.start()
        show = None if as_json else _ProgressLine().show
        totals = engine.run_and_publish(
            stop, progress=show, warn=lambda line: click.echo(f"nq: {line}", err=True)
        )
    for alert in totals.alerts():
        click.echo(f"nq: ALERT: {alert}", err=True)
    if as_json:
        click.echo(to_json(asdict(totals)))
        return
    click.echo(f"\nLog: {log}; tables trades, gaps, sessions in {workspace.lake.uri}. Next, paste:")
    click.echo(
        f'  {program()} sql "select instrument_kind, count(*) as trades, sum(size)::bigint as contracts '
        'from trades group by all"'
    )


class _ProgressLine:
    """The progress of a capture in one line, overwritten in a terminal."""

    def __init__(self) -> None:
        self._note = ""
        self._overwrite = sys.stdout.isatty()

    def show(self, totals: CaptureStats) -> None:
        if totals.note != self._note:
            self._note = totals.note
            click.echo(f"{self._clear()}{printable(totals.note)}")
        if totals.publish_failure:
            click.echo(f"{self._clear()}Not published: {printable(totals.publish_failure)}")
        lag = "-" if totals.lag_p99_ms is None else f"{totals.lag_p99_ms:,.0f} ms"
        schemas = ", ".join(f"{what} {schema}" for what, schema in totals.schemas.items())
        line = (
            f"{totals.seconds:6.0f} s  {totals.records:,} records  {totals.rate:,.0f}/s  lag p99 {lag}  "
            f"reconnects {totals.reconnects}  open gaps {totals.open_gaps}  {schemas}  {totals.bytes:,} bytes"
        )
        click.echo(f"{self._clear()}{line}", nl=not self._overwrite)

    def _clear(self) -> str:
        return "\r\x1b[K" if self._overwrite else ""


@click.command(short_help="Test the feed before trusting it, and keep the evidence.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True,
              metavar="N", help="How long to stream before the connection is dropped.")  # fmt: skip
@click.option("--max-usd", type=usd, default="0", show_default=True, metavar="USD",
              help="Maximum to spend on comparing with the historical API.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print only one JSON object, at the end.")
@report_errors
def verify(minutes: float, max_usd: Decimal, as_json: bool) -> None:
    """Test the configured feed before trusting it, and keep the evidence.

    Connects to Databento's live gateway, streams, drops the connection, reconnects with a replay,
    and counts and compares the records. Also finds out what the plan includes and what a span
    costs, and checks every chain vendor. Prints PASS, FAIL or SKIP with the reason.

    \b
    Example:
      nq verify --minutes 0.2 --max-usd 1
    """
    from nq_pipeline.runtime import endpoints, gateway_clock
    from nq_pipeline.verify.check import CheckResult
    from nq_pipeline.verify.run import run_checks

    def show(result: CheckResult) -> None:
        click.echo(f"{result.verdict}  {result.check:<11}  {printable(result.reason)}")

    with endpoints(load()) as settings:
        if not as_json:
            note_sandbox(settings)
        report = run_checks(
            settings,
            clock=gateway_clock(settings),
            minutes=minutes,
            max_usd=max_usd,
            on_result=None if as_json else show,
        )
    if as_json:
        click.echo(to_json({**report.as_json(), "evidence": report.evidence}))
    else:
        click.echo(f"{report.summary}; ${report.spent_usd:.4f} spent; evidence in {report.evidence}")
    sys.exit(OK if report.sound else UNHEALTHY)


@click.command(short_help="Convert a DBN file to Parquet, with symbols mapped.")
@click.argument("source", metavar="FILE", type=click.Path(exists=True, dir_okay=False))
@click.option("--output", "-o", metavar="PARQUET", type=click.Path(dir_okay=False),
              help="Output file; by default FILE's name with .parquet.")  # fmt: skip
@click.option("--keep-complete", is_flag=True, help="Convert the complete records of a truncated file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@report_errors
def convert(source: str, output: str | None, keep_complete: bool, as_json: bool) -> None:
    """Convert a DBN file from Databento to Parquet, with symbols mapped.

    A live capture becomes one file for each schema in it, e.g. capture.trades.parquet.

    \b
    Example:
      nq convert trades.dbn.zst -o trades.parquet
    """
    from nq_pipeline.dbn.to_parquet import convert as to_parquet

    file = Path(source)
    parquet = Path(output) if output else file.with_name(f"{file.name.split('.dbn')[0]}.parquet")
    done = to_parquet(file, parquet, keep_complete=keep_complete)
    if as_json:
        click.echo(to_json(asdict(done)))
        return
    for written in done.files:
        lost = f", {written.unmapped:,} without a symbol" if written.unmapped else ""
        click.echo(f"{written.path}: {written.rows:,} {written.schema}{lost}, {written.bytes:,} bytes")
    for kind, count in done.skipped.items():
        click.echo(f"{count:,} records of kind {kind} have no table.")
    if done.cut:
        click.echo(f"Incomplete: {done.cut}.")
