"""One session of the live gateway: connect, authenticate, subscribe, and hand on frames.

The protocol is the official client's (`DatabentoLiveProtocol`) with two private methods replaced
(`_process_dbn`, `_process_gateway`; databento 0.88, held by a test). Bytes go from the socket through
the framer to the recorder within one call, without an object per record. The client's reconnection is
replaced too: a session ends once, for one `EndReason`, and never restarts by itself.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from nq_pipeline.capture.reconnect_policy import (
    NOT_FATAL,
    SKIPPED_RECORDS,
    SPACING_S,
    UNKNOWN_SYMBOL,
    EndReason,
    SessionEnd,
)
from nq_pipeline.dbn.framer import ErrorMsg, Frame, Framer
from nq_pipeline.dbn.layout import CONTROL, ERROR, SYMBOL_MAPPING, SYSTEM, UNDEF_TIMESTAMP
from nq_pipeline.errors import BadStream, LogFailed
from nq_pipeline.market.contracts import ROOTS
from nq_pipeline.market.products import select_products
from nq_pipeline.redaction import redact, redact_logs, secret_spellings

if TYPE_CHECKING:
    from pydantic import SecretStr

PORT = 13_000
CONNECT_S, AUTH_S = 10.0, 30.0
HEARTBEAT_S = 5
"""The shortest heartbeat interval that the gateway documents; it sends one when it has nothing else."""
LATE_S = 10.0
"""How late a heartbeat may be before the connection counts as dead, as in the official client. How
punctual the real gateway is in a quiet hour is unknown."""
MAX_GREETING = 64 * 1024
"""Bytes accepted before the key is answered; a few lines are normal."""
CLOSING_S = 1.0
"""How long the gateway may take to close the connection after an error that ends the session."""

HEARTBEAT, ACKNOWLEDGED, SLOW_READER, REPLAY_COMPLETED = range(4)
"""Codes of system messages."""

_FINISHED = re.compile(r"Finished (\S+) replay")


def option_parents(products: Sequence[str] = ("NQ",)) -> tuple[str, ...]:
    """The parents of the options of some products, one per Globex root; `SettingsError` if one is unknown."""
    families = [family for product in select_products(products) for family in product.families]
    return tuple(f"{root}.OPT" for family in families for root in family.roots)


def future_parents(products: Sequence[str] = ("NQ",)) -> tuple[str, ...]:
    """The parents of the futures of some products; `SettingsError` if one is unknown."""
    return tuple(f"{product.code}.FUT" for product in select_products(products))


def missing_parents(parents: tuple[str, ...], mapped: set[str]) -> tuple[list[str], list[str]]:
    """The parents without an instrument: those always listed, and those listed only at times.

    Standard options and futures are always listed, weekly and end-of-month roots some weeks ahead.
    Roots of a fifth week are left out, since few months have one.
    """
    absent = {p: ROOTS.get(p.removesuffix(".OPT")) for p in parents if p not in mapped}
    always = [p for p, root in absent.items() if p.endswith(".FUT") or (root and root.family.is_standard)]
    at_times = [p for p, root in absent.items() if p not in always and (root is None or root.week != 5)]
    return always, at_times


def gateway_address(gateway: str | None, dataset: str) -> tuple[str, int]:
    """Host and port: the configured `host:port`, or the vendor's for the dataset."""
    if gateway is None:
        return f"{dataset.lower().replace('.', '-')}.lsg.databento.com", PORT
    host, _, port = gateway.rpartition(":")
    return host.strip("[]"), int(port)


@dataclass(frozen=True, slots=True)
class Subscription:
    """A schema of some parent symbols, from an instant (nanoseconds UTC) or, with None, from now."""

    schema: str
    parents: tuple[str, ...]
    start_ns: int | None = None


@dataclass(slots=True)
class SessionState:
    """What is known of a session while it lasts."""

    session_id: str = ""  # the gateway's
    last_heard: float = 0.0  # when bytes last arrived, in seconds of the event loop's clock
    began: float | None = None  # when the first bytes of the stream did
    heard_ns: int = 0
    """Up to when the gateway has sent everything: the newest `ts_recv`, or the heartbeat it sends when idle.
    Nanoseconds UTC by its own clock, so a backlog is visible."""
    advanced: float = 0.0  # when `heard_ns` last grew, in seconds of the event loop's clock
    records: int = 0  # of market data
    bytes: int = 0
    mapped: set[str] = field(default_factory=set)  # parent symbols with at least one instrument named
    replayed: dict[str, int] = field(default_factory=dict)
    """Schema to when its replay was completed, nanoseconds UTC by the gateway's clock."""
    skipped: str = ""  # the gateway's message when it skipped records
    warnings: int = 0  # of a slow reader
    unknown: list[str] = field(default_factory=list)  # its messages on symbols that it does not know

    def hear(self, ns: int) -> None:
        """Note up to when the gateway has sent everything."""
        if ns > self.heard_ns:
            self.heard_ns, self.advanced = ns, self.last_heard

    @property
    def lived_s(self) -> float:
        """For how long the stream sent bytes, seconds."""
        return 0.0 if self.began is None else self.last_heard - self.began


@dataclass
class GatewayConnector:
    """What sessions of one dataset's gateway share; it also keeps their connections apart.

    The gateway closes connections that follow one another too fast, whatever they are for, so all
    sessions of a process should share one connector.
    """

    key: SecretStr
    dataset: str
    address: tuple[str, int]
    heartbeat_s: int = HEARTBEAT_S  # requested of the gateway
    late_s: float = LATE_S  # silence for both together ends a session
    zstd: bool = False  # request a compressed stream
    _connected_at: float = float("-inf")

    async def wait_turn(self) -> None:
        """Wait until the next connection may be opened, and claim it."""
        loop = asyncio.get_running_loop()
        self._connected_at = at = max(loop.time(), self._connected_at + SPACING_S)
        await asyncio.sleep(at - loop.time())


class GatewaySession:
    """A session, from the connection to its end, which completes `ending`.

    `record` is called with every frame, on the event loop's thread. `LogFailed` from it ends the session as
    `EndReason.FAILED`; any other exception is raised to whoever awaits `ending`.
    """

    def __init__(self, connector: GatewayConnector, record: Callable[[Frame], None]) -> None:
        self.state = SessionState()
        self._connector, self._record = connector, record
        self._silence_s = connector.heartbeat_s + connector.late_s
        # The gateway may repeat the key; strike it before anyone sees it.
        self._secrets = secret_spellings({connector.key.get_secret_value()})
        redact_logs(self._secrets)
        self._framer = Framer(secrets=self._secrets)
        self._loop = asyncio.get_running_loop()
        self._error: ErrorMsg | None = None
        self._authenticated: asyncio.Future[Any] | None = None
        self._transport: asyncio.Transport | None = None
        self._watching: asyncio.TimerHandle | None = None
        self.ending: asyncio.Future[SessionEnd] = self._loop.create_future()

    async def open(self, subscriptions: list[Subscription]) -> None:
        """Connect, authenticate, subscribe and start; the session may have ended by then."""
        protocol, (host, port) = _protocol(self, self._connector), self._connector.address
        self._authenticated = protocol.authenticated
        assert self._authenticated is not None
        try:
            async with asyncio.timeout(CONNECT_S):
                await self._loop.create_connection(lambda: protocol, host, port)
        except OSError as error:  # refused, unreachable, unknown host, no answer in time
            reason = error.strerror or str(error) or "no answer"
            self._end(EndReason.UNREACHABLE, f"{host}:{port}: {reason}")
            return
        self._transport = protocol.transport
        await asyncio.wait(
            {self._authenticated, self.ending}, timeout=AUTH_S, return_when=asyncio.FIRST_COMPLETED
        )
        if refusal := self._refusal():
            self._end(EndReason.REFUSED, refusal)
        elif not self._authenticated.done():
            late = f"{host}:{port} did not answer the key within {AUTH_S:.0f} seconds"
            self._end(EndReason.UNREACHABLE, late)
        if self.ending.done():
            return
        self.state.session_id = redact(self._authenticated.result() or "", self._secrets)
        for number, wanted in enumerate(subscriptions):
            protocol.subscribe(
                wanted.schema, wanted.parents, "parent", wanted.start_ns, subscription_id=number
            )
        protocol.start()
        self.state.last_heard = self.state.advanced = self._loop.time()
        self._watch()

    def close(self, ending: SessionEnd) -> None:
        """End the session, unless it has ended."""
        if not self.ending.done():
            self.ending.set_result(ending)
            self._disconnect()

    # ── called by the protocol ──────────────────────────────────────────────────────────────────

    def received(self, data: bytes) -> None:
        """Process a chunk of the stream."""
        if self.ending.done():
            return
        state = self.state
        state.last_heard = self._loop.time()
        state.bytes += len(data)
        if state.began is None:
            state.began = state.last_heard
        try:
            for frame in self._framer.feed(data):
                self._update_state(frame)
                self._record(frame)
        except BadStream as error:
            self._end(EndReason.GARBAGE, str(error))
        except LogFailed as error:
            self._end(EndReason.FAILED, str(error))
        except Exception as error:
            self._disconnect()
            self.ending.set_exception(error)

    def lost(self, error: Exception | None) -> None:
        """Process the loss of the connection."""
        if self._error is not None:
            self._end(EndReason.ERROR, self._error.text, self._error.code)
        elif self._framer.pending:
            self._end(EndReason.CUT, f"{self._framer.pending} bytes of an incomplete record had arrived")
        elif refusal := self._refusal():
            self._end(EndReason.REFUSED, refusal)
        elif isinstance(error, OSError):
            self._end(EndReason.RESET, error.strerror or type(error).__name__)
        elif error is not None:
            self._end(EndReason.GARBAGE, f"the gateway's answer is malformed ({type(error).__name__})")
        elif not self.state.session_id:
            self._end(EndReason.UNREACHABLE, "the gateway closed the connection before it checked the key")
        else:
            self._end(EndReason.CLOSED)

    def _refusal(self) -> str:
        """The gateway's refusal of the key or the dataset; empty without one."""
        answer = self._authenticated
        refusal = answer.exception() if answer is not None and answer.done() else None
        return redact(str(refusal or ""), self._secrets)

    def _update_state(self, frame: Frame) -> None:
        """Track control records; mappings in columns, since only they are frequent."""
        state, tallies = self.state, frame.tallies
        for rtype, tally in tallies.items():
            if rtype not in CONTROL:
                state.records += tally.count
                if tally.ts_recv is not None and tally.ts_recv != UNDEF_TIMESTAMP:
                    state.hear(tally.ts_recv)
        if SYMBOL_MAPPING in tallies:
            named = np.unique(frame.array(SYMBOL_MAPPING)["stype_in_symbol"])
            state.mapped.update(name.decode("utf-8", "replace") for name in named.tolist())
        if ERROR not in tallies and SYSTEM not in tallies:
            return
        for message in frame.messages():
            if isinstance(message, ErrorMsg):
                self._handle_error(message)
            elif message.code == SLOW_READER:
                state.warnings += 1
            elif message.ts_event == UNDEF_TIMESTAMP:
                continue
            elif message.code == HEARTBEAT:
                state.hear(message.ts_event)
            elif finished := _FINISHED.match(message.text):
                state.replayed[finished[1]] = message.ts_event

    def _handle_error(self, message: ErrorMsg) -> None:
        if message.code == SKIPPED_RECORDS:
            self.state.skipped = message.text
        elif message.code == UNKNOWN_SYMBOL:
            self.state.unknown.append(message.text)
        elif message.code not in NOT_FATAL and self._error is None:
            self._error = message
            self._loop.call_later(CLOSING_S, self.lost, None)

    def _watch(self) -> None:
        """End the session when nothing has arrived for too long, counted from the start of the session."""
        quiet = self._loop.time() - self.state.last_heard
        if quiet >= self._silence_s:
            self._end(EndReason.SILENT, f"nothing arrived for {quiet:.1f} seconds")
        elif not self.ending.done():
            self._watching = self._loop.call_later(self._silence_s - quiet, self._watch)

    def _end(self, reason: EndReason, text: str = "", code: int | None = None) -> None:
        self.close(SessionEnd(reason, text, code))

    def _disconnect(self) -> None:
        if self._watching:
            self._watching.cancel()
        if self._transport:
            self._transport.abort()


def _protocol(session: GatewaySession, connector: GatewayConnector) -> Any:
    """The official client's protocol; it passes `session` the stream and the end of the connection."""
    from databento import Compression
    from databento.live.protocol import DatabentoLiveProtocol

    class Protocol(DatabentoLiveProtocol):
        greeted = 0

        def _process_gateway(self, data: bytes) -> None:
            self.greeted += len(data)
            if self.greeted > MAX_GREETING:
                text = f"{self.greeted:,} bytes arrived but no answer to the key"
                session.close(SessionEnd(EndReason.GARBAGE, text))
            else:
                super()._process_gateway(data)

        def _process_dbn(self, data: bytes) -> None:
            session.received(data)

        def connection_lost(self, exc: Exception | None) -> None:
            session.lost(exc)

    # typed as str, refused as str
    compression: Any = Compression.ZSTD if connector.zstd else Compression.NONE
    return Protocol(
        connector.key.get_secret_value(),
        connector.dataset,
        heartbeat_interval_s=connector.heartbeat_s,
        slow_reader_behavior="warn",
        compression=compression,
    )
