"""What the UI shows beside an asset. The names are an interface: same name and unit everywhere.

Numbers that stand alone are plotted by Dagster over time, so they are numbers, not text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import dagster as dg
import polars as pl

from nq_pipeline.chains.quality import newest_quote
from nq_pipeline.chains.result import Snapshot, VendorResult
from nq_pipeline.lake.tables import INSTANT, MBO, MBP_1, OPTION_CHAIN, SOURCE_CHAIN, TRADES, Table
from nq_pipeline.report.thumbnails import front_open_interest, thumbnail
from nq_pipeline.settings import Settings
from nq_pipeline.spend.money import format_usd
from nq_pipeline.spend.statement import Statement
from nq_pipeline.workspace import Workspace

if TYPE_CHECKING:
    from nq_pipeline.backfill.day import BackfillDay
    from nq_pipeline.capture.stats import CaptureStats

Metadata = dict[str, Any]

MISSING_ROOTS, NONE = "missing_roots", "none"
"""Metadata key: roots always listed that the gateway named no instrument of, separated by commas."""
MOST_ROWS = 60
"""Rows of a table in metadata; the lake has them all."""


def of_table(table: Table) -> Metadata:
    """What is known of a table before anything is written: its columns and where DuckDB has it."""
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


def of_source(name: str, asked: VendorResult, snapshot: Snapshot, settings: Settings) -> Metadata:
    """One vendor's part of a snapshot."""
    answer, fetches = asked.answer, asked.fetches
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
        **of_place(SOURCE_CHAIN, snapshot.request.trade_date, int(rows), settings),
        "outcome": str(answer.outcome),
        **({"reason": answer.reason} if answer.reason else {}),
        "elapsed_s": round(asked.elapsed_s, 3),
        "requests": fetches.height,
        "cache_hits": asked.hits,
        "cache_misses": asked.misses,
        "bytes": int(fetches["bytes"].sum()),
        "cost_usd": float(fetches["cost_usd"].sum()),
        "dropped_total": answer.dropped.total(),
        "dropped": dg.MetadataValue.json(dict(answer.dropped)),
        "controls": dg.MetadataValue.json(dict(answer.controls)),
        "by_series": markdown(_by_series(answer.frame)),
    }


def of_chain(snapshot: Snapshot, settings: Settings) -> Metadata:
    """The chosen chain, who won and why the others did not."""
    request = snapshot.request
    files = Workspace.of(settings).lake.manifest(OPTION_CHAIN).of({request.trade_date})
    plot = front_open_interest(snapshot.chain, rate=settings.risk_free_rate)
    return {
        **_of_rows(snapshot.chain, request.moment),
        **of_place(OPTION_CHAIN, request.trade_date, sum(file.rows for file in files), settings),
        "winners": ", ".join(snapshot.winners),
        "decisions": markdown(_by_verdict(snapshot.decisions)),
        "sources": markdown(_by_source(snapshot)),
        "by_series": markdown(_by_series(snapshot.chain)),
        "open_interest": dg.MetadataValue.md(thumbnail(plot)),
        "catalog": dg.MetadataValue.path(str(Workspace.of(settings).catalog.resolve())),
    }


def of_progress(totals: CaptureStats, rate: float, *, trade_date: date, settings: Settings) -> Metadata:
    """How a capture is going; `rate` is in records a second since the last time."""
    lag = {} if totals.lag_p99_ms is None else {"lag_p99_ms": round(totals.lag_p99_ms, 3)}
    return {
        "environment": settings.environment,
        "trade_date": trade_date.isoformat(),
        "records": totals.records,
        "records_per_s": round(rate, 3),
        **lag,
        "bytes": totals.bytes,
        "reconnects": totals.reconnects,
        "open_gaps": totals.open_gaps,
        "verified_gaps": totals.verified_gaps,
        "unfillable_gaps": totals.unfillable_gaps,
        "disputed_gaps": totals.disputed_gaps,
        "cost_usd": float(totals.cost_usd),
        **{f"schema_{what}": schema for what, schema in totals.schemas.items()},
        MISSING_ROOTS: ",".join(totals.missing) or NONE,
        **({"note": totals.note} if totals.note else {}),
        **({"alerts": "; ".join(alerts)} if (alerts := totals.alerts()) else {}),
    }


def of_trades(totals: CaptureStats, *, trade_date: date, settings: Settings) -> Metadata:
    """A trade date as its capture left it: of the last attempt, and of the whole partition."""
    lake = Workspace.of(settings).lake
    rows = {
        table.name: sum(file.rows for file in lake.manifest(table).of({trade_date}))
        for table in (TRADES, MBP_1, MBO)
    }
    return {
        **of_place(TRADES, trade_date, rows[TRADES.name], settings),
        **{f"rows_{name}": count for name, count in rows.items() if count},
        **of_progress(
            totals,
            totals.records / totals.seconds if totals.seconds else 0.0,
            trade_date=trade_date,
            settings=settings,
        ),
        "captured_s": round(totals.seconds, 3),
        "log": dg.MetadataValue.path(str(_capture_log(settings))),
        "catalog": dg.MetadataValue.path(str(Workspace.of(settings).catalog.resolve())),
    }


def of_month(month: Statement) -> Metadata:
    """A month of the ledger. Plots are drawn of floats; the ledger has the exact amounts."""
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
        **({"by_purpose": markdown(pl.DataFrame(by_purpose))} if by_purpose else {}),
        "by_day": dg.MetadataValue.md(
            thumbnail(charts.spend(days, budget_usd=budget, environment=month.environment))
        ),
    }


def of_day(day: BackfillDay) -> Metadata:
    """A trade date of history, as the run that asked for it left it."""
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


def markdown(frame: pl.DataFrame) -> dg.MarkdownMetadataValue:
    """A frame as a Markdown table; cells come from vendors, so nothing in them is markup."""
    shown = frame.head(MOST_ROWS)
    lines = [_line(shown.columns), _line(["---"] * shown.width), *(_line(row) for row in shown.iter_rows())]
    if frame.height > MOST_ROWS:
        lines.append(f"\n{frame.height - MOST_ROWS} more rows are in the lake.")
    return dg.MetadataValue.md("\n".join(lines))


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


def of_place(table: Table, trade_date: date, rows: int, settings: Settings) -> Metadata:
    """Where the rows of a trade date are, and how many."""
    folder = (Workspace.of(settings).lake.root / table.name / f"trade_date={trade_date}").resolve()
    return {
        "dagster/partition_row_count": rows,
        "dagster/uri": f"file://{quote(str(folder), safe='/=')}",
        "folder": dg.MetadataValue.path(str(folder)),
    }


def _capture_log(settings: Settings) -> Path:
    return (Workspace.of(settings).capture / settings.databento_dataset).resolve()


def _by_series(frame: pl.DataFrame) -> pl.DataFrame:
    return (
        frame.sort("expiration", "root")
        .group_by("series", maintain_order=True)
        .agg(
            pl.col("source").unique().sort().str.join(", "),
            pl.len().alias("contracts"),
            (pl.col("bid").is_not_null() | pl.col("ask").is_not_null()).sum().alias("quoted"),
            pl.col("volume").sum(),
            pl.col("open_interest").sum(),
            pl.col("underlying").first(),
            pl.col("underlying_price").median().round(2),
        )
    )


def _by_verdict(decisions: pl.DataFrame) -> pl.DataFrame:
    """How many series each source won and lost, and why; the table `decisions` has every series.

    Few rows on purpose: Dagster folds away Markdown of a thousand characters and more.
    """
    reasons = pl.col("reason").n_unique()
    return (
        decisions.sort("rank", "series")
        .group_by("source", "won", "outcome", maintain_order=True)
        .agg(
            pl.len().alias("series"),
            pl.col("contracts").sum(),
            pl.col("reason").first()
            + pl.when(reasons > 1)
            .then(pl.format(" (and {} more like it)", reasons - 1))
            .otherwise(pl.lit("")),
        )
    )


def _by_source(snapshot: Snapshot) -> pl.DataFrame:
    rows: list[Mapping[str, object]] = [
        {
            "source": name,
            "outcome": str(asked.answer.outcome),
            "contracts": asked.answer.frame.height,
            "elapsed_s": round(asked.elapsed_s, 3),
            "cache": f"{asked.hits} hits, {asked.misses} misses",
            "reason": asked.answer.reason,
        }
        for name, asked in snapshot.results.items()
    ]
    rows += [
        {"source": name, "outcome": "not asked", "reason": why} for name, why in snapshot.skipped.items()
    ]
    return pl.DataFrame(rows, infer_schema_length=None)


def _line(cells: Any) -> str:
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.6g}" if abs(value) < 1 else f"{value:,.2f}"
    text = " ".join(str(value).split())
    for mark in "\\`*_[]<>|!#~":
        text = text.replace(mark, "\\" + mark)
    return text
