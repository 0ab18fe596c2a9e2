"""Merges small files, so that a query opens few of them.

Sixty files of one level become one file of the next level. At one publication a second the levels are
minutes, hours and the trade date; at any pace a trade date has fewer than 200 current files. Until the
trade date is over, files keep the order of arrival and are sorted within small pieces, so that no row is
read twice and readers can skip by time. Afterwards all become one sorted file.

A merge reads immutable files, writes a new one and then swaps them in one manifest version, all or
nothing. Appends continue meanwhile. No host is chosen: the one whose append makes the sixtieth file merges,
and so does the one that runs housekeeping. Of two hosts that merge the same files, the first one replaces
them, and the other drops its file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta

import polars as pl

from nq_pipeline.lake import parquet
from nq_pipeline.lake.manifest import DataFile
from nq_pipeline.lake.table_files import TableFiles
from nq_pipeline.lake.tables import Table

FAN_IN = 60
SLICE_ROWS = parquet.ROW_GROUP_ROWS // 2
"""Rows sorted at a time. A merge needs memory for these and for one column of the trade date."""
PIECE_ROWS = parquet.ROW_GROUP_ROWS // 6
"""Rows read at a time where rows keep their order. This runs during a capture and must use little memory."""


def compact(stored: TableFiles, trade_date: date, *, now: datetime, wait: bool = True) -> int:
    """Merge the files of one trade date as far as `now` allows. A second call changes nothing.

    Without `wait`, does nothing if another process is merging this table.

    Returns
    -------
    int
        How many files were merged into fewer; 0 when there was nothing to do.
    """
    merged = 0
    with stored.merge_lock(wait=wait) as locked:
        over = is_over(trade_date, now)
        while locked and (group := select_merge(stored.manifest().of({trade_date}), over)):
            if _merge(stored, group, whole=over):  # else another host was first
                merged += len(group)
    return merged


def select_merge(files: Sequence[DataFile], over: bool) -> list[DataFile]:
    """The files of one trade date to merge next; empty when they stay as they are."""
    if over:
        return list(files) if len(files) > 1 else []
    for level in sorted({file.level for file in files}):
        group = [file for file in files if file.level == level]
        if len(group) >= FAN_IN:
            return group
    return []


def is_over(trade_date: date, now: datetime) -> bool:
    """Whether a trade date has ended: midnight UTC after it is hours past its close, 16:00 in Chicago.

    Rows that arrive later (a replayed gap, an answer parsed again) are merged by the next call.
    """
    return now >= datetime.combine(trade_date, time(), UTC) + timedelta(days=1)


def _merge(stored: TableFiles, group: Sequence[DataFile], *, whole: bool) -> bool:
    """Replace files of one trade date by one with the same rows, sorted when it is the `whole` trade date.

    False if another host has replaced one of them meanwhile.
    """
    stored.check(group)
    with stored.stage(group[0].trade_date) as staged:
        if whole:
            frames, rows = sorted_slices(stored, group), parquet.ROW_GROUP_ROWS
        else:
            frames, rows = sorted_pieces(stored, group), PIECE_ROWS
        written = stored.write_staged(staged, frames, stored.read_runs(group), group_rows=rows)
        return stored.replace(group, staged, written)


def sorted_pieces(stored: TableFiles, group: Sequence[DataFile]) -> Iterator[pl.DataFrame]:
    """All rows of some files in order, sorted within pieces of at most `PIECE_ROWS`."""
    piece: list[pl.DataFrame] = []
    for file in group:
        for offset in range(0, file.rows, PIECE_ROWS):
            rows = stored.scan([file]).slice(offset, PIECE_ROWS).collect()
            if piece and sum(each.height for each in piece) + rows.height > PIECE_ROWS:
                yield _sorted(stored.table, piece)
                piece = []
            piece.append(rows)
    yield _sorted(stored.table, piece)


def _sorted(table: Table, piece: list[pl.DataFrame]) -> pl.DataFrame:
    return piece[0] if len(piece) == 1 else pl.concat(piece).sort(table.total_order)


def sorted_slices(stored: TableFiles, group: Sequence[DataFile]) -> Iterator[pl.DataFrame]:
    """All rows of some files in the table's order, about `SLICE_ROWS` at a time."""
    table, frames = stored.table, stored.scan(group)
    if sum(file.rows for file in group) <= SLICE_ROWS:
        yield frames.sort(table.total_order).collect()
        return
    leading = pl.col(table.order[0])
    values = frames.select(leading).collect().to_series().sort()
    # Cuts stay in a series, because Python datetimes would lose the nanoseconds.
    cuts = values.gather_every(SLICE_ROWS, offset=SLICE_ROWS).unique(maintain_order=True)
    del values
    for i in range(len(cuts) + 1):
        inside = pl.lit(True)
        if i > 0:
            inside &= leading >= _literal(cuts, i - 1)
        if i < len(cuts):
            inside &= leading < _literal(cuts, i)
        piece = frames.filter(inside).sort(table.total_order).collect()
        if piece.height:
            yield piece


def _literal(cuts: pl.Series, i: int) -> pl.Expr:
    return pl.lit(cuts.to_physical()[i]).cast(cuts.dtype)
