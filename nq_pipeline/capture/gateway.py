"""One session of the live gateway: connect, authenticate, subscribe, and hand on what comes as frames.

The protocol is the official client's own (`DatabentoLiveProtocol`), with the one method replaced
that would make an object of every record: bytes go from the socket through the framer to
whoever records them, within the same call. What the client does when a connection ends is
replaced as well: here a session ends once, in one of the ways of `reconnect.How`, and never
begins anew by itself.

The methods are private (`_process_dbn`, `_process_gateway`, databento 0.88); a test holds the installed
version to them.
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
    UNKNOWN_SYMBOL,
    EndReason,
    SessionEnd,
)
from nq_pipeline.dbn.framer import (
    CONTROL,
    ERROR,
    SYMBOL_MAPPING,
    SYSTEM,
    UNDEF_TIMESTAMP,
    ErrorMsg,
    Frame,
    Framer,
    SystemMsg,
)
from nq_pipeline.errors import BadStream, LogFailed
from nq_pipeline.market.contracts import ROOTS
from nq_pipeline.market.products import select_products
from nq_pipeline.redaction import keep_out_of_logs, spellings, strike

if TYPE_CHECKING:
    from pydantic import SecretStr

PORT = 13_000
CONNECT_S, AUTH_S = 10.0, 30.0
HEARTBEAT_S = 5
"""The shortest interval that the gateway documents; it sends one when it has nothing else to send."""
LATE_S = 10.0
"""How late a heartbeat may be before the connection counts as dead: what the official client allows. How
punctual the real gateway is in a quiet hour is not known."""
LONGEST_GREETING = 64 * 1024
"""Bytes that may come before the key is answered; a few lines do."""
FAREWELL_S = 1.0
"""How long the gateway may take to close after an error that ends the session."""

HEARTBEAT, ACKNOWLEDGED, SLOW_READER, REPLAY_COMPLETED = range(4)
"""Codes of system messages."""

_FINISHED = re.compile(r"Finished (\S+) replay")


def option_parents(products: Sequence[str] = ("NQ",)) -> tuple[str, ...]:
    """The parent symbols of some products' options: one for each Globex root.

    SettingsError for a product that is in no table.
    """
    families = [family for product in select_products(products) for family in product.families]
    return tuple(f"{root}.OPT" for family in families for root in family.roots)


def future_parents(products: Sequence[str] = ("NQ",)) -> tuple[str, ...]:
    """The parent symbols of their futures; SettingsError as above."""
    return tuple(f"{product.code}.FUT" for product in select_products(products))


def gateway_address(gateway: str | None, dataset: str) -> tuple[str, int]:
    """Host and port of a dataset's gateway, or of the one that is configured as host:port."""
    if gateway is None:
        return f"{dataset.lower().replace('.', '-')}.lsg.databento.com", PORT
    host, _, port = gateway.rpartition(":")
    return host.strip("[]"), int(port)


@dataclass(frozen=True, slots=True)
class Subscription:
    """A schema of some parent symbols, from an instant on (nanoseconds UTC) or from now on."""

    schema: str
    parents: tuple[str, ...]
    start_ns: int | None = None


@dataclass(slots=True)
class SessionState:
    """What is known of a session while it lasts.

    Attributes
    ----------
    session_id
        The gateway's own.
    last_heard
        When bytes came last, in seconds of the event loop's clock.
    began
        When the first bytes of the stream came, likewise.
    lived_s
        For how long bytes of the stream came, seconds.
    heard_ns
        Up to when the gateway has sent what it had: the newest `ts_recv`, or heartbeat, which it sends
        when there is nothing else. By its own clock, nanoseconds UTC, so that a backlog shows.
    records, bytes
        Market data; bytes of the stream as they came over the wire.
    mapped
        Parent symbols of which at least one instrument was named.
    replayed
        Schema to when its replay was completed, nanoseconds UTC by the gateway's clock.
    skipped
        What the gateway said when it left out records.
    warnings
        How often it complained of a slow reader.
    unknown
        What it said of symbols it does not know.
    """

    session_id: str = ""
    last_heard: float = 0.0
    began: float | None = None
    heard_ns: int = 0
    records: int = 0
    bytes: int = 0
    mapped: set[str] = field(default_factory=set)
    replayed: dict[str, int] = field(default_factory=dict)
    skipped: str = ""
    warnings: int = 0
    unknown: list[str] = field(default_factory=list)

    @property
    def lived_s(self) -> float:
        return 0.0 if self.began is None else self.last_heard - self.began


def missing_parents(parents: tuple[str, ...], mapped: set[str]) -> tuple[list[str], list[str]]:
    """The parents of which no instrument was named: those always listed, and those listed at times.

    The standard options and the future always are; a weekly or end-of-month root only some weeks
    ahead. Roots of a fifth week are left out, since few months have one.
    """
    absent = [parent for parent in parents if parent not in mapped]
    options = {parent: ROOTS.get(parent.removesuffix(".OPT")) for parent in absent}
    always = [p for p, root in options.items() if p.endswith(".FUT") or (root and root.family.is_standard)]
    at_times = [p for p, root in options.items() if p not in always and (root is None or root.week != 5)]
    return always, at_times


class GatewaySession:
    """A session, from the connection to its end.

    Parameters
    ----------
    record
        Is handed every frame, on the thread of the event loop. `LogFailed` is an end of its own
        kind; anything else it raises is raised to whoever awaits the end.
    heartbeat_s
        Asked of the gateway; silence for `LATE_S` longer ends the session, from the connection on.
    zstd
        Ask for a compressed stream.

    Attributes
    ----------
    state
        What is known so far.
    ending
        Completed at the end.
    """

    def __init__(
        self,
        key: SecretStr,
        dataset: str,
        record: Callable[[Frame], None],
        *,
        heartbeat_s: int = HEARTBEAT_S,
        late_s: float = LATE_S,
        zstd: bool = False,
    ) -> None:
        self.state = SessionState()
        self._key, self._dataset = key, dataset
        self._record = record
        self._silence_s = heartbeat_s + late_s
        self._heartbeat_s, self._zstd = heartbeat_s, zstd
        # Whatever the gateway repeats of the key is struck before anyone sees it.
        self._secrets = spellings({key.get_secret_value()})
        keep_out_of_logs(self._secrets)
        self._framer = Framer(secrets=self._secrets)
        self._loop = asyncio.get_running_loop()
        self._error: ErrorMsg | None = None
        self._authenticated: asyncio.Future[Any] | None = None
        self._transport: asyncio.Transport | None = None
        self._watching: asyncio.TimerHandle | None = None
        self.ending: asyncio.Future[SessionEnd] = self._loop.create_future()

    async def open(self, host: str, port: int, subscriptions: list[Subscription]) -> bool:
        """Connect, authenticate, subscribe and start; False when the session ended before."""
        protocol = _protocol(self, self._key, self._dataset, self._heartbeat_s, self._zstd)
        self._authenticated = protocol.authenticated
        assert self._authenticated is not None
        try:
            async with asyncio.timeout(CONNECT_S):
                await self._loop.create_connection(lambda: protocol, host, port)
        except OSError as error:  # refused, unreachable, unknown host, no answer in time
            reason = error.strerror or str(error) or "no answer"
            self._end(SessionEnd(EndReason.UNREACHABLE, f"{host}:{port}: {reason}"))
            return False
        self._transport = protocol.transport
        await asyncio.wait(
            {self._authenticated, self.ending}, timeout=AUTH_S, return_when=asyncio.FIRST_COMPLETED
        )
        if refusal := self._refusal():
            self._end(SessionEnd(EndReason.REFUSED, refusal))
        elif not self._authenticated.done():
            self._end(
                SessionEnd(
                    EndReason.UNREACHABLE, f"{host}:{port} did not answer the key in {AUTH_S:.0f} seconds"
                )
            )
        if self.ending.done():
            return False
        self.state.session_id = strike(self._authenticated.result() or "", self._secrets)
        for number, asked in enumerate(subscriptions):
            protocol.subscribe(asked.schema, asked.parents, "parent", asked.start_ns, subscription_id=number)
        protocol.start()
        self.state.last_heard = self._loop.time()
        self._watch()
        return True

    def close(self, ending: SessionEnd) -> None:
        """End the session from this side."""
        self._end(ending)

    # ── what the protocol tells ─────────────────────────────────────────────────────────────────

    def received(self, data: bytes) -> None:
        """A chunk of the stream."""
        if self.ending.done():
            return
        state = self.state
        state.last_heard = self._loop.time()
        state.bytes += len(data)
        if state.began is None:
            state.began = state.last_heard
        try:
            for frame in self._framer.feed(data):
                self._note(frame)
                self._record(frame)
        except BadStream as error:
            self._end(SessionEnd(EndReason.GARBAGE, str(error)))
        except LogFailed as error:
            self._end(SessionEnd(EndReason.FAILED, str(error)))
        except Exception as error:
            self._leave()
            self.ending.set_exception(error)

    def lost(self, error: Exception | None) -> None:
        """The connection is gone."""
        if self._error is not None:
            self._end(SessionEnd(EndReason.ERROR, self._error.text, self._error.code))
        elif self._framer.pending:
            self._end(SessionEnd(EndReason.CUT, f"{self._framer.pending} bytes of a record had come"))
        elif refusal := self._refusal():
            self._end(SessionEnd(EndReason.REFUSED, refusal))
        elif isinstance(error, OSError):
            self._end(SessionEnd(EndReason.RESET, error.strerror or type(error).__name__))
        elif error is not None:
            self._end(
                SessionEnd(EndReason.GARBAGE, f"the gateway's answer makes no sense ({type(error).__name__})")
            )
        elif not self.state.session_id:
            self._end(
                SessionEnd(
                    EndReason.UNREACHABLE, "the gateway closed the connection before it looked at the key"
                )
            )
        else:
            self._end(SessionEnd(EndReason.CLOSED))

    # ── inside ──────────────────────────────────────────────────────────────────────────────────

    def _refusal(self) -> str:
        """What the gateway said when it refused the key or the dataset; empty when it did not."""
        asked = self._authenticated
        refusal = asked.exception() if asked is not None and asked.done() else None
        return strike(str(refusal or ""), self._secrets)

    def _note(self, frame: Frame) -> None:
        """Take note of what the gateway itself says; mappings in columns, the rest is rare."""
        state, tallies = self.state, frame.tallies
        for rtype, tally in tallies.items():
            if rtype not in CONTROL:
                state.records += tally.count
                if tally.ts_recv is not None and tally.ts_recv != UNDEF_TIMESTAMP:
                    state.heard_ns = max(state.heard_ns, tally.ts_recv)
        if SYMBOL_MAPPING in tallies:
            named = np.unique(frame.array(SYMBOL_MAPPING)["stype_in_symbol"])
            state.mapped.update(name.decode("utf-8", "replace") for name in named.tolist())
        if ERROR not in tallies and SYSTEM not in tallies:
            return
        for message in frame.control():
            if isinstance(message, ErrorMsg):
                self._refused(message)
            elif isinstance(message, SystemMsg) and message.code == HEARTBEAT:
                if message.ts_event != UNDEF_TIMESTAMP:
                    state.heard_ns = max(state.heard_ns, message.ts_event)
            elif isinstance(message, SystemMsg) and message.code == SLOW_READER:
                state.warnings += 1
            elif (
                isinstance(message, SystemMsg)
                and message.ts_event != UNDEF_TIMESTAMP
                and (finished := _FINISHED.match(message.text))
            ):
                state.replayed[finished[1]] = message.ts_event

    def _refused(self, message: ErrorMsg) -> None:
        if message.code == SKIPPED_RECORDS:
            self.state.skipped = message.text
        elif message.code == UNKNOWN_SYMBOL:
            self.state.unknown.append(message.text)
        elif message.code not in NOT_FATAL and self._error is None:
            self._error = message
            self._loop.call_later(FAREWELL_S, self.lost, None)

    def _watch(self) -> None:
        """End the session when nothing came for too long; it begins before the first record does."""
        quiet = self._loop.time() - self.state.last_heard
        if quiet >= self._silence_s:
            self._end(SessionEnd(EndReason.SILENT, f"nothing came for {quiet:.1f} seconds"))
        elif not self.ending.done():
            self._watching = self._loop.call_later(self._silence_s - quiet, self._watch)

    def _end(self, ending: SessionEnd) -> None:
        if self.ending.done():
            return
        self.ending.set_result(ending)
        self._leave()

    def _leave(self) -> None:
        if self._watching:
            self._watching.cancel()
        if self._transport:
            self._transport.abort()


def _protocol(session: GatewaySession, key: SecretStr, dataset: str, heartbeat_s: int, zstd: bool) -> Any:
    """The official client's protocol, telling `session` what it receives and that it has ended."""
    from databento import Compression
    from databento.live.protocol import DatabentoLiveProtocol

    class Protocol(DatabentoLiveProtocol):
        greeted = 0

        def _process_gateway(self, data: bytes) -> None:
            self.greeted += len(data)
            if self.greeted > LONGEST_GREETING:
                session.close(
                    SessionEnd(EndReason.GARBAGE, f"{self.greeted:,} bytes came and no answer to the key")
                )
            else:
                super()._process_gateway(data)

        def _process_dbn(self, data: bytes) -> None:
            session.received(data)

        def connection_lost(self, exc: Exception | None) -> None:
            session.lost(exc)

    compression: Any = Compression.ZSTD if zstd else Compression.NONE  # typed as str, refused as str
    return Protocol(
        key.get_secret_value(),
        dataset,
        heartbeat_interval_s=heartbeat_s,
        slow_reader_behavior="warn",
        compression=compression,
    )
