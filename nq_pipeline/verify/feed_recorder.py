"""The line to the live gateway: short sessions, each recorded from its first byte to its end.

The session is the capture's own (`live.gateway.Session`). One is open at a time, and connections
are kept apart, so that a capture running beside has room.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import SecretStr

from nq_pipeline.capture import gateway, reconnect_policy
from nq_pipeline.capture.gateway import GatewaySession, SessionState, Subscription
from nq_pipeline.capture.reconnect_policy import Attempts, EndReason, Retry, SessionEnd, StepDown, Stop
from nq_pipeline.capture.schema_fallback import RTYPES
from nq_pipeline.clock import Clock, to_ns
from nq_pipeline.dbn.framer import Frame
from nq_pipeline.dbn.layout import SYMBOL_MAPPING

POLL_S = 0.02
MOST_RECORDS = 2_000_000
"""A session ends early when it has brought so many: they are held in memory."""
SAMPLE = 1_000
"""Records of a sample."""
TRADE = RTYPES["trades"]

_GREETING = re.compile(rb"lsg_version=([\w.\-]{1,32})\n")

Array = npt.NDArray[Any]
Enough = Callable[[SessionState, float], object]
"""Whether to end a session: what is known of it, and the seconds since it was connected."""


@dataclass
class Recording:
    """What a session brought.

    Attributes
    ----------
    trades, arrived
        The trades in the order they came, and when each did, nanoseconds by the clock of the line.
    mappings
        The symbol mappings.
    opened_s, first_s
        From the attempt to connect to the session's start, and from there to the first trade.
    """

    head: bytes = b""
    trades: Array = field(default_factory=lambda: _none("TradeMsg"))
    arrived: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    mappings: Array = field(default_factory=lambda: _none("SymbolMappingMsg"))
    state: SessionState = field(default_factory=SessionState)
    ending: SessionEnd = field(default_factory=lambda: SessionEnd(EndReason.STOPPED))
    opened_s: float = 0.0
    first_s: float | None = None
    seconds: float = 0.0

    @property
    def trouble(self) -> str:
        """Why the session ended before we ended it, and what to do; empty when it did not."""
        return "" if self.ending.reason is EndReason.STOPPED else explain_end(self.ending)

    @property
    def too_old(self) -> bool:
        """Whether the gateway no longer has what the replay was to begin with."""
        step = _next_step(self.ending)
        return isinstance(step, Retry) and step.replay_too_old

    def sample(self) -> bytes:
        """The first trades with the mappings of their instruments, as a DBN file."""
        some = self.trades[:SAMPLE]
        if not len(some):
            return self.head
        named = self.mappings[np.isin(self.mappings["instrument_id"], some["instrument_id"])]
        return self.head + named.tobytes() + some.tobytes()


def _none(struct: str) -> Array:
    import databento_dbn

    return np.empty(0, np.dtype(getattr(databento_dbn, struct)._dtypes))


def explain_end(ending: SessionEnd) -> str:
    """An end in words, with what to do where trying again does not help."""
    if ending.code == reconnect_policy.CONNECTION_LIMIT:
        return f"{ending}; the account has no session left: end another one, or wait a minute"
    step = _next_step(ending)
    return step.reason if isinstance(step, Stop) and step.reason else str(ending)


def _next_step(ending: SessionEnd) -> Retry | StepDown | Stop:
    return reconnect_policy.next_step(ending, Attempts(), now=datetime.now(UTC), closes=None, chance=0.0)


class FeedRecorder:
    """The way to one dataset's gateway.

    Parameters
    ----------
    address
        Host and port.
    clock
        Tells when something came.
    heartbeat_s, late_s
        Silence for longer than both together ends a session.
    """

    def __init__(
        self,
        key: SecretStr | None,
        dataset: str,
        address: tuple[str, int],
        clock: Clock,
        *,
        heartbeat_s: int = gateway.HEARTBEAT_S,
        late_s: float = gateway.LATE_S,
    ) -> None:
        self.key, self.dataset, self.clock = key, dataset, clock
        self.host, self.port = address
        self._heartbeat_s, self._late_s = heartbeat_s, late_s
        self._connected = float("-inf")

    def greeting(self) -> tuple[str, float]:
        """The gateway's version, empty when what answers is no gateway, and the seconds to connect.

        Raises OSError when nothing answers.
        """
        self._space()
        return asyncio.run(self._greeting())

    async def _greeting(self) -> tuple[str, float]:
        began = time.monotonic()
        async with asyncio.timeout(gateway.CONNECT_S):
            reader, writer = await asyncio.open_connection(self.host, self.port)
            connected = time.monotonic() - began
            try:
                said = _GREETING.fullmatch(await reader.readline())
            except ValueError:  # a line beyond all measure
                said = None
            finally:
                writer.close()
        return said[1].decode() if said else "", connected

    def listen(
        self,
        schema: str,
        parents: tuple[str, ...],
        enough: Enough,
        *,
        patience_s: float,
        start_ns: int | None = None,
        record: Callable[[Frame], object] | None = None,
    ) -> Recording:
        """Hold a session until there is enough, it ends or `patience_s` is over; then drop the connection.

        Parameters
        ----------
        start_ns
            Where a replay begins, nanoseconds UTC; None streams from now on.
        record
            Is handed every frame as well.
        """
        self._space()
        ear = _Ear(self.clock, record)
        asked = [Subscription(schema, parents, start_ns)]
        return asyncio.run(self._listen(asked, ear, enough, patience_s))

    async def _listen(
        self, asked: list[Subscription], ear: _Ear, enough: Enough, patience_s: float
    ) -> Recording:
        assert self.key is not None
        began = time.monotonic()
        session = GatewaySession(
            self.key, self.dataset, ear.take, heartbeat_s=self._heartbeat_s, late_s=self._late_s
        )
        await session.open(self.host, self.port, asked)
        opened = ear.opened = time.monotonic()
        while not session.ending.done():
            elapsed = time.monotonic() - opened
            full = session.state.records >= MOST_RECORDS
            if full or elapsed >= patience_s or enough(session.state, elapsed):
                session.close(SessionEnd(EndReason.STOPPED))
                break
            await asyncio.wait([session.ending], timeout=POLL_S)
        ending = await session.ending
        return ear.recording(session.state, ending, opened - began)

    def _space(self) -> None:
        wait = self._connected + reconnect_policy.SPACING_S - time.monotonic()
        time.sleep(max(0.0, wait))
        self._connected = time.monotonic()


class _Ear:
    """Keeps what a session brings."""

    def __init__(self, clock: Clock, record: Callable[[Frame], object] | None) -> None:
        self.opened = time.monotonic()
        self._clock, self._record = clock, record
        self._head = b""
        self._trades: list[Array] = []
        self._arrived: list[Array] = []
        self._mappings: list[Array] = []
        self._first: float | None = None

    def take(self, frame: Frame) -> None:
        now = to_ns(self._clock.now())
        if self._record:
            self._record(frame)
        self._head = frame.head.raw
        if SYMBOL_MAPPING in frame.tallies:
            self._mappings.append(frame.array(SYMBOL_MAPPING).copy())
        if TRADE in frame.tallies:
            self._first = self._first or time.monotonic()
            self._trades.append(frame.array(TRADE).copy())
            self._arrived.append(np.full(len(self._trades[-1]), now, np.int64))

    def recording(self, state: SessionState, ending: SessionEnd, opened_s: float) -> Recording:
        found = Recording(
            head=self._head,
            state=state,
            ending=ending,
            opened_s=opened_s,
            first_s=None if self._first is None else self._first - self.opened,
            seconds=time.monotonic() - self.opened,
        )
        if self._trades:
            found.trades, found.arrived = np.concatenate(self._trades), np.concatenate(self._arrived)
        if self._mappings:
            found.mappings = np.concatenate(self._mappings)
        return found
