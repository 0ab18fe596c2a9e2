"""Short sessions of the live gateway, each recorded from its first byte to its end.

They use the capture's `GatewaySession`, one at a time and spaced, so that a capture running at the same
time has room.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import SecretStr

from nq_pipeline.capture import gateway, reconnect_policy
from nq_pipeline.capture.gateway import GatewayConnector, GatewaySession, SessionState, Subscription
from nq_pipeline.capture.reconnect_policy import Attempts, EndReason, Retry, SessionEnd, StepDown, Stop
from nq_pipeline.clock import Clock, real_now, to_ns
from nq_pipeline.dbn.framer import Frame
from nq_pipeline.dbn.layout import RTYPES, SYMBOL_MAPPING, VERSIONS, record_dtype

POLL_S = 0.02
MAX_RECORDS = 2_000_000
"""A session ends early after this many records, which are held in memory."""
SAMPLE_RECORDS = 1_000
TRADE = RTYPES["trades"]

_GREETING = re.compile(rb"lsg_version=([\w.\-]{1,32})\n")

Array = npt.NDArray[Any]
Enough = Callable[[SessionState, float], object]
"""Decides whether to end a session from its state and the seconds since it connected."""


@dataclass
class Recording:
    """What a session received."""

    head: bytes = b""  # the header of its DBN stream
    trades: Array = field(default_factory=lambda: np.empty(0, record_dtype(TRADE, VERSIONS[-1])))
    arrived: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """When each trade arrived, nanoseconds by the recorder's clock."""
    mappings: Array = field(default_factory=lambda: np.empty(0, record_dtype(SYMBOL_MAPPING, VERSIONS[-1])))
    state: SessionState = field(default_factory=SessionState)
    ending: SessionEnd = field(default_factory=lambda: SessionEnd(EndReason.STOPPED))
    opened_s: float = 0.0  # from the attempt to connect to the session's start
    first_s: float | None = None  # from there to the first trade
    seconds: float = 0.0

    @property
    def failure(self) -> str:
        """Why the session ended before we ended it, and what to do; empty if it did not."""
        return "" if self.ending.reason is EndReason.STOPPED else explain_end(self.ending)

    @property
    def too_old(self) -> bool:
        """Whether the gateway no longer has the start of the replay."""
        step = _next_step(self.ending)
        return isinstance(step, Retry) and step.replay_too_old

    def sample(self) -> bytes:
        """The first trades with the mappings of their instruments, as a DBN file."""
        trades = self.trades[:SAMPLE_RECORDS]
        if not len(trades):
            return self.head
        named = self.mappings[np.isin(self.mappings["instrument_id"], trades["instrument_id"])]
        return self.head + named.tobytes() + trades.tobytes()


def explain_end(ending: SessionEnd) -> str:
    """An end in words, with the remedy if another attempt cannot help."""
    if ending.code == reconnect_policy.CONNECTION_LIMIT:
        return f"{ending}; the account has no session left; end another one, or wait a minute"
    step = _next_step(ending)
    return step.reason if isinstance(step, Stop) and step.reason else str(ending)


def _next_step(ending: SessionEnd) -> Retry | StepDown | Stop:
    return reconnect_policy.next_step(ending, Attempts(), now=real_now(), closes=None, chance=0.0)


class FeedRecorder:
    """Records sessions of one dataset's gateway; `clock` dates what arrives."""

    def __init__(self, key: SecretStr | None, dataset: str, address: tuple[str, int], clock: Clock) -> None:
        self.key, self.dataset, self.clock = key, dataset, clock
        self.host, self.port = address
        self._connector = GatewayConnector(key, dataset, address) if key else None

    async def read_greeting(self) -> tuple[str, float]:
        """The gateway's version, empty if the server is not a gateway, and the seconds to connect.

        Raises OSError when nothing answers.
        """
        if self._connector:
            await self._connector.wait_turn()
        began = time.monotonic()
        async with asyncio.timeout(gateway.CONNECT_S):
            reader, writer = await asyncio.open_connection(self.host, self.port)
            connected = time.monotonic() - began
            try:
                greeting = _GREETING.fullmatch(await reader.readline())
            except ValueError:  # the line is longer than the reader's limit
                greeting = None
            finally:
                writer.close()
        return greeting[1].decode() if greeting else "", connected

    def record(
        self,
        schema: str,
        parents: tuple[str, ...],
        enough: Enough,
        *,
        patience_s: float,
        start_ns: int | None = None,
        sink: Callable[[Frame], object] | None = None,
    ) -> Recording:
        """Record a session until `enough`, its end or `patience_s`; then drop the connection.

        A replay begins at `start_ns`, nanoseconds UTC; None streams from now on. `sink` is called with every
        frame as well.
        """
        connector, buffer = self._connector, _SessionBuffer(self.clock, sink)
        assert connector is not None

        async def hold_session() -> Recording:
            await connector.wait_turn()
            began = time.monotonic()
            session = GatewaySession(connector, buffer.add)
            await session.open([Subscription(schema, parents, start_ns)])
            opened = buffer.opened = time.monotonic()
            while not session.ending.done():
                elapsed = time.monotonic() - opened
                full = session.state.records >= MAX_RECORDS
                if full or elapsed >= patience_s or enough(session.state, elapsed):
                    session.close(SessionEnd(EndReason.STOPPED))
                    break
                await asyncio.wait([session.ending], timeout=POLL_S)
            return buffer.recording(session.state, await session.ending, opened - began)

        return asyncio.run(hold_session())


class _SessionBuffer:
    """Holds what a session receives."""

    def __init__(self, clock: Clock, sink: Callable[[Frame], object] | None) -> None:
        self.opened = time.monotonic()
        self._clock, self._sink = clock, sink
        self._head = b""
        self._trades: list[Array] = []
        self._arrived: list[Array] = []
        self._mappings: list[Array] = []
        self._first: float | None = None

    def add(self, frame: Frame) -> None:
        now = to_ns(self._clock.now())
        if self._sink:
            self._sink(frame)
        self._head = frame.head.raw
        if SYMBOL_MAPPING in frame.tallies:
            self._mappings.append(frame.array(SYMBOL_MAPPING).copy())
        if TRADE in frame.tallies:
            self._first = self._first or time.monotonic()
            self._trades.append(frame.array(TRADE).copy())
            self._arrived.append(np.full(len(self._trades[-1]), now, np.int64))

    def recording(self, state: SessionState, ending: SessionEnd, opened_s: float) -> Recording:
        found = Recording(self._head, state=state, ending=ending, opened_s=opened_s)
        found.seconds = time.monotonic() - self.opened
        if self._first is not None:
            found.first_s = self._first - self.opened
            found.trades, found.arrived = np.concatenate(self._trades), np.concatenate(self._arrived)
        if self._mappings:
            found.mappings = np.concatenate(self._mappings)
        return found
