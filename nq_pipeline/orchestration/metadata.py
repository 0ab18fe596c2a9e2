"""Metadata of assets. Its names are an interface: same name and unit everywhere.

Dagster plots single numbers over time, so they are numbers, not text.
"""

from __future__ import annotations

import socket
from dataclasses import asdict
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import dagster as dg
import polars as pl

from nq_pipeline.chains import summary
from nq_pipeline.chains.quality import newest_quote
from nq_pipeline.chains.result import Snapshot, SourceResult
from nq_pipeline.lake.tables import INSTANT, MBO, MBP_1, OPTION_CHAIN, SOURCE_CHAIN, TRADES, Table
from nq_pipeline.report import markdown
from nq_pipeline.settings import Settings
from nq_pipeline.sources.databento.spec import DatabentoSettings
from nq_pipeline.spend.money import format_usd
from nq_pipeline.spend.statement import Statement
from nq_pipeline.workspace import Workspace

if TYPE_CHECKING:
    from nq_pipeline.backfill.day import BackfillDay
    from nq_pipeline.capture.stats import CaptureStats

Metadata = dict[str, Any]

MISSING_ROOTS, NONE = "missing_roots", "none"
"""A name and its value for none: the roots that are always listed but of which the gateway named no
instrument, separated by commas."""


def of_table(table: Table) -> Metadata:
    """The columns of a table and its name in DuckDB."""
    return {
        "dagster/column_schema": dg.TableSchema(
            columns=[
                dg.TableColumn(
                    column.name,
                    "timestamp[ns, UTC]" if column.dtype == INSTANT else str(column.dtype),
                    column.meaning,
                    constraints=dg.TableColumnConstraints(nullable=column.nullable),
                )
                for column in table.columns
            ],
            constraints=dg.TableConstraints(other=[f"unique by {', '.join(table.key)}"]),
        ),
        "dagster/table_name": f"nq.duckdb/{table.name}",
        "schema_version": table.version,
    }


def of_source(name: str, result: SourceResult, snapshot: Snapshot, settings: Settings) -> Metadata:
    """One vendor's part of a snapshot."""
    answer, fetches = result.answer, result.fetches
    rows = (
        Workspace.of(settings)
        .lake.scan(SOURCE_CHAIN, [snapshot.request.trade_date])
        .filter(pl.col("source") == name)
        .select(pl.len())
        .collect()
        .item()
    )
    return {
        **_of_rows(answer.frame, snapshot.request.moment),
        **of_partition(SOURCE_CHAIN, snapshot.request.trade_date, settings, rows=int(rows)),
        "outcome": str(answer.outcome),
        **({"reason": answer.reason} if answer.reason else {}),
        "elapsed_s": round(result.elapsed_s, 3),
        "requests": fetches.height,
        "cache_hits": result.hits,
        "cache_misses": result.misses,
        "bytes": int(fetches["bytes"].sum()),
        "cost_usd": float(fetches["cost_usd"].sum()),
        "dropped_total": answer.dropped.total(),
        "dropped": dg.MetadataValue.json(dict(answer.dropped)),
        "controls": dg.MetadataValue.json(dict(answer.controls)),
        "by_series": markdown_table(summary.by_series(answer.frame)),
    }


def of_chain(snapshot: Snapshot, settings: Settings) -> Metadata:
    """The chosen chain, which source won and why the others lost."""
    request = snapshot.request
    plot = markdown.front_open_interest(snapshot.chain, rate=settings.pricing.risk_free_rate)
    return {
        **_of_rows(snapshot.chain, request.moment),
        **of_partition(OPTION_CHAIN, request.trade_date, settings),
        "winners": ", ".join(snapshot.winners),
        "decisions": markdown_table(summary.by_verdict(snapshot.decisions)),
        "sources": markdown_table(summary.by_source(snapshot)),
        "by_series": markdown_table(summary.by_series(snapshot.chain)),
        "open_interest": dg.MetadataValue.md(markdown.chart(plot)),
        "catalog": catalog(settings),
    }


def of_progress(stats: CaptureStats, rate: float, *, trade_date: date, settings: Settings) -> Metadata:
    """The state of a capture; `rate` is in records a second since the last observation."""
    lag = {} if stats.lag_p99_ms is None else {"lag_p99_ms": round(stats.lag_p99_ms, 3)}
    return {
        "environment": settings.environment,
        "trade_date": trade_date.isoformat(),
        "records": stats.records,
        "records_per_s": round(rate, 3),
        **lag,
        "bytes": stats.bytes,
        "reconnects": stats.reconnects,
        "open_gaps": stats.open_gaps,
        "verified_gaps": stats.verified_gaps,
        "unfillable_gaps": stats.unfillable_gaps,
        "disputed_gaps": stats.disputed_gaps,
        "cost_usd": float(stats.cost_usd),
        **{f"schema_{what}": schema for what, schema in stats.schemas.items()},
        MISSING_ROOTS: ",".join(stats.missing) or NONE,
        **({"note": stats.note} if stats.note else {}),
        **({"alerts": "; ".join(alerts)} if (alerts := stats.alerts()) else {}),
    }


def of_trades(stats: CaptureStats, *, trade_date: date, settings: Settings) -> Metadata:
    """A captured trade date: the last attempt, and the rows of the whole partition."""
    workspace = Workspace.of(settings)
    lake = workspace.lake
    rows = {
        table.name: sum(file.rows for file in lake.manifest(table).of({trade_date}))
        for table in (TRADES, MBP_1, MBO)
    }
    return {
        **of_partition(TRADES, trade_date, settings),
        **{f"rows_{name}": count for name, count in rows.items() if count},
        **of_progress(
            stats,
            stats.records / stats.seconds if stats.seconds else 0.0,
            trade_date=trade_date,
            settings=settings,
        ),
        "captured_s": round(stats.seconds, 3),
        "log": _on_this_host(workspace, workspace.capture / settings.vendor(DatabentoSettings).dataset),
        "catalog": catalog(settings),
    }


def of_month(month: Statement) -> Metadata:
    """A month of the ledger, as floats for Dagster's plots; the ledger has the exact amounts."""
    from nq_pipeline import charts

    days, budget = pl.DataFrame([asdict(day) for day in month.days]), float(month.budgets.monthly_usd)
    by_purpose = [
        {"purpose": name, "metered": format_usd(part.metered_usd), "reserved": format_usd(part.reserved_usd)}
        for name, part in month.by_purpose.items()
    ]
    return {
        "environment": month.environment,
        "month": f"{month.month:%Y-%m}",
        "plan_usd": float(month.plan_usd),
        "metered_today_usd": float(month.today_usd),
        "metered_month_usd": float(month.metered_usd),
        "reserved_usd": float(month.reserved_usd),
        "remaining_usd": float(month.remaining_usd),
        "remaining_today_usd": float(month.remaining_today_usd),
        "projected_usd": float(month.projected_usd),
        "refused_month": len(month.refusals),
        "open_reservations": len(month.open),
        **({"by_purpose": markdown_table(pl.DataFrame(by_purpose))} if by_purpose else {}),
        "by_day": dg.MetadataValue.md(
            markdown.chart(charts.spend(days, budget_usd=budget, environment=month.environment))
        ),
    }


def of_day(day: BackfillDay) -> Metadata:
    """A trade date of history after a run of its backfill."""
    return {
        "state": day.state,
        **({"reason": day.reason} if day.reason else {}),
        **({"condition": day.condition} if day.condition else {}),
        **({"mode": day.mode} if day.mode else {}),
        "records": day.records,
        "rows": day.rows,
        "rows_known": day.known,
        "dropped_total": day.dropped,
        "bytes": day.size,
        "cost_usd": float(day.cost_usd),
        "bought_before": day.already,
    }


def markdown_table(frame: pl.DataFrame) -> dg.MarkdownMetadataValue:
    """A frame as a Markdown table."""
    return dg.MetadataValue.md(markdown.table(frame))


def catalog(settings: Settings) -> dg.PathMetadataValue:
    """The path of the DuckDB catalog."""
    workspace = Workspace.of(settings)
    return _on_this_host(workspace, workspace.catalog)


def _on_this_host(workspace: Workspace, path: Path) -> dg.PathMetadataValue:
    """A file that stays on the host; where hosts share a lake, with the host's name."""
    here = str(path.resolve())
    return dg.MetadataValue.path(f"file://{socket.gethostname()}{here}" if workspace.remote else here)


def _of_rows(frame: pl.DataFrame, moment: datetime) -> Metadata:
    newest = newest_quote(frame)
    ages = (
        {}
        if newest is None
        else {
            "newest_quote": dg.MetadataValue.timestamp(newest),
            "newest_age_s": round((moment - newest).total_seconds(), 3),
        }
    )
    return {
        "environment": frame.item(0, "environment"),
        "contracts": frame.height,
        "series": frame["series"].n_unique(),
        "snapshot_ts": dg.MetadataValue.timestamp(frame["snapshot_ts"].max()),
        "as_of": dg.MetadataValue.timestamp(frame["as_of"].max()),
        **ages,
    }


def of_partition(table: Table, trade_date: date, settings: Settings, *, rows: int | None = None) -> Metadata:
    """Where the rows of a trade date are and how many there are: `rows`, or all of the table."""
    lake = Workspace.of(settings).lake
    part = f"{table.name}/trade_date={trade_date}"
    if rows is None:
        rows = sum(file.rows for file in lake.manifest(table).of({trade_date}))
    if lake.objects:
        uri = lake.objects.uri(part)
        return {"dagster/partition_row_count": rows, "dagster/uri": uri, "folder": uri}
    folder = (lake.root / part).resolve()
    return {
        "dagster/partition_row_count": rows,
        "dagster/uri": f"file://{quote(str(folder), safe='/=')}",
        "folder": dg.MetadataValue.path(str(folder)),
    }
