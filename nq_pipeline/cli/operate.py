"""Commands of the operator: `nq doctor`, `alert`, `retention`, `repair`, `ui`, `sandbox`, `settings`."""

from __future__ import annotations

import sys
from typing import Any

import click

from nq_pipeline.cli.exit_codes import OK, UNHEALTHY, sentences
from nq_pipeline.cli.output import console, note_sandbox, printable, to_json
from nq_pipeline.cli.signals import at_signal
from nq_pipeline.workspace import Workspace


@click.command(short_help="Each vendor: configured, reachable, entitled, what to mend.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@sentences
def doctor(as_json: bool) -> None:
    """Say for every vendor whether it is configured, reachable and entitled, and what to mend."""
    from dataclasses import asdict

    from nq_pipeline.sandbox.process import endpoints
    from nq_pipeline.settings import load
    from nq_pipeline.verify.doctor import market_state, plan_steps, probe_sources

    settings = load()
    with endpoints(settings) as settings:
        probes = probe_sources(settings)
    market = market_state(settings.clock.now())
    used = {name: probe for name, probe in probes.items() if name in settings.sources}
    healthy = all(probe.configured and probe.reachable and probe.entitled for probe in used.values())
    if as_json:
        report = {
            "environment": settings.environment,
            "market": market,
            "sources": {name: {**asdict(probe), "used": name in used} for name, probe in probes.items()},
            "ladder": [asdict(step) for step in plan_steps(settings)],
        }
        click.echo(to_json(report))
    else:
        from rich.table import Table

        note_sandbox(settings)
        click.echo(f"Market: {market}.")
        table = Table(
            "vendor", "configured", "reachable", "entitled", "what it said", box=None, pad_edge=False
        )
        for name, probe in probes.items():
            facts = [_yes_no(fact) for fact in (probe.configured, probe.reachable, probe.entitled)]
            title = name if name in used else f"{name} (not in NQ_SOURCES)"
            table.add_row(title, *facts, printable(probe.detail))
        console().print(table)
        click.echo("What each plan has granted or refused so far, and what each step adds:")
        for step in plan_steps(settings):
            shown = {None: "not asked yet", True: "granted", False: "refused"}[step.entitled]
            again = f" ({printable(step.said)}); asked again on {step.ask_again}" if step.said else ""
            adds = f" Adds {step.adds}." if step.adds else ""
            click.echo(f"  {step.vendor} {step.mode} {step.schema}: {shown}{again}.{adds}")
        for name, probe in probes.items():
            if probe.mend:
                click.echo(f"To mend {name}: {printable(probe.mend)}")
    sys.exit(OK if healthy else UNHEALTHY)


def _yes_no(fact: bool | None) -> str:
    return {True: "yes", False: "no", None: "-"}[fact]


@click.group(invoke_without_command=True)
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
    note_sandbox(settings)
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


@click.command(short_help="Remove what is old and proven to be in the lake.")
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
        click.echo(to_json({"dry_run": dry_run, "swept": [asdict(part) for part in swept]}))
        return
    note_sandbox(settings)
    click.echo("This would go:" if dry_run else "This went:")
    for part in swept:
        click.echo(f"  {part.sentence}")


@click.command(short_help="Mend tables whose manifest or files are damaged or missing.")
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
    from nq_pipeline.lake.repair import repair as mend
    from nq_pipeline.lake.tables import TABLES
    from nq_pipeline.settings import load

    settings = load()
    if unknown := [name for name in tables if name not in TABLES]:
        raise SettingsError(f"{unknown[0]}: no such table; `nq tables` lists them")
    lake = Workspace.of(settings).lake
    done = [mend(lake, TABLES[name]) for name in tables or TABLES]
    if any(table.why for table in done):
        catalog.publish(lake)
    if as_json:
        click.echo(to_json({"tables": [asdict(table) for table in done]}))
        return
    note_sandbox(settings)
    for table in done:
        if table.why:
            click.echo("\n".join(printable(line) for line in table.lines))
    sound = sum(not table.why for table in done)
    click.echo(f"{sound} of {len(done)} tables needed no repair.")


@click.command(short_help="Start the Dagster UI on loopback, until Ctrl-C.")
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

    from nq_pipeline.sandbox.process import endpoints
    from nq_pipeline.settings import load
    from nq_pipeline.ui import supervisor
    from nq_pipeline.ui.first_partitions import first_partitions

    settings, stop, url = load(), threading.Event(), f"http://{supervisor.HOST}:{port}"
    home = supervisor.instance_folder(settings)

    def end() -> None:
        click.echo("Ending Dagster and everything it started …")
        stop.set()

    links = {} if "ui_url" in settings.model_fields_set else {"NQ_UI_URL": url}  # where those of alerts lead
    note_sandbox(settings)
    click.echo(f"Starting Dagster; its history is in {home} …")
    with (
        supervisor.hold_instance(home, port) as hold,
        at_signal(end, signal.SIGINT, signal.SIGTERM, signal.SIGHUP),
        endpoints(settings),  # every run in the UI finds the stand-ins already there
    ):
        supervisor.run_dagster(
            supervisor.dagster_command(port),
            port,
            environment={**links, **first_partitions(settings), "DAGSTER_HOME": str(home)},
            stop=stop,
            hold=hold,
            on_ready=lambda: click.echo(f"Dagster answers: open {url} in a browser. Ctrl-C ends it all."),
        )


@click.command(short_help="Serve the stand-ins of all vendors, until Ctrl-C.")
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
    from nq_pipeline.sandbox.scenario import FAULTS
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


@click.command(short_help="Show every setting and its value; secrets stay hidden.")
@click.option("--markdown", is_flag=True, help="Print the reference page `docs/configuration.md`.")
@sentences
def settings(markdown: bool) -> None:
    """Show every setting, its value in force and what it means; secrets stay hidden."""
    from nq_pipeline import settings_reference
    from nq_pipeline.settings import load

    click.echo(settings_reference.markdown() if markdown else settings_reference.in_force(load()))
