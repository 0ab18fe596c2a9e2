"""The table writer of gaps and gateway sessions, and the thread on which it writes."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields
from datetime import datetime
from typing import Any, Self

import polars as pl

from nq_pipeline.capture.gaps import Gap, RecordCount, describe_difference
from nq_pipeline.capture.rows import TABLE_OF
from nq_pipeline.clock import from_ns, to_ns
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import GAPS, INSTANT, SESSIONS, Table
from nq_pipeline.market import sessions

_COLUMN_NAMES = {
    "first_ns": "first_ts", "last_ns": "last_ts", "replayed": "records_replayed",
    "counted": "records_counted", "published": "rows_published",
}  # fmt: skip
_COLUMN_OF = {each.name: _COLUMN_NAMES.get(each.name, each.name) for each in fields(Gap)}
"""Field of a gap to its column."""
_TEXTS = ("detail", "reason", "filled_by")
"""Fields that are null in the table when empty."""


def _gap_of(row: Mapping[str, Any]) -> Gap:
    values = {name: row[column] for name, column in _COLUMN_OF.items()}
    return Gap(**{**values, **{name: values[name] or "" for name in _TEXTS}})


class GapStore:
    """The tables `gaps` and `sessions` of one dataset.

    A new column of `gaps` needs a field in `Gap`, a column in `lake/tables/capture.py` with the table's
    `version` raised by one (so that readers fill the column in older files with nulls), an entry in
    `_COLUMN_NAMES` if the two names differ, and one in `_TEXTS` if an empty text is stored as null.
    """

    def __init__(self, lake: Lake, *, dataset: str, run_id: str) -> None:
        self._lake, self._dataset, self._run_id = lake, dataset, run_id
        self._origin = {"environment": lake.environment, "dataset": dataset, "run_id": run_id}

    def gaps(self, since: datetime) -> list[Gap]:
        """The current state of every gap that begins on the trade date of `since` or later."""
        rows = (
            self._lake.scan(GAPS)
            .filter(pl.col("trade_date") >= sessions.trade_date(since), pl.col("dataset") == self._dataset)
            .sort("revision")
            .group_by("gap_id", maintain_order=True)
            .last()
            .with_columns(pl.col("first_ts", "last_ts").dt.epoch("ns"))
            .collect()
        )
        return [_gap_of(row) for row in rows.iter_rows(named=True)]

    def write(self, gaps: Iterable[Gap], at: datetime) -> None:
        """Append states, durably; states already stored add nothing."""
        rows = [
            {
                **{column: getattr(gap, name) for name, column in _COLUMN_OF.items()},
                **{name: getattr(gap, name) or None for name in _TEXTS},
                "changed_at": to_ns(at),
                "trade_date": sessions.trade_date(from_ns(gap.first_ns)),
            }
            for gap in gaps
        ]
        self._append(GAPS, rows, ("changed_at", "first_ts", "last_ts"), at)

    def compare(self, gap: Gap, found: RecordCount) -> Gap:
        """A verified gap with the number of its rows in the lake, after they were published.

        Only the instruments that were counted are compared; others belong to other schemas.
        """
        assert gap.last_ns is not None
        first, last = from_ns(gap.first_ns), from_ns(gap.last_ns)
        days = {sessions.trade_date(first), sessions.trade_date(last)}
        days |= {s.trade_date for s in sessions.sessions(min(days), max(days))}
        since, until = (pl.lit(ns).cast(INSTANT) for ns in (gap.first_ns, gap.last_ns))
        rows = (
            self._lake.scan(TABLE_OF[found.rtype], days)
            .filter(pl.col("ts_event").is_between(since, until, closed="left"))
            .group_by("instrument_id")
            .len()
            .collect()
        )
        in_lake = Counter(dict(rows.iter_rows()))
        differences = [in_lake[i] - counted for i, counted in found.by_instrument.items()]
        more, fewer = sum(d for d in differences if d > 0), -sum(d for d in differences if d < 0)
        return gap.change(published=found.total + more - fewer, reason=describe_difference(more, fewer))

    def proven(self, since: datetime, until: datetime) -> int | None:
        """The proven moment of the last session that we ended ourselves, nanoseconds UTC, if any."""
        days = {s.trade_date for s in sessions.sessions(since.date(), until.date())}
        found = (
            self._lake.scan(SESSIONS, days | {sessions.trade_date(until)})
            .filter(pl.col("dataset") == self._dataset, pl.col("ended") == "stopped")
            .select(pl.col("proven_ts").dt.epoch("ns").max())
            .collect()
        )
        newest = found.item()
        return None if newest is None else int(newest)

    def write_session(self, row: Mapping[str, object], at: datetime) -> None:
        """Append a row of `sessions`; instants in nanoseconds UTC."""
        row = {**row, "trade_date": sessions.trade_date(at)}
        self._append(SESSIONS, [row], ("started_at", "ended_at", "replay_from", "proven_ts"), at)

    def _append(
        self, table: Table, rows: Sequence[Mapping[str, object]], instants: Sequence[str], at: datetime
    ) -> None:
        frame = pl.DataFrame([{**row, **self._origin} for row in rows], infer_schema_length=None)
        frame = frame.with_columns(pl.col(instants).cast(pl.Int64).cast(INSTANT))
        self._lake.append(table, frame, run_id=self._run_id, now=at)


class BackgroundWriter:
    """Runs work in order on a thread of its own, so that the event loop never waits for the lake."""

    def __init__(self) -> None:
        self._pending: deque[Future[Any]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="capture-writer")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.check(wait=True)
        finally:
            self._thread.shutdown(wait=True)

    def submit(self, work: Callable[[], object]) -> None:
        self._pending.append(self._thread.submit(work))

    def check(self, *, wait: bool = False) -> None:
        """Raise the error of finished work that failed; with `wait`, finish all work first."""
        while self._pending and (wait or self._pending[0].done()):
            self._pending.popleft().result()
