"""What the gateway has published so far: the tape up to its clock, and what all sessions share."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from nq_pipeline.clock import Clock, SystemClock, to_ns
from nq_pipeline.dbn.layout import Array
from nq_pipeline.errors import SandboxError
from nq_pipeline.sandbox.gateway.fault_script import FaultScript
from nq_pipeline.sandbox.gateway.messages import encode_metadata
from nq_pipeline.sandbox.synthetic.market import market
from nq_pipeline.sandbox.synthetic.tape import Tape, tape

DATASET = "GLBX.MDP3"


@dataclass(frozen=True)
class Limits:
    """Limits of the gateway; the defaults are the vendor's, if it states them."""

    connections_per_s: int = 5
    """New connections beyond it are closed at once."""
    sessions: int = 10
    """Sessions that stream at once; those beyond get ErrorMsg 3."""
    replay_window_s: float = 86_400.0
    too_old_code: int = 5
    """ErrorMsg code for a start before the window: 5 was observed, 8 is the newer documented one."""
    slow_after_s: float = 1.0
    """A reader that blocks the gateway this long counts as slow."""
    tick_s: float = 0.01
    """Interval between publications."""
    linger_s: float = 1.0
    """How long the gateway waits for the client to close after its own clean close."""
    auth_s: float = 30.0


class LiveFeed:
    """The tape as its clock reaches it; `published` is how far it has come, in nanoseconds UTC.

    It publishes `recording`, by default the tape of the market with seed 7, and refuses `not_entitled`
    schemas in the stream, as the vendor does. A `truth` file receives every trade published since the start
    as DBN, before any client does. The clock must run.
    """

    def __init__(
        self,
        recording: Tape | None = None,
        *,
        clock: Clock | None = None,
        not_entitled: Collection[str] = ("mbo", "mbp-10"),
        limits: Limits | None = None,
        script: FaultScript | None = None,
        truth: Path | None = None,
    ) -> None:
        self.tape = recording or tape(market(7))
        self.clock, self.limits = clock or SystemClock(), limits or Limits()
        if self.clock.pinned:
            raise SandboxError("The gateway needs a running clock, and this one is pinned; let it run.")
        self.script, self.not_entitled = script or FaultScript(), frozenset(not_entitled)
        self.streaming = 0
        self.published = self.began = 0
        self._truth_path = truth
        self._truth: IO[bytes] | None = None

    def now_ns(self) -> int:
        return to_ns(self.clock.now())

    def records(self, schema: str, start: int, end: int) -> Array:
        """The records in [start, end), nanoseconds UTC, of a recorder of all instruments that missed none."""
        return self.tape.records(schema, start, end)

    async def tick(self) -> None:
        """Wait until the market has moved on."""
        await self._ticked.wait()

    def _open(self) -> None:
        """Begin to publish; call within the event loop."""
        self.published = self.began = self.now_ns()
        self._ticked, self._has_clients = asyncio.Event(), asyncio.Event()
        if self._truth_path:
            self._truth = self._truth_path.open("xb")
            self._truth.write(encode_metadata(DATASET, self.began, schema="trades"))

    async def _publish(self) -> None:
        """Publish every tick, and without clients only into the truth file; runs until cancelled."""
        while True:
            await asyncio.sleep(self.limits.tick_s)
            if not self._truth:
                await self._has_clients.wait()
            now = max(self.now_ns(), self.published)
            if self._truth:
                trades = await asyncio.to_thread(self.tape.records, "trades", self.published, now)
                self._truth.write(trades.tobytes())
                self._truth.flush()
            self.published = now
            self._ticked.set()
            self._ticked = asyncio.Event()
