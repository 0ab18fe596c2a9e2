"""Commands for operators: `nq doctor`, `alert`, `retention`, `repair`, `ui`, `sandbox`, `settings`."""

from __future__ import annotations

import signal
import sys
import threading
import uuid
from dataclasses import asdict
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

import click

from nq_pipeline.cli import output
from nq_pipeline.cli.exit_codes import OK, UNHEALTHY, report_errors
from nq_pipeline.cli.output import console, load, note_sandbox, printable, to_json
from nq_pipeline.errors import SettingsError
from nq_pipeline.workspace import Workspace

if TYPE_CHECKING:
    from nq_pipeline.sources.base import Probe

YES_NO = {True: "yes", False: "no", None: "-"}


@click.command(short_help="Check whether each vendor is configured, reachable and entitled.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@report_errors
def doctor(as_json: bool) -> None:
    """Check whether every vendor is configured, reachable and entitled, and say what to fix."""
    from nq_pipeline.runtime import endpoints
    from nq_pipeline.sources.registry import VENDORS
    from nq_pipeline.verify.doctor import market_state, plan_steps, probe_sources, probe_store

    settings = load()
    with endpoints(settings) as settings:
        probes = dict(probe_sources(settings))
    if store := probe_store(settings):
        probes["store"] = store
    market = market_state(settings.clock.now())
    used = {name: probe for name, probe in probes.items() if name in (*settings.chains.sources, "store")}
    healthy = all(probe.configured and probe.reachable and probe.entitled for probe in used.values())
    if as_json:
        report = {
            "environment": settings.environment,
            "market": market,
            "sources": {
                name: _probe_as_json(probe, name in used) for name, probe in probes.items() if name in VENDORS
            },
            **({"store": _probe_as_json(store, True)} if store else {}),
            "ladder": [asdict(step) for step in plan_steps(settings)],
        }
        click.echo(to_json(report))
    else:
        from rich.table import Table

        note_sandbox(settings)
        click.echo(f"Market: {market}.")
        table = Table("vendor", "configured", "reachable", "entitled", "detail", box=None, pad_edge=False)
        for name, probe in probes.items():
            facts = [YES_NO[fact] for fact in (probe.configured, probe.reachable, probe.entitled)]
            title = name if name in used else f"{name} (not in NQ_SOURCES)"
            table.add_row(title, *facts, printable(probe.detail))
        console().print(table)
        click.echo("What each plan is known to include or refuse, and what each step adds:")
        for step in plan_steps(settings):
            shown = {None: "not asked yet", True: "granted", False: "refused"}[step.entitled]
            again = f" ({printable(step.refusal)}); asked again on {step.ask_again}" if step.refusal else ""
            adds = f" Adds {step.adds}." if step.adds else ""
            click.echo(f"  {step.vendor} {step.mode} {step.schema}: {shown}{again}.{adds}")
        for name, probe in probes.items():
            if probe.remedy:
                click.echo(f"To fix {name}: {printable(probe.remedy)}")
    sys.exit(OK if healthy else UNHEALTHY)


def _probe_as_json(probe: Probe, used: bool) -> dict[str, object]:
    facts = asdict(probe)
    remedy = facts.pop("remedy")
    return {**facts, "mend": remedy, "used": used}  # the key's name is an interface


@click.group(invoke_without_command=True)
@click.pass_context
@report_errors
def alert(context: click.Context) -> None:
    """Show the alerts that are firing.

    Failed runs and checks at ERROR raise alerts; docs/alerts.md says how they reach you.
    """
    if context.invoked_subcommand:
        return
    from nq_pipeline.alerts.notifier import Notifier

    settings = load()
    note_sandbox(settings)
    notifier = Notifier(settings)
    firing = notifier.firing()
    for message in firing:
        click.echo(
            f"{message.since:%Y-%m-%d %H:%M} UTC  {message.alert.what}\n    {message.alert.what_to_do}"
        )
        for place in message.alert.where:
            click.echo(f"    {place}")
    if not firing:
        click.echo(f"No alert is firing; earlier ones are in {notifier.log}")


@alert.command("test")
@report_errors
def test_alert() -> None:
    """Send a test message and report whether it arrived."""
    from nq_pipeline.alerts.notifier import Notifier

    settings = load()
    notifier = Notifier(settings)
    sent = notifier.send_test()
    click.echo(f"written to {notifier.log}")
    click.echo("the webhook accepted it" if sent.delivered else sent.reason)
    sys.exit(OK if sent.delivered or settings.alerts.webhook is None else UNHEALTHY)


@click.command(short_help="Remove old files whose content is proven to be in the lake.")
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@report_errors
def retention(dry_run: bool, as_json: bool) -> None:
    """Remove old answers, capture segments and reports whose content is proven to be in the lake.

    NQ_KEEP_RAW_DAYS, NQ_KEEP_CAPTURE_DAYS and NQ_KEEP_REPORT_DAYS set the ages. The tables, the
    ledger and purchased history are never touched.

    \b
    Example:
      nq retention --dry-run
    """
    from nq_pipeline.retention import sweep

    settings = load()
    swept = sweep(settings, settings.clock.now(), dry_run=dry_run)
    if as_json:
        click.echo(to_json({"dry_run": dry_run, "swept": [asdict(part) for part in swept]}))
        return
    note_sandbox(settings)
    click.echo("Would remove:" if dry_run else "Removed:")
    for part in swept:
        click.echo(f"  {part.sentence}")


@click.group()
def lake() -> None:
    """Maintain the lake itself."""


@lake.command(short_help="Bring the lake into the format or store of the settings.")
@report_errors
def migrate() -> None:
    """Bring the lake of NQ_DATA_DIR into the format or the store that the settings name.

    With NQ_LAKE_FORMAT=delta, tables with manifests become Delta tables in their folders; the first write to
    a table does that, too. With NQ_LAKE_URL their rows are copied into the object store, and the folder stays
    as it is. Rows and values stay the same. A call that was interrupted may be repeated.
    """
    from nq_pipeline.lake import catalog
    from nq_pipeline.lake.store import Lake
    from nq_pipeline.lake.tables import TABLES

    settings = load()
    note_sandbox(settings)
    target = Workspace.of(settings).lake
    if not (target.objects or target.delta):
        raise SettingsError(
            "the lake is where the settings say; set NQ_LAKE_FORMAT=delta or NQ_LAKE_URL to migrate it"
        )
    source, total = Lake(target.root), 0
    for table in TABLES.values():
        rows = target.copy_from(source, table) if target.objects else target.take_over(table)
        total += rows
        if rows:
            click.echo(f"{table.name}: {rows:,} rows migrated")
    catalog.publish(target)
    click.echo(f"{total:,} rows migrated into {target.uri}.")


@lake.command(short_help="Compute the rows that computed tables lack.")
@click.option("--from", "since", type=click.DateTime(["%Y-%m-%d"]), metavar="DATE",
              help="First trade date; default: all.")  # fmt: skip
@click.option("--to", "until", type=click.DateTime(["%Y-%m-%d"]), metavar="DATE",
              help="Last trade date, inclusive; default: all.")  # fmt: skip
@click.option("--no-surfaces", is_flag=True, help="Fit no volatility surfaces; a later call adds them.")
@report_errors
def recompute(since: datetime | None, until: datetime | None, no_surfaces: bool) -> None:
    """Price and measure snapshots that have no metrics yet, and fill columns that older rows do not have.

    Use it once after an upgrade, for snapshots taken before it. Values already in the tables stay as they
    are. A call that was interrupted may be repeated.
    """
    from nq_pipeline.analytics.daily import dates_with_data, measure_days
    from nq_pipeline.analytics.recompute import recompute as recompute_days
    from nq_pipeline.lake import catalog

    if since and until and since > until:
        raise click.UsageError(f"--from {since:%Y-%m-%d} is after --to {until:%Y-%m-%d}")
    settings, run_id = load(), uuid.uuid4().hex
    lake = Workspace.of(settings).existing_lake
    note_sandbox(settings)
    days = recompute_days(
        settings,
        since=since and since.date(),
        until=until and until.date(),
        surfaces=not no_surfaces,
        run_id=run_id,
    )
    for day in days:
        if day.snapshots:
            done = f"{day.snapshots} snapshots computed, columns of {day.filled:,} rows filled"
            click.echo(f"{day.trade_date}: {done}")
    first, last = since.date() if since else date.min, until.date() if until else date.max
    measure_days(settings, [d for d in dates_with_data(lake) if first <= d <= last], run_id=run_id)
    catalog.publish(lake)
    click.echo("The tables are complete.")


@click.command(short_help="Repair tables with a damaged or missing manifest or file.")
@click.argument("tables", nargs=-1, metavar="[TABLE]…")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@report_errors
def repair(tables: tuple[str, ...], as_json: bool) -> None:
    """Read every file of the tables (by default all tables) and rebuild manifests from the intact files.

    Use it for a table with a damaged or missing manifest or file. Nothing is deleted: a damaged file
    is renamed. `nq run --from-raw RUN` or a backup restores the rows that only it had.

    \b
    Examples:
      nq repair
      nq repair source_chain
    """
    from nq_pipeline.lake import catalog
    from nq_pipeline.lake.repair import repair as repair_table
    from nq_pipeline.lake.tables import TABLES

    settings = load()
    if unknown := [name for name in tables if name not in TABLES]:
        raise SettingsError(f"{unknown[0]}: no such table; `nq tables` lists them")
    lake = Workspace.of(settings).existing_lake
    done = [repair_table(lake, TABLES[name]) for name in tables or TABLES]
    if any(table.why for table in done):
        catalog.publish(lake)
    if as_json:
        click.echo(to_json({"tables": [asdict(table) for table in done]}))
        return
    note_sandbox(settings)
    for table in done:
        if table.why:
            click.echo("\n".join(printable(line) for line in table.lines))
    intact = sum(not table.why for table in done)
    click.echo(f"{intact} of {len(done)} tables needed no repair.")


@click.command(short_help="Start the Dagster UI on loopback, until Ctrl-C.")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=3000,
    show_default=True,
    help="Port of the UI on loopback.",
)
@report_errors
def ui(port: int) -> None:
    """Start the Dagster UI, with its daemon and (in the sandbox) the stand-ins, until Ctrl-C.

    Dagster stores its history in DAGSTER_HOME if that is set, or in this folder if it has a
    dagster.yaml (a checkout has one), or in .dagster in the data folder.
    """
    from nq_pipeline.runtime import endpoints
    from nq_pipeline.signals import on_signal
    from nq_pipeline.ui import supervisor
    from nq_pipeline.ui.first_partitions import first_partitions

    settings, stop, url = load(), threading.Event(), f"http://{supervisor.HOST}:{port}"
    home = supervisor.instance_folder(settings)
    if supervisor.uses_postgres(home):  # else loading Dagster here would only cost time
        from dotenv import load_dotenv

        from nq_pipeline.orchestration.cluster.instance import check_instance

        load_dotenv(".env")
        check_instance(home)

    def end(_: int) -> None:
        click.echo("Stopping Dagster and everything it started …")
        stop.set()

    links = {} if "ui_url" in settings.given else {"NQ_UI_URL": url}  # for the links in alerts
    note_sandbox(settings)
    click.echo(f"Starting Dagster; its history is in {home} …")
    with (
        supervisor.hold_instance(home, port) as hold,
        on_signal(end, signal.SIGINT, signal.SIGTERM, signal.SIGHUP),
        endpoints(settings),  # so that every run in the UI finds the stand-ins running
    ):
        supervisor.run_dagster(
            supervisor.dagster_command(port),
            port,
            environment={**links, **first_partitions(settings), "DAGSTER_HOME": str(home)},
            stop=stop,
            hold=hold,
            on_ready=lambda: click.echo(
                f"Dagster is ready: open {url} in a browser. Ctrl-C stops everything."
            ),
        )


@click.command(short_help="Show the live capture on a self-updating page, until Ctrl-C.")
@click.option(
    "--port", type=click.IntRange(1, 65535), default=3001, show_default=True, help="Port of the page."
)
@click.option("--host", default="127.0.0.1", show_default=True,
              help="Address to listen on; one that other machines reach needs NQ_SERVE_TOKEN.")  # fmt: skip
@report_errors
def board(port: int, host: str) -> None:
    """Show the live capture on a self-updating page: trades, price, volatility, gaps, spend.

    It shows the capture of this environment, whoever runs it: `nq capture` or Dagster. In the
    sandbox it starts a capture if none runs.

    \b
    Example:
      nq board --port 3001
    """
    from nq_pipeline.board.app import build_app
    from nq_pipeline.board.own_capture import own_capture
    from nq_pipeline.runtime import endpoints, gateway_clock
    from nq_pipeline.serve.access import check_access
    from nq_pipeline.serve.server import run_server
    from nq_pipeline.signals import on_signal

    stop = threading.Event()

    def ready(bound: int) -> None:
        click.echo(f"The board is ready: open {output.url(host, bound)} in a browser. Ctrl-C stops it.")

    with on_signal(lambda _: stop.set(), signal.SIGINT, signal.SIGTERM), endpoints(load()) as settings:
        token = settings.serve.token
        check_access(host, token)
        note_sandbox(settings)
        with own_capture(settings) as own:
            if own:
                click.echo("No capture was running, so this board runs one.")
            app = build_app(
                settings,
                clock=gateway_clock(settings),
                host=host,
                note="no capture was running, so this board started one" if own else "",
                capture_end=own.describe_end if own else None,
                stop=stop,
            )
            run_server(app, host=host, port=port, token=token, stop=stop, on_ready=ready)


@click.command(short_help="Serve the stand-ins of all vendors, until Ctrl-C.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="Port on loopback; by default the last one used, or a free one.",
)
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="VENDOR=FAULT",
    help="Make a vendor fail in this way (repeatable).",
)
@click.option("--list-faults", is_flag=True, help="List the faults and exit.")
@report_errors
def sandbox(port: int | None, faults: tuple[str, ...], list_faults: bool) -> None:
    """Serve the stand-ins of all four vendors on loopback until Ctrl-C.

    They show one synthetic NQ market that follows the clock and the calendar. `nq run` starts them
    itself; use this command to explore them or to watch failover:

    \b
      nq sandbox --fault barchart=blocked --fault polygon=slow
    """
    from nq_pipeline.sandbox.process import serve
    from nq_pipeline.sandbox.scenario import FAULTS

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


@click.command(short_help="Show every setting and its value; secrets stay hidden.")
@click.option("--markdown", is_flag=True, help="Print the reference page `docs/configuration.md`.")
@report_errors
def settings(markdown: bool) -> None:
    """Show every setting, its current value and what it means; secrets stay hidden."""
    from nq_pipeline import configuration

    click.echo(configuration.markdown() if markdown else configuration.in_force(load()))
