"""Maintenance of the lake: merge small files, publish the catalog, remove superseded files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from datetime import datetime

from nq_pipeline.errors import LakeError
from nq_pipeline.lake import catalog
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import Table


def maintain(
    lake: Lake,
    tables: Iterable[Table],
    *,
    now: datetime,
    wait: bool = True,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Merge the files of `tables`, publish the catalog and remove the lake's superseded files.

    How far the files of a trade date are merged depends on `now`; see `compaction`.

    Parameters
    ----------
    wait
        Whether to wait for another process that merges a table; False skips such a table.
    report
        Called with one line per merged trade date and one at the end.

    Raises
    ------
    LakeError
        A table cannot be read. It is raised last: all other tables are merged and the catalog is published.
    """
    failures: list[LakeError] = []
    for table in tables:
        try:
            files = Counter(file.trade_date for file in lake.manifest(table).files)
        except LakeError as error:
            failures.append(error)
            continue
        for day in sorted(day for day, number in files.items() if number > 1):
            try:
                if merged := lake.compact(table, day, now=now, wait=wait):
                    report(f"{table.name} {day}: {merged} files merged")
            except LakeError as error:
                failures.append(error)
    # The catalog first, so that no view names a file that is removed.
    catalog.publish(lake)
    report(f"{lake.collect_garbage()} files removed that were superseded more than an hour ago")
    if failures:
        raise failures[0]
