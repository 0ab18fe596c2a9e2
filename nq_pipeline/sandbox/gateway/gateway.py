"""Databento's stand-in for live data: the subscription gateway, over plain TCP on loopback.

A connection is greeted, challenged and authenticated (CRAM). Its session (`session`) then streams the
tape of the synthetic market as the clock reaches it. The official client connects unmodified:
`Live(key, gateway="127.0.0.1", port=gateway.port)`.

The clock is a parameter: under wall time, a shifted instant or a faster clock the gateway publishes
the same records at the same instants of the market.
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
from datetime import datetime, timedelta
from itertools import count
from threading import Event, Thread
from time import monotonic
from typing import Any

from nq_pipeline.clock import Clock, ShiftedClock, SystemClock
from nq_pipeline.errors import SandboxError
from nq_pipeline.market import sessions
from nq_pipeline.sandbox.gateway.feed import DATASET, LiveFeed
from nq_pipeline.sandbox.gateway.messages import Credentials, GatewayRefusal, parse_credentials
from nq_pipeline.sandbox.gateway.session import ServedSession
from nq_pipeline.sandbox.synthetic.tape import Tape

HOST = "127.0.0.1"
VERSION = "0.8.0"
KEY = "db-sandbox-not-a-real-key-000000"
MAX_LINE = 2**20
log = logging.getLogger(__name__)


class Gateway(LiveFeed):
    """The stand-in; `start` and `stop` within an event loop, or `serve_in_thread` without one.

    `refusal` is the text with which every authentication is refused; None admits valid `keys`. Port 0 is a
    free one. Other parameters are those of `LiveFeed`.
    """

    def __init__(
        self,
        recording: Tape | None = None,
        *,
        keys: Collection[str] = (KEY,),
        refusal: str | None = None,
        port: int = 0,
        **feed: Any,
    ) -> None:
        super().__init__(recording, **feed)
        self.keys, self.refusal, self.port = frozenset(keys), refusal, port
        self._accepted: deque[float] = deque()
        self._session_ids = count(1_700_000_001)
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures: list[BaseException] = []

    async def start(self) -> None:
        """Listen; the port is known afterwards. Raises SandboxError when it is taken."""
        self._open()
        try:
            self._server = await asyncio.start_server(self._accept, HOST, self.port, limit=MAX_LINE)
        except OSError as error:
            raise SandboxError(
                f"The gateway cannot listen on port {self.port} ({error.strerror}); choose another."
            ) from None
        self.port = self._server.sockets[0].getsockname()[1]
        self._publishing = asyncio.create_task(self._publish())

    async def stop(self) -> None:
        """Close every session and the truth file; raises the first error of a session or the publisher."""
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
        """Whether no client is connected."""
        return not self._tasks

    @contextmanager
    def serve_in_thread(self) -> Iterator[Gateway]:
        """Serve from a thread of its own, for programs and tests without an event loop."""
        ready, end = Event(), Event()
        errors: list[BaseException] = []

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
                errors.append(error)
            finally:
                ready.set()

        thread = Thread(target=main, name="gateway", daemon=True)
        thread.start()
        ready.wait()
        try:
            if not errors:
                yield self
        finally:
            end.set()
            thread.join()
        if errors:
            raise errors[0]

    # Connections

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._has_clients.set()
        try:
            await self._serve_connection(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        except Exception as error:
            log.exception("a session of the gateway failed")
            self._failures.append(error)
        finally:
            self._tasks.discard(task)
            if self.idle:
                self._has_clients.clear()
            writer.transport.abort() if task.cancelling() else writer.close()

    async def _serve_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session_id = next(self._session_ids)
        if self._exceeds_rate() or self.script.claim_next("refuse_connection", session_id):
            return
        challenge = secrets.token_hex(16)
        writer.write(f"lsg_version={VERSION}\ncram={challenge}\n".encode())
        try:
            async with asyncio.timeout(self.limits.auth_s):
                credentials = self._authenticate(challenge, await reader.readline(), session_id)
        except (TimeoutError, ValueError):  # ValueError: the line exceeds MAX_LINE
            return
        except GatewayRefusal as refused:
            writer.write(f"success=0|error={refused}\n".encode())
            await writer.drain()
            return
        # Sent alone: the official client loses whatever follows in the same segment.
        writer.write(f"success=1|session_id={session_id}\n".encode())
        await writer.drain()
        await ServedSession(self, reader, writer, credentials, session_id).run()

    def _exceeds_rate(self) -> bool:
        now = monotonic()
        while self._accepted and now - self._accepted[0] >= 1.0:
            self._accepted.popleft()
        if len(self._accepted) >= self.limits.connections_per_s:
            return True
        self._accepted.append(now)
        return False

    def _authenticate(self, challenge: str, line: bytes, session_id: int) -> Credentials:
        """Check the answer to the challenge; raises GatewayRefusal in the vendor's words."""
        credentials = parse_credentials(line)
        answers = [
            f"{hashlib.sha256(f'{challenge}|{key}'.encode()).hexdigest()}-{key[-5:]}" for key in self.keys
        ]
        if not any(hmac.compare_digest(credentials.response.encode(), answer.encode()) for answer in answers):
            raise GatewayRefusal("Authentication failed.")
        if fault := self.script.claim_next("refuse_auth", session_id):
            raise GatewayRefusal(fault.text or "Authentication failed.")
        if self.refusal:
            raise GatewayRefusal(self.refusal)
        if credentials.dataset != DATASET:
            raise GatewayRefusal(f"A live data license is required to access {credentials.dataset}.")
        return credentials


def moving_clock(now: datetime) -> Clock:
    """A clock under which the market moves: wall time in regular hours, else whole hours behind it.

    Outside regular hours it starts within the first regular hour of the last trade date that had any,
    at the same minute of the hour, so that a gateway restarted within the hour continues from there.
    """
    if sessions.is_open(now, "rth"):
        return SystemClock()
    opens = max(
        s.rth[0]
        for s in sessions.sessions((now - timedelta(days=12)).date(), now.date() + timedelta(days=1))
        if s.rth and s.rth[0] <= now
    )
    return ShiftedClock(now - (now - opens) // timedelta(hours=1) * timedelta(hours=1))
