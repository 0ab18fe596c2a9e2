"""Computes what the tables of an existing lake lack: metrics of older snapshots, and columns added since.

Stored values stay as they are, even where a formula or the interest rate has changed since.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date

import polars as pl

from nq_pipeline.analytics.priced import CHAIN_COLUMNS
from nq_pipeline.analytics.snapshot import measure_snapshot, price_snapshot
from nq_pipeline.lake import tables
from nq_pipeline.lake.filling import fill
from nq_pipeline.lake.store import Lake
from nq_pipeline.market.pricing import INPUTS, greeks
from nq_pipeline.settings import Settings
from nq_pipeline.workspace import Workspace

SNAPSHOTS_AT_ONCE = 16
"""Snapshots in memory at a time; one of 7,774 contracts needs some 20 MB."""
_ADDED: dict[tables.Table, tuple[str, ...]] = {
    tables.OPTION_PRICING: ("rho", "vanna", "charm", "volga"),
    tables.SERIES_METRICS: (
        *(f"{name}_{delta}" for delta in (25, 10) for name in ("risk_reversal", "butterfly")),
        *(f"iv_{delta}_{side}" for delta in (25, 10) for side in ("call", "put")),
        "skew_slope",
    ),
    tables.GAMMA_LEVELS: (
        *("gamma_regime", "call_wall", "put_wall", "open_interest_left_out_share"),
        *("delta_exposure", "vanna_exposure", "charm_exposure", "term_slope", "underlying_price"),
    ),
}
"""The columns that the current version of a table added."""
_KEY = ["source", "snapshot_ts"]


@dataclass(frozen=True, slots=True)
class Recomputed:
    """What was done for a trade date: snapshots computed, and stored rows whose columns were filled."""

    trade_date: date
    snapshots: int
    filled: int


def recompute(
    settings: Settings,
    *,
    since: date | None = None,
    until: date | None = None,
    surfaces: bool = True,
    run_id: str,
) -> Iterator[Recomputed]:
    """Complete the computed tables of every trade date with a chain, oldest first.

    A trade date that is complete costs a look at its keys and no more, so a call that was interrupted may be
    repeated. Publish the catalog afterwards. Needs memory for `SNAPSHOTS_AT_ONCE` snapshots and for the new
    Greeks of one trade date. Without `surfaces` no volatility surface is fitted; a later call adds them.
    Raises `LakeError` when a table is damaged or cannot be written.
    """
    lake = Workspace.of(settings).lake
    days = sorted({file.trade_date for file in lake.manifest(tables.OPTION_CHAIN).files})
    for day in days:
        if (since is None or day >= since) and (until is None or day <= until):
            yield _recompute_day(settings, lake, day, surfaces, run_id)


def _recompute_day(settings: Settings, lake: Lake, day: date, surfaces: bool, run_id: str) -> Recomputed:
    older = [
        table
        for table in _ADDED
        if any(file.schema_version < table.version for file in lake.manifest(table).of({day}))
    ]
    left = snapshots = _snapshots(lake, tables.OPTION_CHAIN, day)
    if not older:
        for table in (tables.GAMMA_LEVELS, tables.SURFACE_SLICES) if surfaces else (tables.GAMMA_LEVELS,):
            snapshots = snapshots.join(_snapshots(lake, table, day), on=_KEY, how="semi")
        left = left.join(snapshots, on=_KEY, how="anti")
    given: dict[tables.Table, list[pl.DataFrame]] = {table: [] for table in older}
    instants = left["snapshot_ts"].unique().sort()
    for start in range(0, len(instants), SNAPSHOTS_AT_ONCE):
        chain, pricing = _priced(settings, lake, day, instants[start : start + SNAPSHOTS_AT_ONCE], run_id)
        rows = measure_snapshot(settings, chain, pricing, run_id=run_id, surfaces=surfaces)
        for table in older:
            whole = _with_greeks(chain, pricing) if table is tables.OPTION_PRICING else rows[table.name]
            given[table].append(whole.select(*table.key, tables.PARTITION, *_ADDED[table]))
    filled = sum(
        fill(lake, table, pl.concat(parts), run_id=run_id) for table, parts in given.items() if parts
    )
    return Recomputed(day, len(instants), filled)


def _snapshots(lake: Lake, table: tables.Table, day: date) -> pl.DataFrame:
    return lake.scan(table, [day]).select(_KEY).unique().collect()


def _priced(
    settings: Settings, lake: Lake, day: date, instants: pl.Series, run_id: str
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The chain of some snapshots and its pricing; what is not priced yet is priced and stored."""
    low, high = (pl.lit(instants.to_physical()[at]).cast(tables.INSTANT) for at in (0, -1))
    at = pl.col("snapshot_ts")
    within = at.is_between(low, high) & at.is_in(instants.implode())  # the bounds let it skip row groups
    columns = list(dict.fromkeys((*INPUTS, *CHAIN_COLUMNS)))
    chain = lake.scan(tables.OPTION_CHAIN, [day]).filter(within).select(columns).collect()
    pricing = lake.scan(tables.OPTION_PRICING, [day]).filter(within).collect()
    if (unpriced := chain.join(pricing, on=_KEY, how="anti")).height:
        pricing = pl.concat([pricing, price_snapshot(settings, unpriced, run_id=run_id)])
    return chain, pricing


def _with_greeks(chain: pl.DataFrame, pricing: pl.DataFrame) -> pl.DataFrame:
    """The pricing with all Greeks, by the volatility, forward and rate that it has."""
    key = [*_KEY, "contract_key"]
    contract = chain.select(*key, "strike", "option_type")
    return pricing.with_columns(greeks(pricing.join(contract, on=key, how="left", maintain_order="left")))
