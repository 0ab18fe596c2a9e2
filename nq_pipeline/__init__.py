"""Options on E-mini Nasdaq-100 futures (NQ): four vendors' chains in one Parquet lake.

`connect()` opens the lake for queries:

    import nq_pipeline as nq
    nq.connect().sql("select * from option_chain_latest").pl()
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb

    from nq_pipeline.settings import Settings

__all__ = ["connect"]


def connect(settings: Settings | None = None) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection with a view of every table, as of this moment.

    Parameters
    ----------
    settings
        Those of the environment and `.env` when left out.

    Raises
    ------
    SettingsError
        A setting makes no sense.
    """
    from nq_pipeline.lake import catalog
    from nq_pipeline.settings import load

    return catalog.connect((settings or load()).environment_dir)
