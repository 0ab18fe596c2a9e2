"""`nq`: the pipeline on the command line. Thin: every command is one library call and its display."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import duckdb
    import polars as pl

    from nq_pipeline.lake.results import Form
    from nq_pipeline.live.totals import Totals
    from nq_pipeline.settings import Settings
    from nq_pipeline.sources.snapshot import Snapshot
    from nq_pipeline.spend.ledger import Ledger

OK, FAULT, USAGE, NO_CHAIN, SQL_FAILED, UNHEALTHY, NO_LAKE = range(7)
_GAMMA = ("source", "product", "forward", "zero_gamma", "gex_per_pct", "open_interest_left_out")
_HOLIDAYS = {(1, 1), (6, 19), (7, 4), (12, 25)}
EVERY_COLUMN = 100_000
"""Characters in a line that no result is wider than."""
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
            click.echo(f"nq: {_disk_trouble(error) or error}", err=True)
            sys.exit(FAULT)
        except OSError as error:
            if said := _disk_trouble(error):
                click.echo(f"nq: {said}", err=True)
                sys.exit(FAULT)
            if error.filename is None:  # not of a file: a fault of this program
                raise
            where = f"{error.filename}: {error.strerror}"
            click.echo(f"nq: cannot use {where}; `nq settings` shows what NQ_DATA_DIR is", err=True)
            sys.exit(FAULT)
        except Exception as error:
            if (cause := _disk_trouble(error) or _damage(error)) is None:
                raise
            click.echo(f"nq: {cause}", err=True)
            sys.exit(FAULT)

    return wrapped


def _disk_trouble(error: Exception) -> str | None:
    """What is wrong with the disk of the data, where an error comes of it."""
    from nq_pipeline.disk import trouble
    from nq_pipeline.errors import SettingsError
    from nq_pipeline.settings import load

    try:
        return trouble(error, load().environment_dir)
    except SettingsError:
        return None


def _damage(error: Exception) -> Exception | None:
    """The damage of the lake that a reader of its files has met; None when there is another cause."""
    if type(error).__module__.partition(".")[0] not in ("polars", "duckdb", "_duckdb", "pyarrow"):
        return None
    from nq_pipeline.lake.lake import Lake
    from nq_pipeline.lake.repair import find_damage
    from nq_pipeline.settings import load

    return find_damage(Lake(load().environment_dir / "lake"))


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


def _usd(words: str) -> Decimal:
    """An amount of money, from its words straight to a decimal."""
    try:
        amount = Decimal(words)
    except InvalidOperation:
        amount = Decimal("NaN")
    if not (amount.is_finite() and amount >= 0):
        raise click.BadParameter(f"{words}: write an amount like 5 or 1.25")
    return amount


class _DatedHelp(click.Command):
    """Help whose examples work on the day they are read."""

    def get_help(self, ctx: click.Context) -> str:
        text = super().get_help(ctx)
        for written, current in _examples().items():
            text = text.replace(written, current)
        return text


def _examples() -> dict[str, str]:
    """What to show today for the dated examples in the help, each as long as what is written there.

    The series is a Tuesday's weekly some days ahead. The calendar itself would take a second to load:
    of its holidays only those of a fixed date can fall on a Tuesday, and on the last trade date of a
    month the end-of-month option takes the weekly's place.
    """
    import os

    try:
        now = datetime.fromisoformat(os.environ["NQ_NOW"]).astimezone(UTC)
    except (KeyError, ValueError):
        now = datetime.now(UTC)
    day, one = now.date() + timedelta(days=3), timedelta(days=1)
    while day.weekday() != 1 or (day.month, day.day) in _HOLIDAYS or (day + one).month != day.month:
        day += one
    week = (day.day + 6) // 7
    return {
        "Q1B-2025-07-01": f"Q{week}B-{day}",
        "MM1N5": f"MM{week}{'FGHJKMNQUVXZ'[day.month - 1]}{day.year % 10}",
        "2025-06-10T15:00:00Z": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


@click.group(epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="nq_pipeline", prog_name="nq")
def main() -> None:
    """Options on E-mini Nasdaq-100 futures: four vendors' chains in one Parquet lake.

    Without credentials everything runs in the sandbox: a synthetic market served by stand-ins
    on this machine. Set NQ_ENVIRONMENT=live and the vendors' keys (see .env.example) for real
    data.
    """


@main.command(cls=_DatedHelp, short_help="Ask the vendors for chains now, and write and price the best.")
@click.option("--series", "-s", multiple=True, metavar="SERIES",
              help="Only this series, e.g. Q1B-2025-07-01 (repeatable). With --source barchart also the "
              "site's own code, e.g. MM1N5. Without it: all expirations of the next days.")  # fmt: skip
@click.option("--source", multiple=True, metavar="VENDOR",
              help="Ask only this vendor (repeatable): barchart, polygon, tradovate, databento.")  # fmt: skip
@click.option("--refresh", is_flag=True, help="Ask even where a cached answer is still fresh.")
@click.option("--from-raw", metavar="RUN", help="Ask nobody: parse the archived answers of this run again "
              "(an id, or `latest`).")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
@sentences
def run(
    series: tuple[str, ...], source: tuple[str, ...], refresh: bool, from_raw: str | None, as_json: bool
) -> None:
    """Ask the vendors for option chains now, write them to the lake, price and measure the chosen one.

    \b
    Examples:
      nq run
      nq run --series Q1B-2025-07-01
      nq run --source barchart --series MM1N5
      nq run --from-raw latest
    """
    from nq_pipeline.sandbox.process import endpoints
    from nq_pipeline.settings import load
    from nq_pipeline.sources.snapshot import build_request, finish_killed, replay_snapshot, take_snapshot

    if from_raw and (series or source or refresh):
        raise click.UsageError(
            "--from-raw parses what that run asked; leave out --series, --source and --refresh"
        )
    settings = _chosen(load(), source)
    if from_raw:
        if not as_json:
            _note_sandbox(settings)
        snapshot = replay_snapshot(settings, from_raw)
    else:
        request = build_request(settings, series=series, source=source[0] if len(source) == 1 else None)
        if not as_json:
            _announce(settings, request)
        for killed in finish_killed(settings, before=request.snapshot_ts, progress=_progress):
            _price(settings, killed)
        tell = (lambda line: None) if as_json else _progress
        with endpoints(settings) as reachable:
            snapshot = take_snapshot(reachable, request, refresh=refresh, progress=tell)
    measured = _price(settings, snapshot)
    if as_json:
        click.echo(_json({**_as_json(settings, snapshot), **_measured_as_json(measured)}))
    else:
        _show(settings, snapshot, measured)
    sys.exit(OK if snapshot.chain.height else NO_CHAIN)


@main.command(short_help="Capture trades and books live from Databento's gateway.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), metavar="N",
              help="Stop after so long; by default at the close of the window, or at Ctrl-C.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end, nothing before.")
@sentences
def capture(minutes: float | None, as_json: bool) -> None:
    """Capture options and futures live from Databento's gateway, without Dagster.

    Everything the gateway sends goes to the capture log first and to the tables trades, gaps and
    sessions about a second later. Lost connections are taken up again and what was missed is
    replayed and counted. In the sandbox the market moves at any hour.

    \b
    Example:
      nq capture --minutes 1
    """
    import signal
    import threading
    from dataclasses import asdict

    from nq_pipeline.lake.lake import Lake
    from nq_pipeline.live.capture import Capture
    from nq_pipeline.live.publish import Publisher
    from nq_pipeline.market import sessions
    from nq_pipeline.sandbox.process import endpoints, gateway_clock
    from nq_pipeline.settings import load
    from nq_pipeline.sources.history import DatabentoHistory

    stop = threading.Event()
    with _at_signal(stop.set, signal.SIGINT, signal.SIGTERM), endpoints(load()) as settings:
        if not as_json:
            _note_sandbox(settings)
        clock, folder = gateway_clock(settings), settings.environment_dir
        day = sessions.trade_date(clock.now())
        if not as_json and day != sessions.trade_date(settings.clock.now()):
            click.echo(f"The stand-in streams regular hours of trade date {day}, the last there were.")
        log = folder / "capture" / settings.databento_dataset
        engine = Capture(settings, clock=clock, history=DatabentoHistory(settings))
        publisher = Publisher(log, Lake(folder / "lake"), clock=clock, run_id=engine.run_id)
        if minutes:
            timer = threading.Timer(minutes * 60, stop.set)
            timer.daemon = True
            timer.start()
        totals = engine.run(stop, publish=publisher.publish, progress=None if as_json else _Counters().show)
        publisher.tidy()
    for alert in totals.alerts():
        click.echo(f"nq: ALERT: {alert}", err=True)
    if as_json:
        click.echo(_json(asdict(totals)))
        return
    click.echo(f"\nLog: {log}; tables trades, gaps, sessions in {folder / 'lake'}. Next, paste:")
    click.echo(
        f'  {_program()} sql "select instrument_kind, count(*) as trades, sum(size)::bigint as contracts '
        'from trades group by all"'
    )


@main.command(short_help="Run a query on the lake, read-only, on the newest data.")
@click.argument("query")
@click.option("--json", "form", flag_value="json", help="One JSON object per row, as a list.")
@click.option("--csv", "form", flag_value="csv", help="Comma-separated values with a header.")
@sentences
def sql(query: str, form: Form | None) -> None:
    """Run a query against the lake, read-only, always on the newest data.

    \b
    Tables: option_chain_latest, option_chain, source_chain, decisions, spend, …; see nq tables.
    Example:
      nq sql "select series, count(*) as contracts from option_chain_latest group by 1 order by 1"
    """
    import duckdb

    from nq_pipeline.errors import LakeError
    from nq_pipeline.lake import catalog, results
    from nq_pipeline.settings import load

    settings = load()
    memory_mb, folder = settings.sql_memory_mb, catalog.existing(settings.environment_dir)
    with catalog.connect(folder, guarded=True, memory_mb=memory_mb) as connection:

        def answered() -> list[str]:
            relation = catalog.query(connection, query)
            return results.texts(relation, form, memory_mb=memory_mb) if form else [_shown(relation)]

        try:
            texts = results.within(connection, answered, seconds=settings.sql_timeout_s, memory_mb=memory_mb)
        except (duckdb.Error, LakeError) as error:
            # What DuckDB says of a damaged file: not which one it is.
            unread = type(error) in (duckdb.Error, duckdb.IOException, duckdb.InvalidInputException)
            cause = (_damage(error) if unread else None) or error
            click.echo(f"nq: the query failed: {cause}\n`nq tables` lists tables and columns.", err=True)
            sys.exit(SQL_FAILED)
    if form is None:
        _note_sandbox(settings)
    for text in texts:
        click.echo(text, nl=False)
    if form is None and " shown)" in texts[-1].splitlines()[-1]:
        click.echo("nq: there is more than is shown; --csv or --json prints every row and column", err=True)


def _shown(relation: duckdb.DuckDBPyRelation) -> str:
    """The first and last rows as a table, as wide as the terminal, or whole where there is none."""
    import io
    import shutil
    from contextlib import redirect_stdout

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else EVERY_COLUMN
    with redirect_stdout(io.StringIO()) as table:
        relation.show(max_width=width)
    return table.getvalue().rstrip("\n") + "\n"


@main.command(cls=_DatedHelp, short_help="Write the newest snapshot as one HTML page and open it.")
@click.option("--snapshot", "moment", metavar="INSTANT",
              help="The chain as it stood at this moment, in ISO 8601; the newest without it.")  # fmt: skip
@click.option("--no-open", is_flag=True, help="Only write the page.")
@sentences
def report(moment: str | None, no_open: bool) -> None:
    """Write the report of a snapshot, one HTML page, and open it in the browser.

    Smile, term structure, positions, gamma exposure and trades, where the chain came from, gaps and
    spend. The page needs no network; send it or print it as it is.

    \b
    Examples:
      nq report
      nq report --snapshot 2025-06-10T15:00:00Z --no-open
    """
    import webbrowser

    from nq_pipeline.report import write_report
    from nq_pipeline.settings import load

    settings, snapshot_ts = load(), _instant(moment) if moment else None
    _note_sandbox(settings)
    page = write_report(settings, snapshot_ts=snapshot_ts).resolve()
    opened = not no_open and webbrowser.open(page.as_uri())
    click.echo(f"Report: {page}{'' if opened else '; open it in any browser'}")


@main.command()
@click.argument("source", metavar="FILE", type=click.Path(exists=True, dir_okay=False))
@click.option("--output", "-o", metavar="PARQUET", type=click.Path(dir_okay=False),
              help="Where to write; by default beside FILE, ending in .parquet.")  # fmt: skip
@click.option("--keep-complete", is_flag=True, help="Convert the whole records of a file that is cut off.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@sentences
def convert(source: str, output: str | None, keep_complete: bool, as_json: bool) -> None:
    """Convert a DBN file of Databento's to Parquet, symbols mapped.

    A live capture becomes one file for each schema in it, e.g. capture.trades.parquet.

    \b
    Example:
      nq convert trades.dbn.zst -o trades.parquet
    """
    from dataclasses import asdict
    from pathlib import Path

    from nq_pipeline.disk import trouble
    from nq_pipeline.lake.convert import convert as to_parquet

    file = Path(source)
    parquet = Path(output) if output else file.with_name(f"{file.name.split('.dbn')[0]}.parquet")
    try:
        done = to_parquet(file, parquet, keep_complete=keep_complete)
    except OSError as error:  # of the disk that is written to, whichever holds the data
        if (said := trouble(error, parquet.parent)) is None:
            raise
        click.echo(f"nq: {said}", err=True)
        sys.exit(FAULT)
    if as_json:
        click.echo(_json(asdict(done)))
        return
    for written in done.files:
        lost = f", {written.unmapped:,} without a symbol" if written.unmapped else ""
        click.echo(f"{written.path}: {written.rows:,} {written.schema}{lost}, {written.bytes:,} bytes")
    for kind, count in done.skipped.items():
        click.echo(f"{count:,} records of kind {kind} have no rows.")
    if done.cut:
        click.echo(f"Not all of it: {done.cut}.")


@main.command(short_help="Each vendor: configured, reachable, entitled, what to mend.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@sentences
def doctor(as_json: bool) -> None:
    """Say for every vendor whether it is configured, reachable and entitled, and what to mend."""
    from dataclasses import asdict

    from nq_pipeline.sandbox.process import endpoints
    from nq_pipeline.settings import load
    from nq_pipeline.sources.doctor import examine, ladder, market_state

    settings = load()
    with endpoints(settings) as settings:
        probes = examine(settings)
    market = market_state(settings.clock.now())
    used = {name: probe for name, probe in probes.items() if name in settings.sources}
    healthy = all(probe.configured and probe.reachable and probe.entitled for probe in used.values())
    if as_json:
        report = {
            "environment": settings.environment,
            "market": market,
            "sources": {name: {**asdict(probe), "used": name in used} for name, probe in probes.items()},
            "ladder": [asdict(step) for step in ladder(settings)],
        }
        click.echo(_json(report))
    else:
        from rich.table import Table

        _note_sandbox(settings)
        click.echo(f"Market: {market}.")
        table = Table(
            "vendor", "configured", "reachable", "entitled", "what it said", box=None, pad_edge=False
        )
        for name, probe in probes.items():
            facts = [_yes_no(fact) for fact in (probe.configured, probe.reachable, probe.entitled)]
            title = name if name in used else f"{name} (not in NQ_SOURCES)"
            table.add_row(title, *facts, _printable(probe.detail))
        _console().print(table)
        click.echo("What each plan has granted or refused so far, and what each step adds:")
        for step in ladder(settings):
            shown = {None: "not asked yet", True: "granted", False: "refused"}[step.entitled]
            again = f" ({_printable(step.said)}); asked again on {step.ask_again}" if step.said else ""
            adds = f" Adds {step.adds}." if step.adds else ""
            click.echo(f"  {step.vendor} {step.mode} {step.schema}: {shown}{again}.{adds}")
        for name, probe in probes.items():
            if probe.mend:
                click.echo(f"To mend {name}: {_printable(probe.mend)}")
    sys.exit(OK if healthy else UNHEALTHY)


@main.command(short_help="Test the feed before trusting it, and keep the evidence.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True,
              metavar="N", help="How long to stream before the connection is dropped.")  # fmt: skip
@click.option("--max-usd", type=_usd, default="0", show_default=True, metavar="USD",
              help="What may be spent on comparing a span with the historical API.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end, nothing before.")
@sentences
def verify(minutes: float, max_usd: Decimal, as_json: bool) -> None:
    """Test the feed before trusting it, against whatever is configured, and keep the evidence.

    Connects to Databento's live gateway, streams, drops the connection and takes it up again by
    replay, counts and compares records, asks what the plan grants, what a span costs, and every
    chain vendor how it is. Prints PASS, FAIL or SKIP with the reason.

    \b
    Example:
      nq verify --minutes 0.2 --max-usd 1
    """
    from nq_pipeline.proof.verify import Result
    from nq_pipeline.proof.verify import verify as make_all_checks
    from nq_pipeline.sandbox.process import endpoints, gateway_clock
    from nq_pipeline.settings import load

    def show(result: Result) -> None:
        click.echo(f"{result.finding.verdict}  {result.check:<11}  {_printable(result.finding.reason)}")

    with endpoints(load()) as settings:
        if not as_json:
            _note_sandbox(settings)
        report = make_all_checks(
            settings,
            clock=gateway_clock(settings),
            minutes=minutes,
            max_usd=max_usd,
            tell=None if as_json else show,
        )
    if as_json:
        click.echo(_json({**report.as_json(), "evidence": report.folder}))
    else:
        click.echo(f"{report.summary}; ${report.spent_usd:.4f} spent; evidence in {report.folder}")
    sys.exit(OK if report.sound else UNHEALTHY)


@main.command(short_help="Buy days of Databento's history, each priced beforehand.")
@click.option("--schema", required=True, metavar="SCHEMA",
              help="trades, mbo, definition, statistics, ohlcv-1m, ohlcv-1d or bbo-1m.")  # fmt: skip
@click.option("--from", "first", required=True, type=click.DateTime(["%Y-%m-%d"]), metavar="DATE",
              help="First trade date.")  # fmt: skip
@click.option("--to", "last", required=True, type=click.DateTime(["%Y-%m-%d"]), metavar="DATE",
              help="Last trade date, itself included.")  # fmt: skip
@click.option("--symbols", metavar="PARENTS", default="",
              help="Parents separated by commas, e.g. NQ.OPT,NQ.FUT; else NQ_BACKFILL_SYMBOLS.")  # fmt: skip
@click.option("--max-usd", type=_usd, default="0", show_default=True, metavar="USD",
              help="What all of it may cost, beside the budgets of `nq budget`.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print what each day would cost, and buy nothing.")
@click.option("--yes", is_flag=True, help="Do not ask before spending.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; needs --yes or --dry-run.")
@sentences
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
    """Buy trade dates of Databento's history, after saying what each one costs.

    Every day is counted against the vendor before it is called complete, and one that is complete
    is never bought again, so the same command goes on where it stopped.

    \b
    Examples:
      nq backfill --schema trades --from 2025-06-02 --to 2025-06-06 --dry-run
      nq backfill --schema statistics --from 2025-06-02 --to 2025-06-06 --max-usd 5
    """
    import uuid
    from dataclasses import asdict

    from nq_pipeline.backfill.day import backfill_day, plan, refusal
    from nq_pipeline.sandbox.process import endpoints
    from nq_pipeline.settings import load
    from nq_pipeline.spend.export import publish_spend
    from nq_pipeline.spend.money import shown

    if as_json and not (yes or dry_run):
        raise click.UsageError("--json asks nothing back; add --yes or --dry-run")
    parents = [name.strip() for name in symbols.split(",") if name.strip()]
    left = max_usd
    with endpoints(load()) as settings:
        priced = plan(settings, schema, first.date(), last.date(), symbols=parents)
        total = sum((day.usd for day in priced), Decimal(0))
        no = refusal(settings, priced, symbols=parents)
        if dry_run and as_json:
            click.echo(_json({"total_usd": total, "refusal": no, "days": [asdict(day) for day in priced]}))
            return
        if not as_json:
            _note_sandbox(settings)
            for price in priced:
                what = price.state or f"{shown(price.usd)} for {(price.size or 0) / 2**20:,.1f} MiB"
                click.echo(f"{price.trade_date}  {schema}  {what}{', as a batch job' if price.batch else ''}")
            at = min((price.at for price in priced if price.at), default=None)
            by = f" by the vendor's prices of {at:%Y-%m-%d %H:%M} UTC" if at else ""
            click.echo(f"{shown(total)} in all{by}; --max-usd allows {shown(left)}.")
            if no:
                click.echo(f"Not all of it would be granted: {_printable(no)}.")
        if dry_run or (total and not yes and not click.confirm("Buy it?")):
            click.echo("Nothing was bought.")
            if dry_run and total > left:
                click.echo(f"To buy it, leave out --dry-run and allow {shown(total)} with --max-usd.")
            return
        done, run_id = [], uuid.uuid4().hex
        tell = (lambda line: None) if as_json else _progress
        try:
            for price in priced:
                day = backfill_day(
                    settings,
                    schema,
                    price.trade_date,
                    max_usd=left,
                    symbols=parents,
                    run_id=run_id,
                    tell=tell,
                )
                left = max(Decimal(0), left - day.cost_usd)
                done.append(day)
                if not as_json:
                    click.echo(f"{day.trade_date}  {schema}  {day.state}: {_printable(day.said)}")
        finally:  # also after Ctrl-C
            publish_spend(settings, run_id=run_id)
    if as_json:
        spent = sum((day.cost_usd for day in done), Decimal(0))
        click.echo(_json({"cost_usd": spent, "days": [asdict(day) for day in done]}))
    sys.exit(OK if all(day.state in ("complete", "empty", "missing") for day in done) else UNHEALTHY)


@main.group(
    invoke_without_command=True, short_help="What the month has cost, what is reserved and what is left."
)
@click.option("--month", "named", metavar="YYYY-MM", help="Another month than the running one.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
@sentences
def budget(context: click.Context, named: str | None, as_json: bool) -> None:
    """Say what this month has cost, what is reserved, what is left and what it will come to.

    \b
    Examples:
      nq budget
      nq budget --month 2026-10
      nq budget reconcile 1f0c9a7be2d4 --usd 1.25 --reason "the vendor's usage page"
    """
    from nq_pipeline.settings import load
    from nq_pipeline.spend import report
    from nq_pipeline.spend.ledger import read_ledger

    if context.invoked_subcommand is not None:
        return
    settings = load()
    ledger = read_ledger(settings)
    month = ledger.month(_first_of(named, settings.budget_timezone) if named else None)
    _export_spend(settings, ledger)
    if as_json:
        click.echo(_json(report.as_json(month)))
        return
    _note_sandbox(settings)
    click.echo("\n".join(map(_printable, report.text(month).splitlines())))


@budget.command()
@click.argument("reservation")
@click.option(
    "--usd", type=_usd, required=True, metavar="USD", help="What the vendor billed for it; 0 when nothing."
)
@click.option("--reason", required=True, help="How you know; it is kept.")
@sentences
def reconcile(reservation: str, usd: Decimal, reason: str) -> None:
    """Book what the vendor billed for a reservation that a crash or a cut download left open.

    Of one that is closed already, the difference is booked as a correction.
    """
    from nq_pipeline.settings import load
    from nq_pipeline.spend.ledger import Ledger
    from nq_pipeline.spend.money import shown

    settings = load()
    ledger = Ledger(settings)
    ledger.reconcile(reservation, usd, reason)
    _export_spend(settings, ledger)
    left = ledger.month().remaining_usd
    click.echo(f"Booked: {reservation} cost {shown(usd)}. {shown(left)} is left this month.")


@budget.command("restore")
@sentences
def restore_ledger() -> None:
    """Make a spend ledger that was lost anew from its copy in the lake, the table spend."""
    from nq_pipeline.settings import load
    from nq_pipeline.spend.restore import restore

    lines, newest = restore(load())
    click.echo(
        f"Restored: {lines:,} lines, the last of {newest:%Y-%m-%d %H:%M} UTC. What was written later is not "
        "among them: compare `nq budget` with the vendor's usage page."
    )


@budget.command("trust-clock")
@click.option("--reason", required=True, help="What was wrong with it; it is kept.")
@sentences
def trust_clock(reason: str) -> None:
    """Take this machine's clock as right, after it was wrong and the budgets stopped following it."""
    from nq_pipeline.settings import load
    from nq_pipeline.spend.ledger import Ledger

    ledger = Ledger(load())
    ledger.trust_clock(reason)
    click.echo(f"Budgets count as of {ledger.month().as_of:%Y-%m-%d %H:%M} UTC.")


@main.group(invoke_without_command=True)
@click.pass_context
@sentences
def alert(context: click.Context) -> None:
    """Show the alerts that have not healed.

    Alerts come of failed runs and of checks at ERROR; docs/alerts.md says how they reach you.
    """
    if context.invoked_subcommand:
        return
    from nq_pipeline.alerts.notifier import Notifier
    from nq_pipeline.settings import load

    settings = load()
    _note_sandbox(settings)
    notifier = Notifier(settings)
    for said in notifier.firing():
        click.echo(f"{said.since:%Y-%m-%d %H:%M} UTC  {said.alert.what}\n    {said.alert.what_to_do}")
        for place in said.alert.where:
            click.echo(f"    {place}")
    if not notifier.firing():
        click.echo(f"No alert is firing; earlier ones are in {notifier.log}")


@alert.command("test")
@sentences
def test_alert() -> None:
    """Send a test message, and say what came of it."""
    from nq_pipeline.alerts.notifier import Notifier
    from nq_pipeline.settings import load

    settings = load()
    notifier = Notifier(settings)
    sent = notifier.test()
    click.echo(f"written to {notifier.log}")
    click.echo("the webhook took it" if sent.delivered else sent.reason)
    sys.exit(OK if sent.delivered or settings.alert_webhook is None else UNHEALTHY)


@main.command(short_help="Remove what is old and proven to be in the lake.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@sentences
def retention(dry_run: bool, as_json: bool) -> None:
    """Remove old answers, capture segments and reports whose content is proven to be in the lake.

    NQ_KEEP_RAW_DAYS, NQ_KEEP_CAPTURE_DAYS and NQ_KEEP_REPORT_DAYS say what is old. The tables, the
    ledger and purchased history are never touched.

    \b
    Example:
      nq retention --dry-run
    """
    from dataclasses import asdict

    from nq_pipeline.retention import sweep
    from nq_pipeline.settings import load

    settings = load()
    swept = sweep(settings, settings.clock.now(), dry_run=dry_run)
    if as_json:
        click.echo(_json({"dry_run": dry_run, "swept": [asdict(part) for part in swept]}))
        return
    _note_sandbox(settings)
    click.echo("This would go:" if dry_run else "This went:")
    for part in swept:
        click.echo(f"  {part.sentence}")


@main.command(short_help="Mend tables whose manifest or files are damaged or missing.")
@click.argument("tables", nargs=-1, metavar="[TABLE]…")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@sentences
def repair(tables: tuple[str, ...], as_json: bool) -> None:
    """Read every file of the tables, all of them by default, and list anew the files that are sound.

    For a table whose manifest is damaged or missing, or one of whose files is. Nothing is deleted: a
    damaged file is renamed. Rows that only it had come back by `nq run --from-raw RUN`, or from a backup.

    \b
    Examples:
      nq repair
      nq repair source_chain
    """
    from dataclasses import asdict

    from nq_pipeline.errors import SettingsError
    from nq_pipeline.lake import catalog
    from nq_pipeline.lake.lake import Lake
    from nq_pipeline.lake.repair import repair as mend
    from nq_pipeline.lake.schemas import TABLES
    from nq_pipeline.settings import load

    settings = load()
    if unknown := [name for name in tables if name not in TABLES]:
        raise SettingsError(f"{unknown[0]}: no such table; `nq tables` lists them")
    lake = Lake(settings.environment_dir / "lake")
    done = [mend(lake, TABLES[name]) for name in tables or TABLES]
    if any(table.why for table in done):
        catalog.publish(settings.environment_dir)
    if as_json:
        click.echo(_json({"tables": [asdict(table) for table in done]}))
        return
    _note_sandbox(settings)
    for table in done:
        if table.why:
            click.echo("\n".join(_printable(line) for line in table.lines))
    sound = sum(not table.why for table in done)
    click.echo(f"{sound} of {len(done)} tables needed no repair.")


@main.command(short_help="Start the Dagster UI on loopback, until Ctrl-C.")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=3000,
    show_default=True,
    help="Port of the UI on loopback.",
)
@sentences
def ui(port: int) -> None:
    """Start the Dagster UI, with its daemon and (in the sandbox) the stand-ins, until Ctrl-C.

    Dagster keeps its history in the folder DAGSTER_HOME names, in this folder when it has a
    dagster.yaml (a checkout has one), else in .dagster of the data folder, which is made.
    """
    import signal
    import threading

    from nq_pipeline.orchestration import ui
    from nq_pipeline.orchestration.first_dates import first_dates
    from nq_pipeline.sandbox.process import endpoints
    from nq_pipeline.settings import load

    settings, stop, url = load(), threading.Event(), f"http://{ui.HOST}:{port}"
    home = ui.instance_folder(settings)

    def end() -> None:
        click.echo("Ending Dagster and everything it started …")
        stop.set()

    links = {} if "ui_url" in settings.model_fields_set else {"NQ_UI_URL": url}  # where those of alerts lead
    _note_sandbox(settings)
    click.echo(f"Starting Dagster; its history is in {home} …")
    with (
        ui.claimed(home, port) as claim,
        _at_signal(end, signal.SIGINT, signal.SIGTERM, signal.SIGHUP),
        endpoints(settings),  # every run in the UI finds the stand-ins already there
    ):
        ui.run(
            ui.command(port),
            port,
            environment={**links, **first_dates(settings), "DAGSTER_HOME": str(home)},
            stop=stop,
            claim=claim,
            answers=lambda: click.echo(f"Dagster answers: open {url} in a browser. Ctrl-C ends it all."),
        )


@main.command(short_help="Serve the stand-ins of all vendors, until Ctrl-C.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="Port on loopback; by default the last one used, or a free one.",
)
@click.option(
    "--fault", "faults", multiple=True, metavar="VENDOR=FAULT", help="Let a vendor misbehave (repeatable)."
)
@click.option("--list-faults", is_flag=True, help="List the faults and leave.")
@sentences
def sandbox(port: int | None, faults: tuple[str, ...], list_faults: bool) -> None:
    """Serve the stand-ins of all four vendors on loopback until Ctrl-C.

    They show one synthetic NQ market that follows the clock and the calendar. `nq run` starts
    them by itself; this command is for looking at them, and for watching failover:

    \b
      nq sandbox --fault barchart=blocked --fault polygon=slow
    """
    from nq_pipeline.sandbox.process import serve
    from nq_pipeline.sandbox.world import FAULTS
    from nq_pipeline.settings import load

    if list_faults:
        width = max(map(len, FAULTS))
        for name, meaning in FAULTS.items():
            click.echo(f"{name:<{width}}  {meaning}")
        return
    overrides: dict[str, Any] = {}
    if port is not None:
        overrides["sandbox_port"] = port
    if faults:
        overrides["sandbox_faults"] = faults
    serve(load(**overrides))


@main.command()
@click.option("--markdown", is_flag=True, help="Print the reference page `docs/tables.md`.")
def tables(markdown: bool) -> None:
    """List the tables and what every column means."""
    from nq_pipeline.lake import reference

    click.echo(reference.markdown() if markdown else reference.text())


@main.command(short_help="Show every setting and its value; secrets stay hidden.")
@click.option("--markdown", is_flag=True, help="Print the reference page `docs/configuration.md`.")
@sentences
def settings(markdown: bool) -> None:
    """Show every setting, its value in force and what it means; secrets stay hidden."""
    from nq_pipeline import settings_reference
    from nq_pipeline.settings import load

    click.echo(settings_reference.markdown() if markdown else settings_reference.in_force(load()))


@contextmanager
def _at_signal(act: Callable[[], None], *numbers: int) -> Iterator[None]:
    """Call `act` at these signals instead of what was done before."""
    import signal

    before = {number: signal.signal(number, lambda *_: act()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Counters:
    """What a capture has done so far, in one line that is written over where that is possible."""

    def __init__(self) -> None:
        self._note = ""
        self._over = sys.stdout.isatty()

    def show(self, totals: Totals) -> None:
        if totals.note != self._note:
            self._note = totals.note
            click.echo(f"{self._clear()}{_printable(totals.note)}")
        if totals.publish_failure:
            click.echo(f"{self._clear()}Not published: {_printable(totals.publish_failure)}")
        lag = "-" if totals.lag_p99_ms is None else f"{totals.lag_p99_ms:,.0f} ms"
        schemas = ", ".join(f"{what} {schema}" for what, schema in totals.schemas.items())
        line = (
            f"{totals.seconds:6.0f} s  {totals.records:,} records  {totals.rate:,.0f}/s  lag p99 {lag}  "
            f"reconnects {totals.reconnects}  open gaps {totals.open_gaps}  {schemas}  {totals.bytes:,} bytes"
        )
        click.echo(f"{self._clear()}{line}", nl=not self._over)

    def _clear(self) -> str:
        return "\r\x1b[K" if self._over else ""


def _first_of(month: str, zone: str) -> datetime:
    """The first moment of a month written YYYY-MM."""
    from zoneinfo import ZoneInfo

    try:
        return datetime.strptime(month, "%Y-%m").replace(tzinfo=ZoneInfo(zone))
    except ValueError:
        raise click.UsageError(f"--month {month}: write a month like 2026-10") from None


def _instant(text: str) -> datetime:
    """An instant in ISO 8601 with a time zone."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise click.UsageError(f"--snapshot {text}: write an instant like 2025-06-10T15:00:00Z")
    return moment


def _export_spend(settings: Settings, ledger: Ledger) -> None:
    """Bring the table `spend` up to the ledger."""
    from nq_pipeline.lake import catalog
    from nq_pipeline.lake.lake import Lake
    from nq_pipeline.spend.export import export

    if ledger.is_copy:
        return  # what is noted in it is gone afterwards
    try:
        if export(ledger, Lake(settings.environment_dir / "lake"), run_id="nq budget"):
            catalog.publish(settings.environment_dir)
    except Exception as error:
        if (said := _disk_trouble(error)) is None:
            raise
        click.echo(f"nq: the table spend was not brought up to date: {said}", err=True)


def _chosen(settings: Settings, sources: tuple[str, ...]) -> Settings:
    """The settings with the vendors named on the command line; naming Barchart is the opt-in."""
    from nq_pipeline.errors import SettingsError
    from nq_pipeline.settings import SOURCE_NAMES

    if not sources:
        return settings
    unknown = [name for name in sources if name not in SOURCE_NAMES]
    if unknown:
        raise SettingsError(f"--source {unknown[0]}: no such vendor; there are {', '.join(SOURCE_NAMES)}")
    chosen: dict[str, Any] = {"sources": tuple(dict.fromkeys(sources))}
    if "barchart" in sources:
        chosen["barchart_enabled"] = True
    return settings.model_copy(update=chosen)


def _announce(settings: Settings, request: Any) -> None:
    from nq_pipeline.sources.base import describe
    from nq_pipeline.sources.doctor import market_state

    _note_sandbox(settings)
    click.echo(f"Market: {market_state(settings.clock.now())}.")
    click.echo(
        f"Asking {', '.join(settings.sources)} for {len(request.series)} series "
        f"as of {describe(request.moment)} …"
    )


def _progress(line: str) -> None:
    click.echo(f"  {line}", err=True)


def _note_sandbox(settings: Settings) -> None:
    if settings.environment == "sandbox":
        click.echo("SANDBOX: a synthetic market from stand-ins on this machine; no price here is real.")


def _price(settings: Settings, snapshot: Snapshot) -> dict[str, pl.DataFrame]:
    """Price and measure the chosen chain; rows by name of table, none where there is no chain."""
    if not snapshot.chain.height:
        return {}
    from nq_pipeline.analytics.snapshot import price_and_measure
    from nq_pipeline.lake import catalog

    try:
        return price_and_measure(settings, snapshot.chain, run_id=snapshot.request.run_id)
    finally:  # also what got into some of the tables
        catalog.publish(settings.environment_dir)


def _priced(measured: dict[str, pl.DataFrame]) -> int:
    """The number of contracts that have a volatility of ours."""
    return int(measured["option_pricing"]["implied_volatility"].count()) if measured else 0


def _measured_as_json(measured: dict[str, pl.DataFrame]) -> dict[str, Any]:
    levels = measured["gamma_levels"].select(_GAMMA).to_dicts() if measured else []
    return {"priced": _priced(measured), "gamma_levels": levels}


def _gamma(level: dict[str, Any]) -> str:
    """The gamma of one source's options on one product, with its sign and what is not in the sum."""
    net, zero, left_out = (level[name] for name in ("gex_per_pct", "zero_gamma", "open_interest_left_out"))
    of = f"Gamma of {level['product']} by {level['source']}"
    if net is None:
        return f"{of}: unknown; {left_out:,} open contracts could not be priced."
    where = "no zero gamma within 10 %" if zero is None else f"zero gamma {zero:,.0f}"
    return (
        f"{of}: net {net / 1e6:+,.1f} million dollars per 1 %; {where}, future {level['forward']:,.2f}; "
        f"{left_out:,} open contracts left out."
    )


def _show(settings: Settings, snapshot: Snapshot, measured: dict[str, pl.DataFrame]) -> None:
    import os

    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("source", "outcome", "contracts", "series", "age", "cache", "time"):
        justify: Any = "right" if heading in ("contracts", "series", "age", "time") else "left"
        table.add_column(heading, justify=justify, no_wrap=True)
    for name in snapshot.asked:
        row = _summary(snapshot, name)
        cache = "hit" if row["cached"] else f"{row['hits']} hit, {row['misses']} miss"
        seconds = f"{row['seconds']:.2f} s"
        cells = (
            row["outcome"],
            f"{row['contracts']:,}",
            str(row["series"]),
            age_of(snapshot.asked[name].newest, snapshot.request.moment),
            cache,
            seconds,
        )
        table.add_row(name, *cells)
    for name in snapshot.skipped:
        table.add_row(name, "not asked", "", "", "", "", "")
    _console().print(table)
    winners = ", ".join(
        f"{name} ({count:,} contracts{_stand_in(snapshot, name)})" for name, count in snapshot.winners.items()
    )
    click.echo(f"Winner: {winners or 'none; every source failed'}")
    for name, reason in {**_lost(snapshot), **snapshot.skipped}.items():
        click.echo(f"  {name}: {_printable(reason)}")
    for name, asked in snapshot.asked.items():
        if dropped := asked.answer.dropped:
            parts = ", ".join(f"{count:,} {reason}" for reason, count in dropped.most_common())
            click.echo(f"Left out of what {name} sent: {_printable(parts)}")
    new = snapshot.rows["source_chain"]
    click.echo(f"Lake: {settings.environment_dir / 'lake'}, {new:,} new rows; catalog nq.duckdb published.")
    if snapshot.chain.height:
        click.echo(
            f"Priced: {_priced(measured):,} of {snapshot.chain.height:,} contracts; "
            "option_pricing.unpriced says why not."
        )
        for level in measured["gamma_levels"].to_dicts():
            click.echo(_gamma(level))
        click.echo("Next, see it, then query it:")
        click.echo("  make report" if "MAKELEVEL" in os.environ else f"  {_program()} report")
        click.echo(
            f'  {_program()} sql "select series, source, count(*) as contracts, '
            f"sum(open_interest)::bigint as open_interest from option_chain_latest "
            f'group by all order by min(expiration)"'
        )


def _stand_in(snapshot: Snapshot, name: str) -> str:
    """What a winner's options are on, where that is not futures."""
    won = snapshot.chain.filter(snapshot.chain["source"] == name)
    underlyings = won.filter(won["underlying_class"] != "future")["underlying"].unique().sort().to_list()
    if not underlyings:
        return ""
    from nq_pipeline.sources.quality import products_of

    return f", a proxy: options on {' and '.join(underlyings)}, not on {products_of(won)}"


def _summary(snapshot: Snapshot, name: str) -> dict[str, Any]:
    asked = snapshot.asked[name]
    newest = asked.newest
    return {
        "outcome": str(asked.answer.outcome),
        "reason": asked.answer.reason,
        "contracts": asked.answer.frame.height,
        "series": asked.answer.frame["series"].n_unique(),
        "age_s": (snapshot.request.moment - newest).total_seconds() if newest else None,
        "cached": asked.answer.cached,
        "hits": asked.hits,
        "misses": asked.misses,
        "seconds": asked.elapsed_s,
        "dropped": dict(asked.answer.dropped),
        "controls": dict(asked.answer.controls),
    }


def _lost(snapshot: Snapshot) -> dict[str, str]:
    """Why each loser lost: what it said itself, else the commonest reason of its series."""
    reasons: dict[str, str] = {}
    lost = snapshot.decisions.filter(~snapshot.decisions["won"]).sort("rank", maintain_order=True)
    for (source,), part in lost.group_by("source", maintain_order=True):
        counts = part["reason"].value_counts(sort=True)
        others = counts.height - 1
        more = f" (and {others} other reason{'s' * (others > 1)}; see the table decisions)" if others else ""
        own = snapshot.asked[str(source)].answer.reason
        reasons[str(source)] = own or f"{counts['reason'][0]}{more}"
    return reasons


def _as_json(settings: Settings, snapshot: Snapshot) -> dict[str, Any]:
    request = snapshot.request
    return {
        "environment": settings.environment,
        "run_id": request.run_id,
        "trade_date": request.trade_date,
        "snapshot_ts": request.snapshot_ts,
        "moment": request.moment,
        "sources": {name: _summary(snapshot, name) for name in snapshot.asked},
        "skipped": dict(snapshot.skipped),
        "winners": snapshot.winners,
        "lost": _lost(snapshot),
        "rows": dict(snapshot.rows),
        "lake": settings.environment_dir / "lake",
    }


def _json(value: Any) -> str:
    """Strict JSON: instants as ISO 8601, what is not finite as null."""
    import orjson

    return orjson.dumps(value, default=str, option=orjson.OPT_INDENT_2).decode()


def age_of(newest: datetime | None, moment: datetime) -> str:
    """How old the newest quote or trade is; its date, where a vendor tells no more than that."""
    if newest is None:
        return "-"
    if newest.time() == time():  # the lake's form of a date without a time
        return f"of {newest:%m-%d}"
    minutes = max(0.0, (moment - newest).total_seconds()) / 60
    return f"{minutes:.0f} min" if minutes < 180 else f"{minutes / 60:.0f} h"


def _printable(text: str) -> str:
    """Words that may be a vendor's, without what would steer a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


def _yes_no(fact: bool | None) -> str:
    return {True: "yes", False: "no", None: "-"}[fact]


def _console() -> Any:
    from rich.console import Console

    # What a vendor said is shown as it is, never read as markup.
    return Console(highlight=False, soft_wrap=False, markup=False, emoji=False)


def _program() -> str:
    """How to call this program again from here: `nq`, or the path to it when it is not on PATH."""
    import os
    import shutil
    from pathlib import Path

    if shutil.which("nq"):
        return "nq"
    script = Path(sys.argv[0])
    try:
        return os.path.relpath(script) if script.name == "nq" else "nq"
    except ValueError:  # another drive
        return str(script)
