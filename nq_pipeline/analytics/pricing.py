"""Stores the chain's implied volatilities and Greeks in the table `option_pricing`."""

from __future__ import annotations

import polars as pl

from nq_pipeline.lake.tables import OPTION_PRICING, conform
from nq_pipeline.market.pricing import price_chain
from nq_pipeline.settings import Settings
from nq_pipeline.workspace import Workspace


def price_snapshot(settings: Settings, chain: pl.DataFrame, *, run_id: str) -> pl.DataFrame:
    """Price rows of `option_chain` and append the result to the lake.

    Rows that were priced before stay unchanged, even if the interest rate has changed. Publish the
    catalog afterwards, so that its views show the rows.

    Parameters
    ----------
    chain
        Rows of `option_chain`, usually of one snapshot.

    Returns
    -------
    The rows of `option_pricing` as computed now, also those that were already in the table.

    Raises
    ------
    LakeError
        The chain does not have the columns of `option_chain`.
    """
    priced = price_chain(
        chain, rate=settings.pricing.risk_free_rate, max_last_age_s=settings.pricing.max_last_age_s
    )
    rows = conform(OPTION_PRICING, priced.with_columns(run_id=pl.lit(run_id)))
    Workspace.of(settings).lake.append(OPTION_PRICING, rows, run_id=run_id)
    return rows
