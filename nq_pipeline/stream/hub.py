"""One reader of the capture log and the lake for any number of subscribers.

The hub reads on a thread of its own and serializes each batch once. A subscriber has a bounded queue: one
that does not empty it is dropped with a message, and returns with its cursor. Neither the capture nor another
subscriber waits for it.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Self

import polars as pl

from nq_pipeline.capture.log.locks import lock_pid
from nq_pipeline.capture.log.segments import list_segments
from nq_pipeline.clock import Clock, to_ns
from nq_pipeline.errors import BadCursor, CaptureError, LakeError, StoreError, TooSlow
from nq_pipeline.stream.batch import TYPES, Batch, BatchType, Cursor, from_json
from nq_pipeline.stream.events import NAME, EventLog
from nq_pipeline.stream.log_tail import LogTail, end_of_log
from nq_pipeline.workspace import Workspace

POLL_S = 0.05
"""How often the log is looked at."""
LIST_S = 0.2
"""How often a new segment is looked for."""
EVENTS_S, REMOTE_EVENTS_S = 0.5, 5.0
"""How often the lake is looked at, in the folder and in an object store, where each look is a request."""
STATUS_S = 1.0
"""How often subscribers get a `status`."""
PATIENCE_S = 3.0
"""How long this hub may be behind another one."""
QUEUE_BYTES = 16_000_000
"""Most bytes of messages that wait for one subscriber."""
_UNREADABLE = (LakeError, StoreError, OSError, sqlite3.Error, pl.exceptions.PolarsError)
"""Errors of the lake and of the numbers of its events."""


class Hub:
    """The stream of one data folder and dataset, from now on or from a cursor.

    Parameters
    ----------
    clock
        The clock of the feed, for the lag.
    queue_bytes
        Most bytes of messages that wait for one subscriber.

    Attributes
    ----------
    head
        Everything up to here was sent.
    failure
        Why the log or the lake cannot be read now; empty if they can.
    sent
        Rows sent since the hub began, by type.
    lag_ms
        From Databento's receipt of the newest record to the hub, milliseconds; None without records.
    """

    head: Cursor

    def __init__(
        self, workspace: Workspace, dataset: str, *, clock: Clock, queue_bytes: int = QUEUE_BYTES
    ) -> None:
        self._workspace, self._folder, self._clock = workspace, workspace.capture / dataset, clock
        self._queue_bytes = queue_bytes
        self._events = EventLog(workspace.root / NAME)
        self._growth = _Growth(self._folder)
        self._subscribers: set[_Queue] = set()
        self._events_every_s = REMOTE_EVENTS_S if workspace.remote else EVENTS_S
        self._events_due = 0.0
        self._events_failure = ""
        self.failure = ""
        self.sent: Counter[BatchType] = Counter()
        self.lag_ms: float | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Read and send while the context lasts."""
        with ThreadPoolExecutor(1, thread_name_prefix="stream") as thread:
            await asyncio.get_running_loop().run_in_executor(thread, self._begin)
            task = asyncio.create_task(self._run(thread))
            try:
                yield self
            finally:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def subscribe(
        self, cursor: Cursor | None = None, types: Collection[BatchType] = TYPES
    ) -> AsyncGenerator[Batch]:
        """Batches after a cursor, by default from now on; a `status` is first, and one comes every second.

        Raises
        ------
        BadCursor
            The cursor belongs to another stream, or the log no longer has what follows it.
        TooSlow
            The subscriber left too many bytes in its queue. What was in it has been yielded.
        """
        reached = cursor or self.head
        await self._reach(reached)
        while reached != (goal := self.head):
            missed = self._missed(reached, goal)
            while batch := await asyncio.to_thread(next, missed, None):
                if batch.type in types:
                    yield batch
            reached = goal
        queue = _Queue(self._queue_bytes)  # nothing awaits since the head was read, so nothing is between
        self._subscribers.add(queue)
        try:
            if "status" in types:
                yield self.status()
            while True:
                batch = await queue.get()
                if batch.type in types:
                    yield batch
        finally:
            self._subscribers.discard(queue)

    async def _reach(self, cursor: Cursor) -> None:
        """Wait until the head is not before a cursor, which another server of the stream may have sent."""
        give_up = monotonic() + PATIENCE_S
        while cursor.stream != self.head.stream or not cursor <= self.head:
            if cursor.stream != self.head.stream or monotonic() > give_up:
                raise BadCursor("the cursor belongs to another stream; subscribe without one")
            await asyncio.sleep(POLL_S)

    @property
    def subscribers(self) -> int:
        """How many follow the stream now."""
        return len(self._subscribers)

    def status(self) -> Batch:
        """What the stream is doing now."""
        row = {
            "environment": self._workspace.root.name,
            "is_capturing": lock_pid(self._workspace.capture) is not None,
            "lag_ms": self.lag_ms,
            "subscribers": self.subscribers,
            "failure": self.failure or None,
        }
        return Batch("status", self.head, pl.DataFrame([row]))

    # ── reading, on the thread ──────────────────────────────────────────────────────────────────

    def _begin(self) -> None:
        with suppress(*_UNREADABLE):  # `_read` meets the same error and shows it
            self._events.collect(self._workspace.lake)
        end = end_of_log(self._folder)
        self.head = Cursor(self._events.id, self._events.newest, end, end)
        self._tail = LogTail(self._folder, end)

    def _read(self, send: Callable[[Batch], object]) -> Cursor:
        """Send what is new, each batch as soon as it is read; returns the cursor after it."""
        reached = self.head
        if monotonic() >= self._events_due:
            try:
                self._events.collect(self._workspace.lake)
                for batch in self._new_events(reached, self._events.newest):
                    send(batch)
                    reached = batch.cursor or reached
                self._events_failure = ""
            except _UNREADABLE as error:  # trades still come
                self._events_failure = str(error)
            self._events_due = monotonic() + self._events_every_s
        if self._growth.is_new():
            for kind, end, rows in self._tail.read():
                reached = reached.move(**{kind: end})
                send(Batch(kind, reached, rows))
                newest = rows.select(pl.col("ts_recv").dt.epoch("ns").max()).item()
                self.lag_ms = newest and (to_ns(self._clock.now()) - newest) / 1e6
        return reached.move(trades=self._tail.position, quotes=self._tail.position)

    def _missed(self, cursor: Cursor, goal: Cursor) -> Iterator[Batch]:
        """What was sent between two cursors."""
        start = min(cursor.trades, cursor.quotes)
        had = {"trades": cursor.trades, "quotes": cursor.quotes}
        reached = cursor
        ends = sorted({cursor.trades, cursor.quotes, goal.trades, goal.quotes} - {start})
        tail = LogTail(self._folder, start)
        try:
            for until in ends:
                for kind, end, rows in tail.read(until):
                    if end > had[kind] and end <= getattr(goal, kind):
                        reached = reached.move(**{kind: end})
                        yield Batch(kind, reached, rows)
        except CaptureError as error:
            raise BadCursor(f"the capture log no longer has what follows the cursor ({error})") from None
        yield from self._new_events(goal.move(event=cursor.event), goal.event)

    def _new_events(self, cursor: Cursor, until: int) -> Iterator[Batch]:
        for kind, number, rows in self._events.read(cursor.event, until):
            yield from_json(kind, cursor.move(event=number), rows)

    # ── sending, on the event loop ──────────────────────────────────────────────────────────────

    async def _run(self, thread: ThreadPoolExecutor) -> None:
        loop, status_due = asyncio.get_running_loop(), 0.0

        def send(batch: Batch) -> None:
            _ = batch.text  # serialized here, not on the event loop
            loop.call_soon_threadsafe(self._send, batch)

        while True:
            try:
                reached = await loop.run_in_executor(thread, self._read, send)
                self.head, self.failure = reached, self._events_failure
            except Exception as error:  # whatever it is, subscribers hear of it, and it is tried again
                self.failure = str(error) or repr(error)
                self._growth = _Growth(self._folder)  # so that the same bytes are read again
                await asyncio.sleep(STATUS_S)
            if monotonic() >= status_due:
                status_due = monotonic() + STATUS_S
                self._send(self.status())
            await asyncio.sleep(POLL_S)

    def _send(self, batch: Batch) -> None:
        self.head = batch.cursor or self.head
        self.sent[batch.type] += batch.frame.height
        for queue in self._subscribers:
            queue.put(batch)


class _Growth:
    """Notices that a log has grown."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._newest: Path | None = None
        self._size, self._list_due = -1, 0.0

    def is_new(self) -> bool:
        """Whether there are bytes or segments that were not there at the last call."""
        if monotonic() >= self._list_due:
            found = list_segments(self._folder)
            newest = found[-1].path if found else None
            if newest != self._newest:
                self._newest, self._size = newest, -1
            self._list_due = monotonic() + LIST_S
        before, self._size = self._size, self._newest.stat().st_size if self._newest else -1
        return self._size != before


class _Queue:
    """The batches that wait for one subscriber; one producer and one consumer on the same event loop."""

    def __init__(self, most_bytes: int) -> None:
        self._batches: deque[Batch] = deque()
        self._most, self._bytes = most_bytes, 0
        self._is_full = False
        self._changed = asyncio.Event()

    def put(self, batch: Batch) -> None:
        self._is_full = self._is_full or self._bytes + len(batch.text) > self._most
        if not self._is_full:
            self._batches.append(batch)
            self._bytes += len(batch.text)
        self._changed.set()

    async def get(self) -> Batch:
        while not self._batches:
            if self._is_full:
                raise TooSlow(
                    "the messages come faster than they are read; subscribe again with the last cursor"
                )
            self._changed.clear()
            await self._changed.wait()
        batch = self._batches.popleft()
        self._bytes -= len(batch.text)
        return batch
