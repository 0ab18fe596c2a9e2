"""What steps share: errors as one sentence, and the specification of a computed table."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from nq_pipeline.errors import NqError
from nq_pipeline.lake.tables import Table
from nq_pipeline.orchestration import metadata

Event = dg.MaterializeResult[None] | dg.AssetCheckResult

MARKET_DATA, RESEARCH = ["team:market-data"], ["team:research"]
"""Owners of assets."""


@contextmanager
def failing_in_one_sentence() -> Iterator[None]:
    """Fail the step, without retries, for an error raised on purpose."""
    try:
        yield
    except NqError as error:
        raise dg.Failure(str(error), allow_retries=False) from error


def computed_spec(
    key: dg.AssetKey,
    table: Table,
    *deps: dg.AssetKey,
    description: str,
    freshness_policy: dg.FreshnessPolicy | None = None,
) -> dg.AssetSpec:
    """The specification of an asset that we compute and write to a table."""
    return dg.AssetSpec(
        key,
        deps=deps,
        skippable=True,
        description=f"{table.meaning} {description}",
        metadata=metadata.of_table(table),
        group_name="analytics",
        owners=RESEARCH,
        freshness_policy=freshness_policy,
        tags={"nq/layer": "computed"},
        kinds={"polars", "parquet"},
    )
