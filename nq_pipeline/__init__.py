"""Options on E-mini Nasdaq-100 futures (NQ): four vendors' chains in one Parquet lake.

`chain()` is the current chain, `chain(as_of=…)` that of any moment; `connect()` opens the lake for SQL:

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

    from nq_pipeline.settings import Settings

__all__ = ["chain", "connect"]


def connect(settings: Settings | None = None) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection with a view of every table, as of this moment.

    Parameters
    ----------
    settings
        Those of the environment and `.env` when left out.

    Raises
    ------
    NoLake
        The data folder has no lake.
    SettingsError
        A setting makes no sense.
    """
    from nq_pipeline.configuration import load
    from nq_pipeline.lake import catalog
    from nq_pipeline.workspace import Workspace

    return catalog.connect(Workspace.of(settings or load()).existing_lake)


def chain(
    as_of: datetime | None = None,
    *,
    newest_per_contract: bool = False,
    settings: Settings | None = None,
) -> pl.DataFrame:
    """The option chain: the current one, or as it stood at a moment.

    Parameters
    ----------
    as_of
        An instant with a time zone. Of every series that had not expired it gives the newest snapshot
        asked for by then whose quotes speak of then or before: nothing later is in it. The current
        chain when left out.
    newest_per_contract
        The newest row of every contract of that trade date, also of those that a later snapshot left
        out.
    settings
        Those of the environment and `.env` when left out.

    Returns
    -------
    polars.DataFrame
        One row per contract, in the columns and types of the table `option_chain`: prices and strikes
        in points, instants `Datetime("ns", "UTC")`, missing is null; and whose options they are, `product`.
        Empty when there was no chain.

    Raises
    ------
    LakeError
        `as_of` has no time zone.
    NoLake
        The data folder has no lake.
    SettingsError
        A setting makes no sense.
    """
    from nq_pipeline.lake import catalog

    with connect(settings) as connection:
        return catalog.chain(connection, as_of, newest_per_contract=newest_per_contract)
