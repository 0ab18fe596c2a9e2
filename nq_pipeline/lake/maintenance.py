"""What keeps the lake small: merge files, publish the catalog, remove what nobody reads any more."""

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
    """Merge the files of every trade date of some tables as far as `now` allows, and clean the whole lake.

    Parameters
    ----------
    wait
        False leaves tables that another process is merging to it.
    report
        Gets one line per trade date merged, and one at the end.

    Raises
    ------
    LakeError
        A table cannot be read. All others are merged by then, and the catalog is published.
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
    # First the catalog stops naming superseded files, then they go.
    catalog.publish(lake)
    report(f"{lake.collect_garbage()} files removed that were superseded more than an hour ago")
    if failures:
        raise failures[0]
