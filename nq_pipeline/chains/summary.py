"""A snapshot in figures, for people and programs: by series, by source, and why each source lost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import polars as pl

from nq_pipeline.chains.failover import QUOTED
from nq_pipeline.workspace import Workspace

if TYPE_CHECKING:
    from nq_pipeline.chains.result import Snapshot
    from nq_pipeline.settings import Settings


def by_series(frame: pl.DataFrame) -> pl.DataFrame:
    """Contracts, quotes, volume and open interest of every series of a chain, by expiration."""
    return (
        frame.sort("expiration", "root")
        .group_by("series", maintain_order=True)
        .agg(
            pl.col("source").unique().sort().str.join(", "),
            pl.len().alias("contracts"),
            QUOTED.sum().alias("quoted"),
            pl.col("volume").sum(),
            pl.col("open_interest").sum(),
            pl.col("underlying").first(),
            pl.col("underlying_price").median().round(2),
        )
    )


def by_verdict(decisions: pl.DataFrame) -> pl.DataFrame:
    """How many series each source won and lost, and why; the table `decisions` has every series."""
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


def by_source(snapshot: Snapshot) -> pl.DataFrame:
    """The outcome of every source that was asked, and why the others were not."""
    rows: list[Mapping[str, object]] = [
        {
            "source": name,
            "outcome": str(result.answer.outcome),
            "contracts": result.answer.frame.height,
            "elapsed_s": round(result.elapsed_s, 3),
            "cache": f"{result.hits} hits, {result.misses} misses",
            "reason": result.answer.reason,
        }
        for name, result in snapshot.results.items()
    ]
    rows += [
        {"source": name, "outcome": "not asked", "reason": why} for name, why in snapshot.skipped.items()
    ]
    return pl.DataFrame(rows, infer_schema_length=None)


def source_summary(snapshot: Snapshot, name: str) -> dict[str, Any]:
    """The outcome, size, age (seconds), cache use and elapsed seconds of one source's answer."""
    result = snapshot.results[name]
    newest = result.newest
    return {
        "outcome": str(result.answer.outcome),
        "reason": result.answer.reason,
        "contracts": result.answer.frame.height,
        "series": result.answer.frame["series"].n_unique(),
        "age_s": (snapshot.request.moment - newest).total_seconds() if newest else None,
        "cached": result.answer.cached,
        "hits": result.hits,
        "misses": result.misses,
        "seconds": result.elapsed_s,
        "dropped": dict(result.answer.dropped),
        "controls": dict(result.answer.controls),
    }


def loss_reasons(snapshot: Snapshot) -> dict[str, str]:
    """Why each losing source lost: the reason of its answer, else the most common reason of its series."""
    reasons: dict[str, str] = {}
    lost = snapshot.decisions.filter(~snapshot.decisions["won"]).sort("rank", maintain_order=True)
    for (source,), part in lost.group_by("source", maintain_order=True):
        counts = part["reason"].value_counts(sort=True)
        others = counts.height - 1
        more = f" (and {others} other reason{'s' * (others > 1)}; see the table decisions)" if others else ""
        own = snapshot.results[str(source)].answer.reason
        reasons[str(source)] = own or f"{counts['reason'][0]}{more}"
    return reasons


def as_json(settings: Settings, snapshot: Snapshot) -> dict[str, Any]:
    """The snapshot as `nq run --json` prints it."""
    request = snapshot.request
    return {
        "environment": settings.environment,
        "run_id": request.run_id,
        "trade_date": request.trade_date,
        "snapshot_ts": request.snapshot_ts,
        "moment": request.moment,
        "sources": {name: source_summary(snapshot, name) for name in snapshot.results},
        "skipped": dict(snapshot.skipped),
        "winners": snapshot.winners,
        "lost": loss_reasons(snapshot),
        "rows": dict(snapshot.rows),
        "lake": Workspace.of(settings).lake.uri,
    }
