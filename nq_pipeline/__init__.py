"""Options on E-mini Nasdaq-100 futures (NQ): four vendors' chains in one Parquet lake.

`chain()` returns the current chain, `chain(as_of=…)` that of any moment; `connect()` opens the lake for SQL:

    import nq_pipeline as nq
    nq.chain()
    nq.connect().sql("select * from trades_enriched").pl()
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb
    import polars as pl

    from nq_pipeline.market.surface import VolatilitySurface
    from nq_pipeline.settings import Settings

__all__ = ["chain", "connect", "surface"]


def connect(settings: Settings | None = None) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection with a view of every table, as of this moment.

    Parameters
    ----------
    settings
        By default those of the environment and `.env`.

    Raises
    ------
    NoLake
        The data folder has no lake.
    SettingsError
        A setting is invalid.
    """
    from nq_pipeline.configuration import load
    from nq_pipeline.lake import catalog
    from nq_pipeline.workspace import Workspace

    return catalog.connect(Workspace.of(settings or load()).existing_lake)


def chain(
    as_of: datetime | None = None, *, newest_per_contract: bool = False, settings: Settings | None = None
) -> pl.DataFrame:
    """The current option chain, or the chain as of a moment.

    Parameters
    ----------
    as_of
        An instant with a time zone. For every series that had not expired, the result has the newest
        snapshot requested by then, with quotes from then or earlier, and contains nothing later. By
        default the current chain.
    newest_per_contract
        Return the newest row of every contract of that trade date, even if a later snapshot left the
        contract out.
    settings
        By default those of the environment and `.env`.

    Returns
    -------
    polars.DataFrame
        One row per contract, with the columns and types of the table `option_chain` and the column
        `product`. Prices and strikes are in points (proxies: index points or dollars), instants are
        `Datetime("ns", "UTC")`, and missing values are null. Empty when there was no chain.

    Raises
    ------
    LakeError
        `as_of` has no time zone.
    NoLake
        The data folder has no lake.
    SettingsError
        A setting is invalid.
    """
    from nq_pipeline.lake import catalog

    with connect(settings) as connection:
        return catalog.chain(connection, as_of, newest_per_contract=newest_per_contract)


def surface(
    as_of: datetime | None = None, *, product: str | None = None, settings: Settings | None = None
) -> VolatilitySurface:
    """The fitted volatility surface of the current chain, or of the chain as of a moment.

    `surface().implied_volatility(21_500, date(2025, 6, 20))` gives a volatility with an error band, null
    outside the quotes. The surface is fitted from `iv_smile`, so chains older than the table
    `surface_slices` have one, too. It is empty when there was no chain with quotes.

    Parameters
    ----------
    as_of
        An instant with a time zone, as for `chain`. By default the current chain.
    product
        What the options are on: `NQ`, or a proxy such as `NDX`. By default the first of the settings.
    settings
        By default those of the environment and `.env`.

    Raises
    ------
    LakeError
        `as_of` has no time zone.
    NoLake
        The data folder has no lake.
    SettingsError
        A setting is invalid.
    """
    from nq_pipeline.analytics.surface import load_surface
    from nq_pipeline.configuration import load

    settings = settings or load()
    with connect(settings) as connection:
        return load_surface(connection, as_of, product or settings.products[0])
