"""Fits the volatility surface of a snapshot, and of the chain as of a moment."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import polars as pl

from nq_pipeline.analytics.metrics import iv_smile
from nq_pipeline.analytics.priced import MARKET, PRODUCT, SERIES
from nq_pipeline.lake import catalog
from nq_pipeline.lake.tables import SURFACE_ARBITRAGE, SURFACE_SLICES, Table
from nq_pipeline.market.surface import VolatilitySurface

if TYPE_CHECKING:
    import duckdb


def surface_quotes(priced: pl.DataFrame) -> pl.DataFrame:
    """The smile of a priced chain (`metrics.priced_chain`) with `expiration` and `product`."""
    expirations = priced.group_by(SERIES).agg(pl.col("expiration").first())
    return iv_smile(priced).join(expirations, on=SERIES).with_columns(PRODUCT)


def surface_rows(priced: pl.DataFrame) -> dict[Table, pl.DataFrame]:
    """Fit a surface for each source, snapshot and product of a priced chain.

    Returns the rows of `surface_slices` and `surface_arbitrage`, without `run_id`.
    """
    quotes = surface_quotes(priced)
    found: dict[Table, list[pl.DataFrame]] = {SURFACE_SLICES: [], SURFACE_ARBITRAGE: []}
    for rows in quotes.partition_by(MARKET, maintain_order=True) or [quotes]:
        surface, keys = VolatilitySurface(rows), rows.select(SERIES).unique()
        for table, frame in ((SURFACE_SLICES, surface.slices), (SURFACE_ARBITRAGE, surface.arbitrage())):
            found[table].append(frame.join(keys, on="series", how="left", maintain_order="left"))
    return {table: pl.concat(frames) for table, frames in found.items()}


def load_surface(
    connection: duckdb.DuckDBPyConnection, as_of: datetime | None, product: str
) -> VolatilitySurface:
    """Fit the surface of a product from the smile of the current chain, or of the chain as of a moment.

    Raises `LakeError` when `as_of` has no time zone.
    """
    keys = ("trade_date", "source", "snapshot_ts_ns", "series")
    chain = catalog.chain_relation(connection, as_of).select(*keys, "expiration", "product").distinct().pl()
    chain = chain.filter(product=product).drop("product")
    days, instants = chain["trade_date"], chain["snapshot_ts_ns"]
    smile = connection.sql(  # with bounds, so that DuckDB opens only the files of these snapshots
        "FROM iv_smile WHERE trade_date BETWEEN ? AND ? AND snapshot_ts_ns BETWEEN ? AND ?",
        params=[days.min(), days.max(), instants.min(), instants.max()],
    ).pl()
    return VolatilitySurface(smile.join(chain, on=keys))
