"""One session of the gateway, from its subscriptions to its end.

A subscription is a position on the tape and a set of instruments. Replay and live streaming work
alike: every round sends what was published since the last one, in pieces of the tape's `step_ns` while
far behind. A slow `warn` reader therefore loses nothing: its position only falls behind. Skipping
is a jump to the present.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from time import monotonic

import numpy as np
import polars as pl
import zstandard

from nq_pipeline.clock import NS_PER_S, from_ns, to_ns
from nq_pipeline.dbn.layout import Array
from nq_pipeline.market import sessions
from nq_pipeline.sandbox.gateway import fault_script, messages
from nq_pipeline.sandbox.gateway.feed import LiveFeed
from nq_pipeline.sandbox.gateway.messages import (
    Credentials,
    EncodedBlock,
    GatewayRefusal,
    SubscriptionLine,
    encode_records,
)
from nq_pipeline.sandbox.synthetic.hashed_random import mix
from nq_pipeline.sandbox.synthetic.instruments import ALL_SYMBOLS, select_instruments, universe
from nq_pipeline.sandbox.synthetic.market import MINUTE_NS
from nq_pipeline.sandbox.synthetic.price_path import DAY_NS
from nq_pipeline.sandbox.synthetic.records import encode_text
from nq_pipeline.sandbox.synthetic.tape import INTERVALS_NS, filter_instruments, publication_times

SKIPPABLE = frozenset({"mbp-1", "bbo-1s", "bbo-1m"})
"""Schemas whose records are dropped for a slow reader that did not ask to be warned."""
WEEKLY = frozenset({"definition", "mbo"})
"""Schemas that replay from the beginning of the week, whatever the window."""
WRITE_BYTES = 2**18
DRIP_BYTES, DRIP_PAUSE_S = 7, 0.002
GARBAGE_BYTES = 512


class SessionEnded(Exception):
    """The session is over."""


@dataclass
class ServedSubscription:
    """A schema, its instruments, and the position up to which they were sent.

    An instrument in two subscriptions to one schema is sent for the first of them only.
    """

    number: str
    schema: str
    stype_in: str
    start: int | None
    position: int
    replaying: bool
    snapshot: bool = False
    symbols: list[str] = field(default_factory=list)
    complete: bool = False
    day: date | None = None
    ids: Array = field(default_factory=lambda: np.empty(0, np.int64))
    has_all_instruments: bool = False


class ServedSession:
    """Serves one authenticated connection until it ends; see `run`."""

    def __init__(
        self,
        feed: LiveFeed,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        credentials: Credentials,
        session_id: int,
    ) -> None:
        self.feed, self.reader, self.writer = feed, reader, writer
        self.credentials, self.session_id = credentials, session_id
        self.subscriptions: list[ServedSubscription] = []
        self.records = 0
        self._requests: list[SubscriptionLine | GatewayRefusal] = []
        self._compressor = zstandard.ZstdCompressor(1).compressobj() if credentials.zstd else None
        self._written = self._started = monotonic()
        self._dripping = False
        self._to_drop, self._after_drop = 0, b""

    async def run(self) -> None:
        """Read the subscriptions and stream until either side ends."""
        while (line := await self._read_line()).strip() not in (b"start_session=0", b"start_session"):
            if not line:
                return
            self._queue_request(line)
        self.feed.streaming += 1
        tasks = [asyncio.create_task(self._read_requests()), asyncio.create_task(self._stream())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.feed.streaming -= 1
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, (SessionEnded, ConnectionError)):
                raise result

    async def _stream(self) -> None:
        self._started = monotonic()
        if self.feed.script.claim_next("no_metadata", self.session_id):
            await asyncio.Event().wait()
        await self.feed.tick()
        start = min([self.feed.published, *(self._start_of(request) for request in self._requests)])
        ts_out = self.credentials.ts_out
        await self._write(messages.encode_metadata(self.credentials.dataset, start, ts_out=ts_out))
        if self.feed.streaming > self.feed.limits.sessions:
            await self._fail(3, fault_script.ERRORS[3])
        running = False
        while True:
            await self._answer_requests(running)
            running = True
            await self._send_round()
            if not any(s.replaying for s in self.subscriptions):
                await self.feed.tick()
            if monotonic() - self._written >= self.credentials.heartbeat_s:
                await self._send_system(messages.HEARTBEAT, "Heartbeat")

    # Requests

    async def _read_line(self) -> bytes:
        """The next line; empty when the client has closed or its line exceeds the limit."""
        try:
            return await self.reader.readline()
        except ValueError:
            return b""

    def _queue_request(self, line: bytes) -> None:
        """Queue a request, or its refusal, until it can be answered in the stream."""
        try:
            self._requests.append(messages.parse_subscription(line))
        except GatewayRefusal as refused:
            self._requests.append(refused)

    async def _read_requests(self) -> None:
        """Queue later subscriptions until the client closes."""
        while line := await self._read_line():
            if not line.startswith(b"start_session"):
                self._queue_request(line)

    def _start_of(self, request: SubscriptionLine | GatewayRefusal) -> int:
        """The position at which a request begins."""
        now = self.feed.published
        if isinstance(request, GatewayRefusal) or request.start is None:
            return now
        return min(request.start or self._earliest(request.schema), now)

    def _earliest(self, schema: str) -> int:
        """The earliest instant at which a replay may start."""
        now = self.feed.published
        if schema not in WEEKLY:
            return now - int(self.feed.limits.replay_window_s * NS_PER_S)
        day = sessions.trade_date(from_ns(now))
        return to_ns(sessions.sessions(day - timedelta(days=day.weekday()), day)[0].open)

    async def _answer_requests(self, running: bool) -> None:
        """Acknowledge or refuse the requests queued since the last round, in order."""
        while self._requests:
            request = self._requests.pop(0)
            if isinstance(request, GatewayRefusal):
                await self._fail(request.code, str(request))
                continue
            current = self.subscriptions[-1] if self.subscriptions else None
            if current is None or current.complete or current.number != request.number:
                # A start on a running session is ignored, as the vendor does.
                current = self._new_subscription(replace(request, start=None) if running else request)
                try:
                    self._check(current)
                except GatewayRefusal as refused:
                    await self._fail(refused.code, str(refused))
                self.subscriptions.append(current)
            current.symbols += request.symbols
            current.complete = request.is_last
            if current.complete:
                text = f"Subscription request {current.number} for {current.schema} data succeeded"
                await self._send_system(messages.SUBSCRIPTION_ACK, text)
                await self._resolve(current, sessions.trade_date(from_ns(current.position)), first=True)
                if current.snapshot:
                    orders = await asyncio.to_thread(self.feed.tape.resting_orders, current.position)
                    await self._send_records(filter_instruments(orders, current.ids))

    def _new_subscription(self, request: SubscriptionLine) -> ServedSubscription:
        return ServedSubscription(
            number=str(len(self.subscriptions)) if request.number is None else request.number,
            schema=request.schema,
            stype_in=request.stype_in,
            start=request.start,
            position=self._start_of(request),
            replaying=request.start is not None,
            snapshot=request.snapshot,
        )

    def _check(self, new: ServedSubscription) -> None:
        """Refuse what the plan or the tape does not have."""
        if new.schema in self.feed.not_entitled:
            raise GatewayRefusal(f"Not authorized for {new.schema} schema")
        if new.schema not in self.feed.tape.schemas:
            raise GatewayRefusal(f"Schema {new.schema} is not available")
        if new.replaying and new.position < (earliest := self._earliest(new.schema)):
            text = from_ns(earliest).replace(microsecond=0).isoformat().replace("+00:00", "Z")
            raise GatewayRefusal(
                f"Invalid start time. Must be {text} or later, or 0", self.feed.limits.too_old_code
            )

    async def _resolve(self, subscription: ServedSubscription, day: date, *, first: bool = False) -> None:
        """Add the instruments of a trade date, with a mapping for each new one and an error for each miss."""
        instruments = await asyncio.to_thread(universe, self.feed.tape.market, day)
        found = select_instruments(
            instruments, subscription.symbols, subscription.stype_in, subscription.position
        )
        if subscription.stype_in == "continuous" and not first:
            found = found.clear()  # a continuous symbol keeps its meaning within a session
        if first:
            names = pl.Series([s for s in subscription.symbols if s != ALL_SYMBOLS], dtype=pl.String)
            missing = names.filter(~names.is_in(found["stype_in_symbol"].implode()))
            for symbol in missing:
                text, last = f"{fault_script.ERRORS[4]} '{symbol}'", symbol == missing[-1]
                record = messages.error_record(4, text, self.feed.now_ns(), is_last=last)
                await self._send_records(record)
        taken = [s.ids for s in self.subscriptions if s.schema == subscription.schema]
        new = found.filter(~pl.col("instrument_id").is_in(np.concatenate(taken).tolist()))
        ids = new["instrument_id"].to_numpy()
        await self._send_records(
            messages.mapping_records(
                subscription.stype_in,
                encode_text(new["stype_in_symbol"]),
                ids,
                encode_text(new["raw_symbol"]),
                subscription.position,
                to_ns(sessions.session(day).close) // DAY_NS * DAY_NS + DAY_NS,
            )
        )
        subscription.ids = np.union1d(subscription.ids, ids)
        everything = instruments["instrument_id"].to_numpy()
        subscription.has_all_instruments = bool(np.isin(everything, subscription.ids).all())
        subscription.day = day

    # Data

    async def _send_round(self) -> None:
        """Send what was published since the last round, or the next piece of a replay."""
        present, step = self.feed.published, self.feed.tape.step_ns
        behind = [s for s in self.subscriptions if s.complete and s.position < present]
        begin = min((s.position for s in behind), default=present)
        end = min(begin - begin % step + step, present)
        due = [s for s in behind if s.position < end]
        for subscription in due:
            day = sessions.trade_date(from_ns(end - 1))
            if day != subscription.day:
                await self._resolve(subscription, day)
        replaying = any(s.replaying for s in due)
        waited = await self._send_piece(await asyncio.to_thread(self._collect, due, end), replaying)
        for subscription in due:
            subscription.position = end
            if subscription.replaying and end == present:
                subscription.replaying = False
                text = f"Finished {subscription.schema} replay"
                await self._send_system(messages.REPLAY_COMPLETED, text)
        if not replaying and waited >= self.feed.limits.slow_after_s:
            await self._handle_slow_reader(waited)

    def _collect(self, due: list[ServedSubscription], end: int) -> EncodedBlock:
        """The records of all subscriptions up to an instant, in order of publication."""
        arrays, times = [], []
        for subscription in due:
            schema, position = subscription.schema, subscription.position
            array = self.feed.tape.records(schema, position, end)
            if not subscription.has_all_instruments:
                array = filter_instruments(array, subscription.ids)
            interval = INTERVALS_NS.get(schema, 0)
            # A replay selects by ts_event (except bbo), but publication follows ts_recv or the end of a
            # bar, so that the first few records may be too early.
            start = subscription.start or 0
            near_start = position < start + interval + 2 * MINUTE_NS
            if near_start and not schema.startswith("bbo"):
                array = array[array["ts_event"] >= np.uint64(start)]
            arrays.append(array)
            times.append(publication_times(schema, array))
            if interval and not subscription.replaying:
                ends = np.arange(-(-position // interval) * interval, end, interval, dtype=np.uint64)
                arrays.append(messages.interval_end_records(schema, ends))
                times.append(ends)
        return encode_records(*arrays, times=times, ts_out=self._ts_out())

    async def _handle_slow_reader(self, waited: float) -> None:
        """Warn a reader that blocked the gateway, or skip to the present where its schemas allow it."""
        skipped = {s.schema for s in self.subscriptions} & SKIPPABLE
        if self.credentials.slow_reader == "warn":
            skipped = set()
        for subscription in self.subscriptions:
            if subscription.schema in skipped:
                subscription.position = self.feed.published
        now = self.feed.now_ns()
        for schema in sorted(skipped):
            text = f"Slow client detected for {schema}. Skipped records"
            await self._send_records(messages.error_record(7, text, now))
        if any(s.schema not in skipped for s in self.subscriptions):
            text = f"Warning: slow reading, the gateway waited {waited:.1f} seconds"
            await self._send_system(messages.SLOW_READER_WARNING, text)

    async def _send_piece(self, piece: EncodedBlock, replaying: bool) -> float:
        """Send records and inject the faults that are due; returns the seconds the client blocked."""
        kinds = fault_script.STREAM | {"omit"} if replaying else fault_script.STREAM
        waited, first = 0.0, 0
        while True:
            dropped = min(self._to_drop, len(piece) - first)
            if dropped:
                piece, self._to_drop = piece.drop(first, first + dropped), self._to_drop - dropped
            if self._after_drop and not self._to_drop:
                data, self._after_drop = self._after_drop, b""
                await self._write(data)
            fault = self.feed.script.next_due(kinds)
            if fault is None or monotonic() - self._started < fault.after_s:
                break
            at = first + max(fault.after_records - self.records, 0)
            if at + (fault.kind in fault_script.NEED_A_RECORD) > len(piece):
                break
            waited += await self._send_data(piece, first, at)
            first = at
            if self.feed.script.claim(fault, self.session_id, self.records):
                await self._inject(fault, piece, first)
        return waited + await self._send_data(piece, first, len(piece))

    async def _send_data(self, piece: EncodedBlock, first: int, last: int) -> float:
        if first == last:
            return 0.0
        self.records += last - first
        return await self._write(piece.slice(first, last))

    # Faults

    async def _inject(self, fault: fault_script.Fault, piece: EncodedBlock, first: int) -> None:
        """Let a fault happen before record `first` of a piece."""
        if fault.kind == "fin":
            await self._finish()
        elif fault.kind == "rst":
            self.writer.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            self.writer.transport.abort()
            raise SessionEnded
        elif fault.kind == "silence":
            await asyncio.Event().wait()
        elif fault.kind == "cut":
            record = piece.slice(first, first + 1)
            await self._write(record[: len(record) // 2])
            await self._finish()
        elif fault.kind == "garbage":
            garbage = mix(self.session_id, self.records, np.arange(GARBAGE_BYTES // 8))
            await self._write(garbage.tobytes(), raw=True)
        elif fault.kind == "drip":
            self._dripping = True
        elif fault.kind == "duplicate":
            await self._write(piece.slice(first, min(first + fault.records, len(piece))))
        elif fault.kind == "omit":
            self._to_drop += fault.records
        elif fault.code == 7:
            self._to_drop += fault.records
            self._after_drop += self._encode_error(fault)
        else:
            await self._write(self._encode_error(fault))
            if fault.code not in fault_script.NOT_FATAL:
                await self._finish()

    def _encode_error(self, fault: fault_script.Fault) -> bytes:
        text = fault.text or fault_script.ERRORS[fault.code]
        return self._encode(messages.error_record(fault.code, text, self.feed.now_ns()))

    async def _fail(self, code: int, text: str) -> None:
        """Send an error and end the session."""
        await self._send_records(messages.error_record(code, text, self.feed.now_ns()))
        await self._finish()

    async def _finish(self) -> None:
        """Close cleanly: everything written arrives, then the end of the stream."""
        with suppress(OSError):  # the client has gone already
            self.writer.write_eof()
        await self.writer.drain()
        while not self.reader.at_eof():
            await self.feed.tick()
            if monotonic() - self._written >= self.feed.limits.linger_s:
                break
        raise SessionEnded

    # Bytes

    def _ts_out(self) -> int | None:
        return self.feed.now_ns() if self.credentials.ts_out else None

    def _encode(self, array: Array) -> bytes:
        return encode_records(array, ts_out=self._ts_out()).data

    async def _send_system(self, code: int, text: str) -> None:
        await self._send_records(messages.system_record(code, text, self.feed.now_ns()))

    async def _send_records(self, array: Array) -> None:
        """Send control records or a snapshot."""
        if len(array):
            await self._write(self._encode(array))

    async def _write(self, data: bytes, *, raw: bool = False) -> float:
        """Write to the client; returns the seconds until it had accepted nearly all of it."""
        begin = monotonic()
        if self._compressor and not raw:
            data = self._compressor.compress(data) + self._compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
        step = DRIP_BYTES if self._dripping else WRITE_BYTES
        for first in range(0, len(data), step):
            self.writer.write(data[first : first + step])
            await self.writer.drain()
            if self._dripping:
                await asyncio.sleep(DRIP_PAUSE_S)
        self._written = monotonic()
        return 0.0 if self._dripping else self._written - begin
