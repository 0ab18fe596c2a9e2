"""Databento's stand-in for live data: the subscription gateway, over plain TCP on loopback.

Greeting, challenge and authentication by CRAM, then a session (`gateway_session.py`) that streams
the tape of the synthetic market as its clock reaches it. The official client accepts it
unmodified: `Live(key, gateway="127.0.0.1", port=gateway.port)`.

The clock is handed in. Wall time, an instant that runs on, or hours in a minute: the same
records at the same instants of the market. What it publishes from its start on is also appended
to a file of truth, if one is named, before anybody is sent it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from threading import Event, Thread
from time import monotonic
from typing import IO

from nq_pipeline.clock import Clock, ShiftedClock, SystemClock, to_ns
from nq_pipeline.errors import SandboxError
from nq_pipeline.market import sessions
from nq_pipeline.sandbox.gateway import messages
from nq_pipeline.sandbox.gateway.messages import Credentials, GatewayRefusal
from nq_pipeline.sandbox.gateway.script import Script
from nq_pipeline.sandbox.gateway.session import ServedSession
from nq_pipeline.sandbox.synthetic.globex import Array
from nq_pipeline.sandbox.synthetic.market import market
from nq_pipeline.sandbox.synthetic.tape import Tape, tape

HOST = "127.0.0.1"
VERSION = "0.8.0"
DATASET = "GLBX.MDP3"
KEY = "db-sandbox-not-a-real-key-000000"
LONGEST_LINE = 2**20
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What the gateway allows; the defaults are the vendor's where it states them.

    Attributes
    ----------
    connections_per_s
        New connections a second; those beyond are closed at once.
    sessions
        Sessions streaming at once; those beyond get ErrorMsg 3.
    too_old_code
        The ErrorMsg a start before the window meets: 5 was seen, 8 is the newer documented one.
    slow_after_s
        A reader that keeps the gateway waiting so long is a slow one.
    tick_s
        How often what the market did is published.
    linger_s
        After a clean close, how long the client's own close is waited for.
    """

    connections_per_s: int = 5
    sessions: int = 10
    replay_window_s: float = 86_400.0
    too_old_code: int = 5
    slow_after_s: float = 1.0
    tick_s: float = 0.01
    linger_s: float = 1.0
    auth_s: float = 30.0


class Gateway:
    """The stand-in; `start` and `stop` within an event loop, or `serve_in_thread` without one.

    Parameters
    ----------
    recording
        What is published; the ordinary tape of the market with seed 7 by default.
    clock
        Where the market is; must run.
    keys
        API keys that are known.
    not_entitled
        Schemas that the plan lacks: refused in the stream, as the vendor does.
    refusal
        What every authentication is refused with; None lets known keys in.
    truth
        A file to which every trade published since the start is appended, as DBN.
    """

    def __init__(
        self,
        recording: Tape | None = None,
        *,
        clock: Clock | None = None,
        keys: Collection[str] = (KEY,),
        not_entitled: Collection[str] = ("mbo", "mbp-10"),
        refusal: str | None = None,
        limits: Limits | None = None,
        script: Script | None = None,
        truth: Path | None = None,
        port: int = 0,
    ) -> None:
        self.tape = recording or tape(market(7))
        self.clock, self.limits = clock or SystemClock(), limits or Limits()
        if self.clock.pinned:
            raise SandboxError("The gateway streams by its clock, and a pinned one stands still; let it run.")
        self.script = script or Script()
        self.keys, self.not_entitled = frozenset(keys), frozenset(not_entitled)
        self.refusal, self.port = refusal, port
        self.streaming = 0
        self.published = 0
        self._truth_path = truth
        self._truth: IO[bytes] | None = None
        self._accepted: deque[float] = deque()
        self._session_ids = count(1_700_000_001)
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures: list[BaseException] = []

    async def start(self) -> None:
        """Listen; the port is known afterwards. SandboxError when it is taken."""
        self.published = self.began = self.now_ns()
        self._ticked, self._somebody = asyncio.Event(), asyncio.Event()
        if self._truth_path:
            self._truth = self._truth_path.open("xb")
            self._truth.write(messages.metadata(DATASET, self.began, schema="trades"))
        try:
            self._server = await asyncio.start_server(self._accept, HOST, self.port, limit=LONGEST_LINE)
        except OSError as error:
            raise SandboxError(
                f"The gateway cannot listen on port {self.port} ({error.strerror}); choose another."
            ) from None
        self.port = self._server.sockets[0].getsockname()[1]
        self._publishing = asyncio.create_task(self._publish())

    async def stop(self) -> None:
        """Close every session and the file of truth; raises what went wrong inside, if anything did."""
        self._server.close()
        self._publishing.cancel()
        for task in self._tasks:
            task.cancel()
        done = await asyncio.gather(self._publishing, *self._tasks, return_exceptions=True)
        if self._truth:
            self._truth.close()
        failures = self._failures + [e for e in done[:1] if isinstance(e, Exception)]
        if failures:
            raise failures[0]

    @property
    def address(self) -> str:
        """host:port, as the settings have it."""
        return f"{HOST}:{self.port}"

    @property
    def idle(self) -> bool:
        """Whether nobody is connected."""
        return not self._tasks

    def now_ns(self) -> int:
        return to_ns(self.clock.now())

    def records(self, schema: str, start: int, end: int) -> Array:
        """What a perfect recorder of all instruments would have of [start, end), nanoseconds UTC."""
        return self.tape.records(schema, start, end)

    async def tick(self) -> None:
        """Wait until the market has moved on."""
        await self._ticked.wait()

    @contextmanager
    def serve_in_thread(self) -> Iterator[Gateway]:
        """Serve from a thread of its own, for programs and tests without an event loop."""
        ready, end = Event(), Event()
        trouble: list[BaseException] = []

        async def serve() -> None:
            await self.start()
            ready.set()
            try:
                await asyncio.to_thread(end.wait)
            finally:
                await self.stop()

        def main() -> None:
            try:
                asyncio.run(serve())
            except BaseException as error:
                trouble.append(error)
            finally:
                ready.set()

        thread = Thread(target=main, name="gateway", daemon=True)
        thread.start()
        ready.wait()
        try:
            if not trouble:
                yield self
        finally:
            end.set()
            thread.join()
        if trouble:
            raise trouble[0]

    # The market moves on

    async def _publish(self) -> None:
        while True:
            await asyncio.sleep(self.limits.tick_s)
            if self.idle and not self._truth:
                self._somebody.clear()
                await self._somebody.wait()
            now = max(self.now_ns(), self.published)
            if self._truth:
                trades = await asyncio.to_thread(self.tape.records, "trades", self.published, now)
                self._truth.write(trades.tobytes())
                self._truth.flush()
            self.published = now
            self._ticked.set()
            self._ticked = asyncio.Event()

    # Connections

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._somebody.set()
        try:
            await self._connection(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        except Exception as error:
            log.exception("a session of the gateway failed")
            self._failures.append(error)
        finally:
            self._tasks.discard(task)
            writer.transport.abort() if task.cancelling() else writer.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session_id = next(self._session_ids)
        if self._too_many() or self._scripted("refuse_connection", session_id):
            return
        challenge = secrets.token_hex(16)
        writer.write(f"lsg_version={VERSION}\ncram={challenge}\n".encode())
        try:
            async with asyncio.timeout(self.limits.auth_s):
                asked = self._admit(challenge, await reader.readline(), session_id)
        except (TimeoutError, ValueError):  # ValueError: a line beyond all measure
            return
        except GatewayRefusal as refused:
            writer.write(f"success=0|error={refused}\n".encode())
            await writer.drain()
            return
        # Alone in its segment: what follows in the same one, the official client loses.
        writer.write(f"success=1|session_id={session_id}\n".encode())
        await writer.drain()
        await ServedSession(self, reader, writer, asked, session_id).run()

    def _too_many(self) -> bool:
        now = monotonic()
        while self._accepted and now - self._accepted[0] >= 1.0:
            self._accepted.popleft()
        if len(self._accepted) >= self.limits.connections_per_s:
            return True
        self._accepted.append(now)
        return False

    def _scripted(self, kind: str, session_id: int) -> bool:
        fault = self.script.next((kind,))
        return fault is not None and self.script.strike(fault, session_id)

    def _admit(self, challenge: str, line: bytes, session_id: int) -> Credentials:
        """Check the answer to the challenge against every known key; Refused with the vendor's words."""
        asked = messages.credentials(line)
        answers = [
            f"{hashlib.sha256(f'{challenge}|{key}'.encode()).hexdigest()}-{key[-5:]}" for key in self.keys
        ]
        if not any(hmac.compare_digest(asked.response.encode(), answer.encode()) for answer in answers):
            raise GatewayRefusal("Authentication failed.")
        fault = self.script.next(("refuse_auth",))
        if fault and self.script.strike(fault, session_id):
            raise GatewayRefusal(fault.text or "Authentication failed.")
        if self.refusal:
            raise GatewayRefusal(self.refusal)
        if asked.dataset != DATASET:
            raise GatewayRefusal(f"A live data license is required to access {asked.dataset}.")
        return asked


def moving_clock(now: datetime) -> Clock:
    """A clock under which the market moves: wall time in regular hours, else whole hours behind it.

    Outside regular hours it begins within the first of them of the last trade date that had any, at
    the same minute of the hour, so that a gateway started again within the hour goes on from there.
    """
    if sessions.is_open(now, "rth"):
        return SystemClock()
    opens = max(
        s.rth[0]
        for s in sessions.sessions((now - timedelta(days=12)).date(), now.date() + timedelta(days=1))
        if s.rth and s.rth[0] <= now
    )
    return ShiftedClock(now - (now - opens) // timedelta(hours=1) * timedelta(hours=1))
