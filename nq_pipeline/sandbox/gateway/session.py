"""One session of the gateway, from its subscriptions to its end.

A subscription is a place on the tape and a set of instruments. Replay and live streaming are the
same movement: every round takes what was published since the last one, in hourly pieces while far
behind. So a `warn` reader that is slow loses nothing (its place just stays behind), and skipping
is a jump to the present.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from time import monotonic
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import zstandard

from nq_pipeline.clock import NS_PER_S, from_ns, to_ns
from nq_pipeline.market import sessions
from nq_pipeline.sandbox.gateway import messages, script
from nq_pipeline.sandbox.gateway.messages import (
    Credentials,
    EncodedBlock,
    GatewayRefusal,
    Request,
    block,
)
from nq_pipeline.sandbox.synthetic.globex import (
    DAY_NS,
    MINUTE_NS,
    Array,
    texts,
    universe,
)
from nq_pipeline.sandbox.synthetic.hashed_random import mix
from nq_pipeline.sandbox.synthetic.symbols import ALL, meant
from nq_pipeline.sandbox.synthetic.tape import INTERVALS_NS, of_instruments, published

if TYPE_CHECKING:
    from nq_pipeline.sandbox.gateway.gateway import Gateway

SKIPPABLE = frozenset({"mbp-1", "bbo-1s", "bbo-1m"})
"""Schemas of which records are dropped for a slow reader, unless it asked to be warned."""
WEEKLY = frozenset({"definition", "mbo"})
"""Schemas that replay from the beginning of the week, whatever the window."""
WRITE_BYTES = 2**18
DRIP_BYTES, DRIP_PAUSE_S = 7, 0.002
GARBAGE_BYTES = 512


class Ended(Exception):
    """The session is over."""


@dataclass
class ServedSubscription:
    """A schema, the instruments subscribed to, and how far they were sent.

    An instrument of two subscriptions to one schema is sent for the first of them only.
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
    everything: bool = False


class ServedSession:
    """Serves one authenticated connection until it ends; see `run`."""

    def __init__(
        self,
        gateway: Gateway,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        asked: Credentials,
        session_id: int,
    ) -> None:
        self.gateway, self.reader, self.writer = gateway, reader, writer
        self.asked, self.session_id = asked, session_id
        self.subscriptions: list[ServedSubscription] = []
        self.records = 0
        self._requests: list[Request | GatewayRefusal] = []
        self._compressor = zstandard.ZstdCompressor(1).compressobj() if asked.zstd else None
        self._written = self._started = monotonic()
        self._dripping = False
        self._to_drop, self._after_drop = 0, b""

    async def run(self) -> None:
        """Read the subscriptions, stream until either side ends."""
        while (line := await self._line()).strip() not in (b"start_session=0", b"start_session"):
            if not line:
                return
            self._hear(line)
        self.gateway.streaming += 1
        tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._stream())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.gateway.streaming -= 1
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, (Ended, ConnectionError)):
                raise result

    async def _line(self) -> bytes:
        """The next line; empty when the client has closed, or sends a line beyond all measure."""
        try:
            return await self.reader.readline()
        except ValueError:
            return b""

    def _hear(self, line: bytes) -> None:
        """Keep a request, or what is wrong with it, until it can be answered in the stream."""
        try:
            self._requests.append(messages.request(line))
        except GatewayRefusal as refused:
            self._requests.append(refused)

    async def _listen(self) -> None:
        """Later subscriptions, until the client closes."""
        while line := await self._line():
            if not line.startswith(b"start_session"):
                self._hear(line)

    async def _stream(self) -> None:
        self._started = monotonic()
        if self._strikes("no_metadata"):
            await asyncio.Event().wait()
        await self.gateway.tick()
        now = self.gateway.published
        begin = min([now, *(self._begin(asked) for asked in self._requests)])
        await self._write(messages.metadata(self.asked.dataset, begin, ts_out=self.asked.ts_out))
        if self.gateway.streaming > self.gateway.limits.sessions:
            await self._fail(3, script.ERRORS[3])
        later = False
        while True:
            await self._answer(later)
            later = True
            await self._round()
            if not any(s.replaying for s in self.subscriptions):
                await self.gateway.tick()
            if monotonic() - self._written >= self.asked.heartbeat_s:
                await self._say(messages.system(messages.HEARTBEAT, "Heartbeat", self.gateway.now_ns()))

    # Requests

    def _begin(self, asked: Request | GatewayRefusal) -> int:
        """Where on the tape a request begins."""
        now = self.gateway.published
        if isinstance(asked, GatewayRefusal) or asked.start is None:
            return now
        return min(asked.start or self._floor(asked.schema), now)

    def _floor(self, schema: str) -> int:
        """The earliest instant a replay may start at."""
        now = self.gateway.published
        if schema not in WEEKLY:
            return now - int(self.gateway.limits.replay_window_s * NS_PER_S)
        day = sessions.trade_date(from_ns(now))
        return to_ns(sessions.sessions(day - timedelta(days=day.weekday()), day)[0].open)

    async def _answer(self, later: bool) -> None:
        """Acknowledge or refuse what was asked for since the last round, in order."""
        while self._requests:
            asked = self._requests.pop(0)
            if isinstance(asked, GatewayRefusal):
                await self._fail(asked.code, str(asked))
                continue
            whole = self.subscriptions[-1] if self.subscriptions else None
            if whole is None or whole.complete or whole.number != asked.number:
                # A start on a running session is ignored, as the vendor does.
                whole = self._subscription(replace(asked, start=None) if later else asked)
                try:
                    self._check(whole)
                except GatewayRefusal as refused:
                    await self._fail(refused.code, str(refused))
                self.subscriptions.append(whole)
            whole.symbols += asked.symbols
            whole.complete = asked.is_last
            if whole.complete:
                text = f"Subscription request {whole.number} for {whole.schema} data succeeded"
                await self._say(messages.system(messages.SUBSCRIPTION_ACK, text, self.gateway.now_ns()))
                await self._resolve(whole, sessions.trade_date(from_ns(whole.position)), first=True)
                if whole.snapshot:
                    books = await asyncio.to_thread(self.gateway.tape.resting, whole.position)
                    await self._say(of_instruments(books, whole.ids))

    def _subscription(self, asked: Request) -> ServedSubscription:
        return ServedSubscription(
            number=str(len(self.subscriptions)) if asked.number is None else asked.number,
            schema=asked.schema,
            stype_in=asked.stype_in,
            start=asked.start,
            position=self._begin(asked),
            replaying=asked.start is not None,
            snapshot=asked.snapshot,
        )

    def _check(self, new: ServedSubscription) -> None:
        """Refuse what the plan or the tape does not have."""
        if new.schema in self.gateway.not_entitled:
            raise GatewayRefusal(f"Not authorized for {new.schema} schema")
        if new.schema not in self.gateway.tape.schemas:
            raise GatewayRefusal(f"Schema {new.schema} is not available")
        if new.replaying and new.position < (floor := self._floor(new.schema)):
            earliest = from_ns(floor).replace(microsecond=0).isoformat().replace("+00:00", "Z")
            raise GatewayRefusal(
                f"Invalid start time. Must be {earliest} or later, or 0", self.gateway.limits.too_old_code
            )

    async def _resolve(self, whole: ServedSubscription, day: date, *, first: bool = False) -> None:
        """Add the instruments of a trade date, with a mapping for each new one and an error for each miss."""
        everything = await asyncio.to_thread(universe, self.gateway.tape.market, day)
        found = meant(everything, whole.symbols, whole.stype_in, whole.position)
        if whole.stype_in == "continuous" and not first:
            found = found.clear()  # what a continuous symbol means does not change within a session
        asked = pl.Series([symbol for symbol in whole.symbols if symbol != ALL], dtype=pl.String)
        missing = asked.filter(~asked.is_in(found["asked"].implode())) if first else asked[:0]
        for symbol in missing:
            text, last = f"{script.ERRORS[4]} '{symbol}'", symbol == missing[-1]
            await self._say(messages.error(4, text, self.gateway.now_ns(), is_last=last))
        taken = [s.ids for s in self.subscriptions if s.schema == whole.schema]
        new = found.filter(~pl.col("instrument_id").is_in(np.concatenate(taken).tolist()))
        now, until = whole.position, to_ns(sessions.session(day).close) // DAY_NS * DAY_NS + DAY_NS
        await self._say(
            messages.mappings(
                whole.stype_in,
                texts(new["asked"]),
                new["instrument_id"].to_numpy(),
                texts(new["raw_symbol"]),
                now,
                until,
            )
        )
        whole.ids = np.union1d(whole.ids, new["instrument_id"].to_numpy())
        whole.everything = bool(np.isin(everything["instrument_id"].to_numpy(), whole.ids).all())
        whole.day = day

    # Data

    async def _round(self) -> None:
        """Send what was published since the last round, or the next piece of a replay."""
        present, step = self.gateway.published, self.gateway.tape.step_ns
        behind = [s for s in self.subscriptions if s.complete and s.position < present]
        begin = min((s.position for s in behind), default=present)
        end = min(begin - begin % step + step, present)
        due = [s for s in behind if s.position < end]
        for whole in due:
            day = sessions.trade_date(from_ns(end - 1))
            if day != whole.day:
                await self._resolve(whole, day)
        replaying = any(s.replaying for s in due)
        waited = await self._send(await asyncio.to_thread(self._collect, due, end), replaying)
        for whole in due:
            whole.position = end
            if whole.replaying and end == present:
                whole.replaying = False
                text = f"Finished {whole.schema} replay"
                await self._say(messages.system(messages.REPLAY_COMPLETED, text, self.gateway.now_ns()))
        if not replaying and waited >= self.gateway.limits.slow_after_s:
            await self._slow(waited)

    def _collect(self, due: list[ServedSubscription], end: int) -> EncodedBlock:
        """The records of all subscriptions up to an instant, in the order of their publication."""
        arrays, times = [], []
        for whole in due:
            array = self.gateway.tape.records(whole.schema, whole.position, end)
            if not whole.everything:
                array = of_instruments(array, whole.ids)
            interval = INTERVALS_NS.get(whole.schema, 0)
            # Replay goes by ts_event (but for bbo), publication by ts_recv or the end of a bar: the
            # first few may be too early.
            start = whole.start or 0
            early = whole.position < start + interval + 2 * MINUTE_NS
            if early and not whole.schema.startswith("bbo"):
                array = array[array["ts_event"] >= np.uint64(start)]
            arrays.append(array)
            times.append(published(whole.schema, array))
            if interval and not whole.replaying:
                ends = np.arange(-(-whole.position // interval) * interval, end, interval, dtype=np.uint64)
                arrays.append(messages.ends_of_intervals(whole.schema, ends))
                times.append(ends)
        return block(*arrays, times=times, ts_out=self._ts_out())

    async def _slow(self, waited: float) -> None:
        """Warn a reader that kept us waiting, or bring it up to the present at its own loss."""
        now = self.gateway.now_ns()
        skipped = {s.schema for s in self.subscriptions} & SKIPPABLE
        if self.asked.slow_reader == "warn":
            skipped = set()
        for whole in self.subscriptions:
            if whole.schema in skipped:
                whole.position = self.gateway.published
        for schema in sorted(skipped):
            await self._say(messages.error(7, f"Slow client detected for {schema}. Skipped records", now))
        if any(s.schema not in skipped for s in self.subscriptions):
            text = f"Warning: slow reading, the gateway waited {waited:.1f} seconds"
            await self._say(messages.system(messages.SLOW_READER_WARNING, text, now))

    async def _send(self, piece: EncodedBlock, replaying: bool) -> float:
        """Send records, and on the way whatever the script has due; seconds the client kept us waiting."""
        kinds = script.STREAM | {"omit"} if replaying else script.STREAM
        waited, first = 0.0, 0
        while True:
            gone = min(self._to_drop, len(piece) - first)
            if gone:
                piece, self._to_drop = piece.without(first, first + gone), self._to_drop - gone
            if self._after_drop and not self._to_drop:
                said, self._after_drop = self._after_drop, b""
                await self._write(said)
            fault = self.gateway.script.next(kinds)
            if fault is None or monotonic() - self._started < fault.after_s:
                break
            strike = first + max(fault.after_records - self.records, 0)
            if strike + (fault.kind in script.NEED_A_RECORD) > len(piece):
                break
            waited += await self._data(piece, first, strike)
            first = strike
            if self.gateway.script.strike(fault, self.session_id, self.records):
                await self._suffer(fault, piece, first)
        return waited + await self._data(piece, first, len(piece))

    async def _data(self, piece: EncodedBlock, first: int, last: int) -> float:
        if first == last:
            return 0.0
        self.records += last - first
        return await self._write(piece.cut(first, last))

    # Faults

    def _strikes(self, kind: str) -> bool:
        fault = self.gateway.script.next((kind,))
        return fault is not None and self.gateway.script.strike(fault, self.session_id)

    async def _suffer(self, fault: script.Fault, piece: EncodedBlock, first: int) -> None:
        """Let a fault happen before record `first` of a piece."""
        if fault.kind == "fin":
            await self._finish()
        elif fault.kind == "rst":
            self.writer.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            self.writer.transport.abort()
            raise Ended
        elif fault.kind == "silence":
            await asyncio.Event().wait()
        elif fault.kind == "cut":
            record = piece.cut(first, first + 1)
            await self._write(record[: len(record) // 2])
            await self._finish()
        elif fault.kind == "garbage":
            noise = mix(self.session_id, self.records, np.arange(GARBAGE_BYTES // 8))
            await self._write(noise.tobytes(), raw=True)
        elif fault.kind == "drip":
            self._dripping = True
        elif fault.kind == "duplicate":
            await self._write(piece.cut(first, min(first + fault.records, len(piece))))
        elif fault.kind == "omit":
            self._to_drop += fault.records
        elif fault.code == 7:
            self._to_drop += fault.records
            self._after_drop += self._error(fault)
        else:
            await self._write(self._error(fault))
            if fault.code not in script.NOT_FATAL:
                await self._finish()

    def _error(self, fault: script.Fault) -> bytes:
        text = fault.text or script.ERRORS[fault.code]
        return block(messages.error(fault.code, text, self.gateway.now_ns()), ts_out=self._ts_out()).data

    async def _fail(self, code: int, text: str) -> None:
        """An error that ends the session."""
        await self._say(messages.error(code, text, self.gateway.now_ns()))
        await self._finish()

    async def _finish(self) -> None:
        """Close cleanly: everything written arrives, then the end of the stream."""
        self.writer.write_eof()
        await self.writer.drain()
        while not self.reader.at_eof() and await self._client_closes():
            pass
        raise Ended

    async def _client_closes(self) -> bool:
        await self.gateway.tick()
        return monotonic() - self._written < self.gateway.limits.linger_s

    # Bytes

    def _ts_out(self) -> int | None:
        return self.gateway.now_ns() if self.asked.ts_out else None

    async def _say(self, array: Array) -> None:
        """Send records of the gateway itself."""
        if len(array):
            await self._write(block(array, ts_out=self._ts_out()).data)

    async def _write(self, data: bytes, *, raw: bool = False) -> float:
        """Write to the client; seconds until it had taken nearly all of it."""
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
