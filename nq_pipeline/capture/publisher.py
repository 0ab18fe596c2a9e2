"""Publish: what the capture log holds becomes rows of the lake, every second or so, exactly once.

A call reads the log from a durable cursor, appends the rows, and moves the cursor afterwards. A
crash between the two makes the next call append the same rows again, and the lake leaves out rows
whose key it has. The same holds for a replay that overlaps what was published. The cursor lies
beside the trades, not in the log: whoever moves the table away gets it published anew.

The log is all there is between the capture and this; both may run in different processes, and the
lake may be rebuilt from the log at any time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from nq_pipeline.capture import log
from nq_pipeline.capture.log import BEGINNING, Position
from nq_pipeline.capture.rows import Origin, RowCounts, SessionRows
from nq_pipeline.capture.stats import CaptureStats
from nq_pipeline.clock import Clock, SystemClock, to_ns
from nq_pipeline.errors import CaptureError, LakeError
from nq_pipeline.files import locked, write_atomically
from nq_pipeline.lake.maintenance import maintain
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import MBO, MBP_1, TRADES, Table
from nq_pipeline.market import sessions

if TYPE_CHECKING:
    import polars as pl

TABLES = (TRADES, MBP_1, MBO)
BATCH_BYTES = 5_000_000
"""Records of one append, nearly a row group of trades: what bounds the memory of catching up."""
LOOK_BACK = 4 * 1024 * 1024
"""Bytes of a session read again when it is taken up: no run of one key is that long."""
TIDY_EVERY_S = 60.0
PUBLISH_EVERY_S = 1.0
POLL_S = 0.05


@dataclass
class PublishResult:
    """What one call did.

    Attributes
    ----------
    rows
        Table to rows that were new.
    known
        Rows left out because the lake had them.
    counts
        What became of the records.
    position
        Up to where the log is published.
    """

    position: Position
    rows: dict[str, int] = field(default_factory=dict)
    known: int = 0
    counts: RowCounts = field(default_factory=RowCounts)


class Publisher:
    """Publishes the log of one dataset.

    Parameters
    ----------
    log_folder
        The dataset's folder in the capture folder.
    clock
        Tells when rows are published and which trade dates are over.
    run_id
        Marks the rows, and the files' footers.
    batch_bytes
        How much of the log one append takes.

    Any number may exist; they take turns.
    """

    def __init__(
        self,
        log_folder: Path,
        lake: Lake,
        *,
        run_id: str,
        clock: Clock | None = None,
        batch_bytes: int = BATCH_BYTES,
    ) -> None:
        self.log_folder = log_folder
        self.lake = lake
        self._clock = clock or SystemClock()
        self._run_id = run_id
        self._batch_bytes = batch_bytes
        self._cursor = lake.folder(TRADES) / f"{log_folder.name}.published"
        self._reached = BEGINNING
        self._session: SessionRows | None = None
        self._tidied = self._clock.monotonic()
        sessions.trade_date(self._clock.now())  # asked here already, since the calendar takes a while to load

    @property
    def position(self) -> Position:
        """Up to where the log is published."""
        try:
            return Position.parse(self._cursor.read_bytes().decode())
        except FileNotFoundError:
            return BEGINNING
        except ValueError:
            raise CaptureError(
                f"{self._cursor} does not hold a position in the log; delete it: the log is then read from "
                "its beginning, and rows that are there are not written again"
            ) from None

    def publish(self, until: Position | None = None) -> PublishResult:
        """Append everything the log has, or has before `until`, and move the cursor.

        Raises
        ------
        CaptureError
            The log cannot be read; what was whole before is published.
        LakeError
            The lake cannot be written. The next call begins again where the cursor is.
        """
        try:
            return self._publish(until)
        except OSError as error:
            raise LakeError(
                f"rows cannot be published ({error.strerror or error}); free some space, or make "
                f"{self.lake.root} writable: they are in the capture log, and follow by themselves"
            ) from error

    def _publish(self, until: Position | None) -> PublishResult:
        with locked(self._cursor.with_suffix(".lock")), ThreadPoolExecutor(1, "publish") as behind:
            done = PublishResult(self.position)
            # A batch is written while the next one is made; batches are written one after the other.
            writing: Future[None] | None = None
            try:
                for session, end in self._batches(done.position, until):
                    now = self._clock.now()
                    origin = Origin(self.lake.root.parent.name, self._run_id, to_ns(now))
                    tables, counts = session.rows(origin)
                    if writing:
                        writing.result()
                    writing = behind.submit(self._write, tables, counts, end, now, done)
                if writing:
                    writing.result()
            except BaseException:
                self._session = None  # has read on: to be taken up from the log again
                raise
        if self._clock.monotonic() - self._tidied >= TIDY_EVERY_S:
            self.tidy()
        return done

    def tidy(self) -> None:
        """Merge what is over, publish the catalog, remove old files; `publish` does it every minute.

        Tables that another process is merging are left to it.
        """
        self._tidied = self._clock.monotonic()
        maintain(self.lake, TABLES, now=self._clock.now(), wait=False)

    def _batches(self, start: Position, until: Position | None) -> Iterator[tuple[SessionRows, Position]]:
        """Sessions with records to write, and how far the log is read by then."""
        if self._session is None or self._reached != start:
            self._session = self._taken_up(start)
        session, given, end = self._session, start, start
        failure: CaptureError | None = None
        try:
            for block in log.tail(self.log_folder, start, until):
                if session is None or block.segment.session != session.number:
                    if session and end != given:
                        yield session, end
                    session, given = SessionRows(block.segment.session), end
                    self._session = session
                session.take(block.frame)
                end = block.end
                if session.gathered >= self._batch_bytes:
                    yield session, end
                    given = end
        except CaptureError as error:
            failure = error
        if session and end != given:
            yield session, end
        if failure:
            raise failure

    def _write(
        self,
        tables: list[tuple[Table, pl.DataFrame]],
        counts: RowCounts,
        end: Position,
        now: datetime,
        done: PublishResult,
    ) -> None:
        """Append rows, then move the cursor behind them."""
        for table, rows in tables:
            added = self.lake.append(table, rows, run_id=self._run_id, now=now)
            done.rows[table.name] = done.rows.get(table.name, 0) + added.rows
            done.known += added.known
        done.counts.add(counts)
        write_atomically(self._cursor, str(end).encode())
        self._reached = done.position = end

    def _taken_up(self, position: Position) -> SessionRows | None:
        """The session at a position as it was there, by reading its end again."""
        found = {s.number: s for s in log.list_segments(self.log_folder)}
        if position.segment not in found:
            return None
        first, size = position.segment, position.offset
        while size < LOOK_BACK and first > found[position.segment].session and first - 1 in found:
            first -= 1
            size += found[first].path.stat().st_size
        session = SessionRows(found[position.segment].session)
        for block in log.tail(self.log_folder, Position(first, 0), position):
            session.take(block.frame)
            if session.gathered >= self._batch_bytes:
                session.skip()
        session.skip()
        return session


class PublishLoop:
    """Calls `publish` about every second.

    A failure is shown in the totals and tried again: the log goes on without.
    """

    def __init__(self, publish: Callable[[], object], totals: CaptureStats) -> None:
        self._publish, self._totals = publish, totals
        self._over = threading.Event()
        self._rounds = 0
        self._thread = threading.Thread(target=self._keep_on, name="capture-publish")
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def caught_up(self) -> None:
        """Wait until everything that is in the log now is published, or publishing has stopped.

        Raises
        ------
        CaptureError
            It fails.
        """
        enough = self._rounds + 2  # the round that goes on may have begun before
        while self._rounds < enough and not self._over.is_set():
            time.sleep(POLL_S)
        if self._totals.publish_failure:
            raise CaptureError(f"rows are not being published ({self._totals.publish_failure})")

    def _keep_on(self) -> None:
        while not self._over.wait(PUBLISH_EVERY_S):
            try:
                self._publish()
                self._totals.publish_failure = ""
            except Exception as error:  # shown now, raised by the last call at the end
                self._totals.publish_failure = f"{type(error).__name__}: {error}"
            self._rounds += 1


@contextmanager
def publishing(
    publish: Callable[[], object] | None, totals: CaptureStats, *, sync: Callable[[], object]
) -> Iterator[Callable[[], None]]:
    """Publish while the capture runs, and once more, synced, when it is over and all went well.

    Yields what waits until the log is published as it is.
    """
    if publish is None:
        yield lambda: None
        return
    running = PublishLoop(publish, totals)
    try:
        yield running.caught_up
    finally:
        running.stop()
    sync()
    publish()
    totals.publish_failure = ""
