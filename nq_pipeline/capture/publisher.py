"""Publishing: records of the capture log become rows of the lake, every second or so, exactly once.

A call reads the log from a durable cursor, appends the rows, then moves the cursor. After a crash
between the two, the next call appends the same rows again, and the lake skips rows whose key it has.
The same holds for a replay that overlaps what was published. The cursor lies beside the trades, not in
the log: if the table is moved away, the log is published again.

The publisher depends on the log alone. It may run in another process than the capture, and the lake may
be rebuilt from the log at any time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Self

from nq_pipeline.capture.log.reader import tail
from nq_pipeline.capture.log.segments import BEGINNING, Position, list_segments, log_id
from nq_pipeline.capture.rows import Origin, RowCounts, SessionRows
from nq_pipeline.capture.stats import CaptureStats
from nq_pipeline.clock import Clock, SystemClock, to_ns
from nq_pipeline.errors import CaptureError, LakeError, StoreError
from nq_pipeline.files import locked
from nq_pipeline.lake.maintenance import maintain
from nq_pipeline.lake.objects import LocalObjects, Objects
from nq_pipeline.lake.store import FENCE, Lake
from nq_pipeline.lake.tables import MBO, MBP_1, TRADES, Table
from nq_pipeline.market import sessions

if TYPE_CHECKING:
    import polars as pl

TABLES = (TRADES, MBP_1, MBO)
BATCH_BYTES = 5_000_000
"""Records of one append, nearly a row group of trades; bounds the memory when the publisher is behind."""
LOOK_BACK = 4 * 1024 * 1024
"""Bytes of a session read again when it is resumed: no run of one key is that long."""
TIDY_EVERY_S = 60.0


class LogReader:
    """Reads the log of one dataset from any position, as sessions with records to build rows of.

    The rows do not depend on where the log is cut into batches of `batch_bytes`.
    """

    def __init__(self, folder: Path, batch_bytes: int = BATCH_BYTES) -> None:
        self._folder, self._batch_bytes = folder, batch_bytes
        self._session: SessionRows | None = None
        self._reached = BEGINNING

    def forget(self) -> None:
        """Read the next batches without what was read before, because some of it was not used."""
        self._session = None

    def batches(
        self, start: Position, until: Position | None = None
    ) -> Iterator[tuple[SessionRows, Position]]:
        """Sessions with pending records, and how far the log has been read.

        Build the rows of each session before the next one is read. Raises `CaptureError` when the log cannot
        be read; what was whole before is yielded first.
        """
        if self._session is None or self._reached != start:
            self._session = self._resume(start)
        session, given, end = self._session, start, start
        failure: CaptureError | None = None
        try:
            for block in tail(self._folder, start, until):
                if session is None or block.segment.session != session.number:
                    if session and end != given:
                        yield session, end
                    session, given = SessionRows(block.segment.session), end
                    self._session = session
                session.add(block.frame)
                self._reached = end = block.end
                if session.pending_bytes >= self._batch_bytes:
                    yield session, end
                    given = end
        except CaptureError as error:
            failure = error
        if session and end != given:
            yield session, end
        if failure:
            raise failure

    def _resume(self, position: Position) -> SessionRows | None:
        """The session as it was at a position, by reading the records before it again."""
        found = {s.number: s for s in list_segments(self._folder)}
        if position.segment not in found:
            return None
        first, size = position.segment, position.offset
        while size < LOOK_BACK and first > found[position.segment].session and first - 1 in found:
            first -= 1
            size += found[first].path.stat().st_size
        session = SessionRows(found[position.segment].session)
        for block in tail(self._folder, Position(first, 0), position):
            session.add(block.frame)
            if session.pending_bytes >= self._batch_bytes:
                session.skip()
        session.skip()
        return session


@dataclass
class PublishResult:
    """What one call did."""

    position: Position  # up to where the log is published
    rows: dict[str, int] = field(default_factory=dict)  # table to new rows
    known: int = 0  # rows skipped because the lake already has them
    counts: RowCounts = field(default_factory=RowCounts)


class Publisher:
    """Publishes the log of one dataset, in its folder. Several publishers of one log take turns.

    `clock` dates the rows, and decides which trade dates are over. `run_id` marks the rows and the files'
    footers. `token` is that of the lease `capture`: rows are refused where a newer capture has published; 0
    without a lease.
    """

    def __init__(
        self,
        log_folder: Path,
        lake: Lake,
        *,
        run_id: str,
        clock: Clock | None = None,
        batch_bytes: int = BATCH_BYTES,
        token: int = 0,
    ) -> None:
        self.log_folder = log_folder
        self.lake = lake
        self._clock = clock or SystemClock()
        self._run_id = run_id
        self.token = token
        self._objects, self._cursor = _cursor_of(log_folder, lake)
        self._reader = LogReader(log_folder, batch_bytes)
        self._tidied = self._clock.monotonic()
        sessions.trade_date(self._clock.now())  # loads the calendar, which takes a while

    @property
    def position(self) -> Position:
        """Up to where the log is published."""
        try:
            return Position.parse(self._objects.get(self._cursor).decode())
        except FileNotFoundError:
            return BEGINNING
        except ValueError:
            raise CaptureError(
                f"{self._objects.uri(self._cursor)} holds no position in the log; delete it: the log is then "
                "read from its beginning, and rows that the lake has are skipped"
            ) from None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Hold back publishing in every process: the lake has exactly the rows before `position`."""
        with locked(self.lake.folder(TRADES) / f"{self.log_folder.name}.lock"):
            yield

    def publish(self, until: Position | None = None) -> PublishResult:
        """Append everything in the log, or everything before `until`, and move the cursor.

        Raises `CaptureError` when the log cannot be read (what was whole before is published), `LakeError`
        when the lake cannot be written: the next call starts again at the cursor.
        """
        try:
            return self._publish(until)
        except OSError as error:
            raise LakeError(
                f"rows cannot be published ({error.strerror or error}); free some space, or make "
                f"{self.lake.uri} writable: the capture log has them, and they are published later"
            ) from error

    def _publish(self, until: Position | None) -> PublishResult:
        with self.paused(), ThreadPoolExecutor(1, "publish") as behind:
            done = PublishResult(self.position)
            # One batch is written while the next one is built; batches never overlap.
            writing: Future[None] | None = None
            try:
                for session, end in self._reader.batches(done.position, until):
                    now = self._clock.now()
                    origin = Origin(self.lake.environment, self._run_id, to_ns(now))
                    tables, counts = session.build(origin)
                    if writing:
                        writing.result()
                    writing = behind.submit(self._write, tables, counts, end, now, done)
                if writing:
                    writing.result()
            except BaseException:
                self._reader.forget()  # it has read ahead
                raise
        if self._clock.monotonic() - self._tidied >= TIDY_EVERY_S:
            self.tidy()
        return done

    def tidy(self) -> None:
        """Merge closed trade dates, publish the catalog, remove old files; `publish` does it every minute.

        Tables that another process is merging are skipped.
        """
        self._tidied = self._clock.monotonic()
        maintain(self.lake, TABLES, now=self._clock.now(), wait=False)

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
            added = self.lake.append(table, rows, run_id=self._run_id, now=now, token=self.token)
            done.rows[table.name] = done.rows.get(table.name, 0) + added.rows
            done.known += added.known
        done.counts.add(counts)
        self._objects.put(self._cursor, str(end).encode())
        done.position = end


def newest_token(lake: Lake) -> int:
    """The newest lease token under which rows of a capture were accepted; 0 without any.

    Also 0 if a table cannot be read, which is no reason not to capture: publishing meets the same error.
    """
    try:
        return max(lake.manifest(table, [FENCE]).marks.get(FENCE, 0) for table in TABLES)
    except (LakeError, StoreError):
        return 0


def _cursor_of(log_folder: Path, lake: Lake) -> tuple[Objects, str]:
    """Where it is written how far a log is published.

    It lies with the trades. In an object store, where several hosts may have captured, it has the log's
    identity in its name.
    """
    if lake.objects is None:
        return LocalObjects(lake.root), f"{TRADES.name}/{log_folder.name}.published"
    return lake.objects, f"{TRADES.name}/_published/{log_folder.name}-{log_id(log_folder)}"


class PublishLoop:
    """Calls `publish` every `every_s` seconds in its context, and once more, synced, if that ends well.

    A failure in between is shown in the stats and tried again. Without `publish` it does nothing.
    """

    def __init__(
        self,
        publish: Callable[[], object] | None,
        stats: CaptureStats,
        *,
        sync: Callable[[], object],
        every_s: float,
    ) -> None:
        self._publish, self._stats, self._sync, self._every_s = publish, stats, sync, every_s
        self._stopped = threading.Event()
        self._rounds = 0
        self._round_done = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="capture-publish")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        if self._publish and kind is None:
            self._sync()
            self._publish()
            self._stats.publish_failure = ""

    def wait(self) -> None:
        """Wait until everything in the log now is published, or publishing has stopped.

        Raises `CaptureError` if publishing fails.
        """
        with self._round_done:
            enough = self._rounds + 2  # the current round may have begun before
            self._round_done.wait_for(lambda: self._rounds >= enough or self._stopped.is_set())
        if self._stats.publish_failure:
            raise CaptureError(f"rows are not being published ({self._stats.publish_failure})")

    def _run(self) -> None:
        while not self._stopped.wait(self._every_s):
            try:
                if self._publish:
                    self._publish()
                self._stats.publish_failure = ""
            except Exception as error:  # shown now; the last call, at the end, raises it
                self._stats.publish_failure = f"{type(error).__name__}: {error}"
            with self._round_done:
                self._rounds += 1
                self._round_done.notify_all()
        with self._round_done:
            self._round_done.notify_all()
