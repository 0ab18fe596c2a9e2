"""Trades and quotes from the capture log, each record once.

A gateway session replays what the one before it may have missed, so the log has records twice. The lake
skips the rows whose key it has; the stream does the same with the keys of earlier sessions. Those follow from
the log, so a reader that begins anywhere finds the same rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl

from nq_pipeline.capture.log.reader import tail
from nq_pipeline.capture.log.segments import BEGINNING, Position, Segment, list_segments
from nq_pipeline.capture.log.writer import SEGMENT_AGE_S
from nq_pipeline.capture.publisher import LogReader
from nq_pipeline.capture.rows import SNAPSHOT, TABLE_OF, Origin, filing_instants, record_keys
from nq_pipeline.clock import NS_PER_S
from nq_pipeline.dbn.framer import NEAR_NS
from nq_pipeline.dbn.layout import Array
from nq_pipeline.lake.tables import MBP_1, TRADES, Table
from nq_pipeline.stream.batch import BatchType

READ_BYTES = 1_000_000
"""Bytes of the log per batch, where many are waiting."""
_CONTRACT = ("raw_symbol", "instrument_kind", "root", "series", "contract_key", "option_type", "strike")
_TICK = ("ts_event", "ts_recv", "trade_date", "instrument_id", *_CONTRACT)
COLUMNS: dict[BatchType, tuple[str, ...]] = {
    "trades": (*_TICK, "side", "price", "size", "sequence", "ordinal", "source_schema"),
    "quotes": (*_TICK, "bid_px_00", "ask_px_00", "bid_sz_00", "ask_sz_00", "sequence", "ordinal"),
}
"""The columns of the tables `trades` and `mbp_1` that are streamed."""
STREAMED: dict[Table, BatchType] = {TRADES: "trades", MBP_1: "quotes"}
_MOMENT = pl.when("is_misdated").then("ts_recv").otherwise("ts_event").dt.epoch("ns")


def end_of_log(folder: Path) -> Position:
    """The end of the last whole record of a log."""
    found = list_segments(folder)
    if not found:
        return BEGINNING
    end = Position(found[-1].number, 0)
    for block in tail(folder, end):
        end = block.end
    return end


class LogTail:
    """Reads the rows of a dataset's log from a position on.

    Attributes
    ----------
    position
        Up to where the log has been read.
    """

    def __init__(self, folder: Path, position: Position) -> None:
        self.position = position
        self._folder = folder
        self._reader = LogReader(folder, READ_BYTES)
        self._repeats = Repeats(folder)

    def read(self, until: Position | None = None) -> Iterator[tuple[BatchType, Position, pl.DataFrame]]:
        """The rows of what is in the log and synced now, or up to `until`; quotes before trades.

        Raises `CaptureError` when the log cannot be read; read on to try again.
        """
        batches = self._reader.batches(self.position, until)
        try:
            for session, end in batches:
                tables, _ = session.build(Origin("", "", 0))
                found: dict[BatchType, list[pl.DataFrame]] = defaultdict(list)
                for table, rows in tables:
                    if table in STREAMED:
                        found[STREAMED[table]].append(self._repeats.drop(session.number, table, rows))
                for kind, parts in found.items():
                    columns = [pl.col(name) for name in COLUMNS[kind]]
                    texts = pl.selectors.enum().cast(pl.String)
                    rows = pl.concat([part.select(columns).with_columns(texts) for part in parts])
                    if rows.height:
                        yield kind, end, rows.sort("ts_event", "sequence", maintain_order=True)
                self.position = end
        except BaseException:
            self._reader.forget()
            raise


class Repeats:
    """Knows the rows that earlier sessions of a log have brought already.

    What arrived in earlier sessions is older than their ends, so a session has repetitions only until it
    passes those. Only as much of the log is read as a replay overlaps.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._session = 0
        self._earlier: Sequence[tuple[Segment, int]] = ()
        self._horizon_ns = 0
        self._since_ns: int | None = None
        self._known: dict[Table, pl.DataFrame] = {}

    def drop(self, session: int, table: Table, rows: pl.DataFrame) -> pl.DataFrame:
        """The rows of a session that no earlier session has."""
        if session != self._session:
            self._begin(session)
        oldest = rows.select(_MOMENT.min()).item()
        if oldest is None or oldest >= self._horizon_ns:
            return rows
        if self._since_ns is None or oldest < self._since_ns:
            self._known, self._since_ns = self._read(oldest), oldest
        return rows.join(self._known[table], on=table.key, how="anti", maintain_order="left")

    def _begin(self, session: int) -> None:
        self._session, self._since_ns = session, None
        self._earlier = list(_with_ends(list_segments(self._folder), session))
        self._horizon_ns = max((end for _, end in self._earlier), default=0)

    def _read(self, since_ns: int) -> dict[Table, pl.DataFrame]:
        """The keys of the rows from an instant on (nanoseconds UTC) in earlier sessions."""
        by_session: dict[tuple[int, int], list[Array]] = defaultdict(list)
        for segment, end in self._earlier:
            if end < since_ns:
                continue
            whole = Position(segment.number, segment.path.stat().st_size)
            for block in tail(self._folder, Position(segment.number, 0), whole):
                for rtype in block.frame.tallies.keys() & TABLE_OF.keys():
                    records = block.frame.array(rtype)
                    # The records of one key have one `ts_event`, so they stay together.
                    recent = records[filing_instants(records) >= np.uint64(since_ns)]
                    by_session[segment.session, rtype].append(recent)
        found: dict[Table, list[pl.DataFrame]] = {table: [_no_keys(table)] for table in STREAMED}
        for (_, rtype), parts in by_session.items():
            records, table = np.concatenate(parts), TABLE_OF[rtype]
            if table is not TRADES:
                records = records[records["flags"] & SNAPSHOT == 0]
                if table in STREAMED:
                    found[table].append(record_keys(records))
                records = records[records["action"] == b"T"]
            found[TRADES].append(record_keys(records))
        return {t: pl.concat([one.select(t.key) for one in keys]).unique() for t, keys in found.items()}


def _with_ends(segments: Sequence[Segment], session: int) -> Iterator[tuple[Segment, int]]:
    """The segments of earlier sessions, and an instant after which none of their records was sent.

    That is the beginning of the next segment. Where the clock went back there (in the sandbox), it is the
    longest time that a segment can take.
    """
    for segment, following in pairwise(segments):
        if segment.number >= session:
            return
        ends = following.start_ns
        if ends < segment.start_ns:
            ends = segment.start_ns + int(SEGMENT_AGE_S) * NS_PER_S
        yield segment, ends + NEAR_NS


def _no_keys(table: Table) -> pl.DataFrame:
    return pl.DataFrame(schema={name: table.schema[name] for name in table.key})
