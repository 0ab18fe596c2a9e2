"""`nq run`: take one snapshot of all vendors and show the result."""

from __future__ import annotations

import os
import sys
from datetime import datetime, time
from typing import TYPE_CHECKING, Any

import click

from nq_pipeline.cli.exit_codes import NO_CHAIN, OK, report_errors
from nq_pipeline.cli.help import DatedHelp
from nq_pipeline.cli.output import console, load, note_sandbox, printable, program, progress, to_json
from nq_pipeline.market.sessions import in_chicago
from nq_pipeline.workspace import Workspace

if TYPE_CHECKING:
    import polars as pl

    from nq_pipeline.chains.result import Snapshot
    from nq_pipeline.settings import Settings


_GAMMA = ("source", "product", "forward", "zero_gamma", "gex_per_pct", "open_interest_left_out")


@click.command(cls=DatedHelp, short_help="Ask the vendors for chains now; write and price the best.")
@click.option("--series", "-s", multiple=True, metavar="SERIES",
              help="Only this series, e.g. Q1B-2025-07-01 (repeatable). With --source barchart also the "
              "site's own code, e.g. MM1N5. By default those that NQ_HORIZON_DAYS and "
              "NQ_FAR_EXPIRATIONS choose.")  # fmt: skip
@click.option("--source", multiple=True, metavar="VENDOR",
              help="Ask only this vendor (repeatable): barchart, polygon, tradovate, databento.")  # fmt: skip
@click.option("--refresh", is_flag=True, help="Send requests even if a cached answer is still valid.")
@click.option("--from-raw", metavar="RUN", help="Ask no vendor: parse the archived answers of this run again "
              "(an id, or `latest`).")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
@report_errors
def run(
    series: tuple[str, ...], source: tuple[str, ...], refresh: bool, from_raw: str | None, as_json: bool
) -> None:
    """Ask the vendors for option chains now, write them to the lake, and price the chosen one.

    \b
    Examples:
      nq run
      nq run --series Q1B-2025-07-01
      nq run --source barchart --series MM1N5
      nq run --from-raw latest
    """
    from nq_pipeline.chains.replay import finish_killed_runs, replay_snapshot
    from nq_pipeline.chains.request import build_request
    from nq_pipeline.chains.snapshot import take_snapshot
    from nq_pipeline.chains.summary import as_json as snapshot_json
    from nq_pipeline.runtime import endpoints

    if from_raw and (series or source or refresh):
        raise click.UsageError(
            "--from-raw parses the answers of that run; leave out --series, --source and --refresh"
        )
    settings = _select_sources(load(), source)
    if from_raw:
        if not as_json:
            note_sandbox(settings)
        snapshot = replay_snapshot(settings, from_raw)
    else:
        request = build_request(settings, series=series, source=source[0] if len(source) == 1 else None)
        if not as_json:
            _announce(settings, request)
        for killed in finish_killed_runs(settings, before=request.snapshot_ts, progress=progress):
            _price(settings, killed)
        report = (lambda line: None) if as_json else progress
        with endpoints(settings) as reachable:
            snapshot = take_snapshot(reachable, request, refresh=refresh, progress=report)
    measured = _price(settings, snapshot)
    if as_json:
        click.echo(to_json({**snapshot_json(settings, snapshot), **_measured_as_json(measured)}))
    else:
        _show(settings, snapshot, measured)
    sys.exit(OK if snapshot.chain.height else NO_CHAIN)


def _select_sources(settings: Settings, sources: tuple[str, ...]) -> Settings:
    """The settings with only the vendors of `--source`; naming Barchart there is the opt-in."""
    from nq_pipeline.errors import SettingsError
    from nq_pipeline.sources.registry import VENDORS

    if not sources:
        return settings
    unknown = [name for name in sources if name not in VENDORS]
    if unknown:
        raise SettingsError(f"--source {unknown[0]}: no such vendor; vendors are {', '.join(VENDORS)}")
    opt_ins = {name: value for source in sources for name, value in VENDORS[source].opt_in.items()}
    return settings.with_values(sources=tuple(dict.fromkeys(sources)), **opt_ins)


def _announce(settings: Settings, request: Any) -> None:
    from nq_pipeline.verify.doctor import market_state

    note_sandbox(settings)
    click.echo(f"Market: {market_state(settings.clock.now())}.")
    click.echo(
        f"Asking {', '.join(settings.chains.sources)} for {len(request.series)} series "
        f"as of {in_chicago(request.moment)} …"
    )


def _price(settings: Settings, snapshot: Snapshot) -> dict[str, pl.DataFrame]:
    """Price the chosen chain and compute its metrics; returns rows by table name, empty without a chain."""
    if not snapshot.chain.height:
        return {}
    from nq_pipeline.analytics.daily import measure_days
    from nq_pipeline.analytics.snapshot import price_and_measure
    from nq_pipeline.lake import catalog

    run_id = snapshot.request.run_id
    try:
        measured = price_and_measure(settings, snapshot.chain, run_id=run_id)
        measure_days(settings, run_id=run_id)
        return measured
    finally:  # also after an error, for the tables that were written
        catalog.publish(Workspace.of(settings).lake)


def _count_priced(measured: dict[str, pl.DataFrame]) -> int:
    """The number of contracts with a computed implied volatility."""
    return int(measured["option_pricing"]["implied_volatility"].count()) if measured else 0


def _measured_as_json(measured: dict[str, pl.DataFrame]) -> dict[str, Any]:
    levels = measured["gamma_levels"].select(_GAMMA).to_dicts() if measured else []
    return {"priced": _count_priced(measured), "gamma_levels": levels}


def gamma_line(level: dict[str, Any]) -> str:
    """One line with the net gamma exposure of a source and product, and the contracts left out of it."""
    net, zero, left_out = (level[name] for name in ("gex_per_pct", "zero_gamma", "open_interest_left_out"))
    of = f"Gamma exposure of {level['product']} by {level['source']}"
    if net is None:
        why = f"{left_out:,} open contracts could not be priced" if left_out else "no open interest was sent"
        return f"{of}: unknown; {why}."
    where = "no zero-gamma level within 10 %" if zero is None else f"zero-gamma level {zero:,.0f}"
    return (
        f"{of}: net {net / 1e6:+,.1f} million USD per 1 %; {where}, future {level['forward']:,.2f}; "
        f"{left_out:,} open contracts not included."
    )


def _show(settings: Settings, snapshot: Snapshot, measured: dict[str, pl.DataFrame]) -> None:
    from rich.table import Table

    from nq_pipeline.chains.summary import loss_reasons, source_summary

    table = Table(box=None, pad_edge=False)
    for heading in ("source", "outcome", "contracts", "series", "age", "cache", "time"):
        justify: Any = "right" if heading in ("contracts", "series", "age", "time") else "left"
        table.add_column(heading, justify=justify, no_wrap=True)
    for name in snapshot.results:
        row = source_summary(snapshot, name)
        cache = "hit" if row["cached"] else f"{row['hits']} hit, {row['misses']} miss"
        seconds = f"{row['seconds']:.2f} s"
        cells = (
            row["outcome"],
            f"{row['contracts']:,}",
            str(row["series"]),
            age_of(snapshot.results[name].newest, snapshot.request.moment),
            cache,
            seconds,
        )
        table.add_row(name, *cells)
    for name in snapshot.skipped:
        table.add_row(name, "not asked", "", "", "", "", "")
    console().print(table)
    winners = ", ".join(
        f"{name} ({count:,} contracts{_proxy_note(snapshot, name)})"
        for name, count in snapshot.winners.items()
    )
    click.echo(f"Winner: {winners or 'none; every source failed'}")
    for name, reason in {**loss_reasons(snapshot), **snapshot.skipped}.items():
        click.echo(f"  {name}: {printable(reason)}")
    for name, result in snapshot.results.items():
        if dropped := result.answer.dropped:
            parts = ", ".join(f"{count:,} {reason}" for reason, count in dropped.most_common())
            click.echo(f"Dropped rows of {name}: {printable(parts)}")
    new = snapshot.rows["source_chain"]
    click.echo(f"Lake: {Workspace.of(settings).lake.uri}, {new:,} new rows; catalog nq.duckdb published.")
    if snapshot.chain.height:
        click.echo(
            f"Priced: {_count_priced(measured):,} of {snapshot.chain.height:,} contracts; "
            "option_pricing.unpriced says why the rest are not."
        )
        for level in measured["gamma_levels"].to_dicts():
            click.echo(gamma_line(level))
        click.echo("Next, open the report or query the chain:")
        click.echo("  make report" if "MAKELEVEL" in os.environ else f"  {program()} report")
        click.echo(
            f'  {program()} sql "select series, source, count(*) as contracts, '
            f"sum(open_interest)::bigint as open_interest from option_chain_latest "
            f'group by all order by min(expiration)"'
        )


def _proxy_note(snapshot: Snapshot, name: str) -> str:
    """The underlyings of a winner's options, if they are not futures."""
    won = snapshot.chain.filter(snapshot.chain["source"] == name)
    underlyings = won.filter(won["underlying_class"] != "future")["underlying"].unique().sort().to_list()
    if not underlyings:
        return ""
    from nq_pipeline.chains.quality import products_of

    return f", a proxy: options on {' and '.join(underlyings)}, not on {products_of(won)}"


def age_of(newest: datetime | None, moment: datetime) -> str:
    """The age of the newest quote or trade, or its date if the vendor sends no time."""
    if newest is None:
        return "-"
    if newest.time() == time():  # the lake stores a date without a time as midnight
        return f"from {newest:%m-%d}"
    minutes = max(0.0, (moment - newest).total_seconds()) / 60
    return f"{minutes:.0f} min" if minutes < 180 else f"{minutes / 60:.0f} h"
