"""The conversation with Tradovate's market-data websocket.

Frames of the client: endpoint, request id, query and body on four lines, and `[]` as a heartbeat.
`transcript.py` has the frames of the server. The protocol is documented by the vendor and was seen in public
projects; that options can be subscribed to by contract id, like futures, is our assumption.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import orjson

from nq_pipeline.errors import (
    BadPayload,
    Blocked,
    DeadlineReached,
    NotEntitled,
    RateLimited,
    SourceError,
    Unavailable,
)
from nq_pipeline.sources.tradovate.transcript import AUTHORIZE_ID, Transcript

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

QUIET_S = 0.3
"""Once every subscription is answered and quoted, this long without a frame ends the conversation."""
MAX_FRAME_BYTES = 4 * 1024 * 1024
MAX_TRANSCRIPT_BYTES = 16 * 1024 * 1024
_LOG = logging.getLogger(f"{__name__}.frames")
_LOG.setLevel(logging.INFO)  # at DEBUG the library logs every frame, and one of them is the token

SelectContracts = Callable[[Transcript], Sequence[int]]


def record_quotes(
    url: str,
    token: str,
    futures: Sequence[int],
    select: SelectContracts,
    *,
    wait_s: float,
    heartbeat_s: float,
    timeout_s: float,
    remaining: Callable[[], float],
) -> bytes:
    """Log in, subscribe to the futures, then to the options that `select` picks, and record the quotes.

    Parameters
    ----------
    select
        Contract ids of the options to subscribe to, from the transcript with the futures' quotes.
    wait_s
        Seconds to listen after the last subscription was answered; it ends earlier when every contract
        is quoted and no frame comes.
    timeout_s
        Seconds within which the next answer must come.

    Returns the transcript's bytes, without the token. Its last line is `>lost`, `>deadline` or `>unanswered`
    when the conversation was cut short after something was quoted. When nothing was, raises the
    `SourceError`.
    """
    from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
    from websockets.sync.client import connect

    if remaining() <= 0:
        raise DeadlineReached("no time was left to request quotes from Tradovate")
    try:
        # No proxy from the environment: a token goes where the settings say and nowhere else.
        socket = connect(
            url,
            open_timeout=min(timeout_s, remaining()),
            close_timeout=0.2,
            max_size=MAX_FRAME_BYTES,
            proxy=None,
            logger=_LOG,
        )
    except InvalidStatus as error:
        raise _error_of_handshake(error.response.status_code) from None
    except (OSError, InvalidHandshake, TimeoutError, EOFError) as error:
        raise Unavailable(f"no websocket at NQ_TRADOVATE_MD_URL ({type(error).__name__})") from None
    conversation = _Conversation(socket, token, heartbeat_s, timeout_s, remaining)
    try:
        with socket:
            conversation.authorize()
            for contract_id in futures:
                conversation.subscribe(contract_id)
            conversation.listen(wait_s, until=lambda transcript: all(map(transcript.price, futures)))
            for contract_id in select(conversation.transcript):
                conversation.subscribe(contract_id)
            conversation.listen(wait_s)
    except (ConnectionClosed, OSError):
        conversation.record(">lost")
    transcript = conversation.transcript
    if remaining() <= 0:
        conversation.record(">deadline")
    elif not transcript.all_answered:
        conversation.record(">unanswered")
    if not transcript.quotes:
        reason = transcript.error or next(iter(transcript.refused.values()), None)
        if reason is not None:
            raise reason
    return "\n".join(conversation.lines).encode()


@dataclass
class _Conversation:
    """One connection: its lines so far, the transcript that they make, and the heartbeat."""

    socket: ClientConnection
    token: str = field(repr=False)
    heartbeat_s: float
    timeout_s: float
    remaining: Callable[[], float]
    lines: list[str] = field(default_factory=list)
    transcript: Transcript = field(default_factory=Transcript)
    _next_id: int = AUTHORIZE_ID + 1
    _beat_at: float = 0.0
    _bytes: int = 0

    def __post_init__(self) -> None:
        self._beat_at = time.monotonic() + self.heartbeat_s

    def authorize(self) -> None:
        self.socket.send(f"authorize\n{AUTHORIZE_ID}\n\n{self.token}")
        self.listen(self.timeout_s, until=lambda transcript: AUTHORIZE_ID in transcript.answered)
        if self.transcript.authorized or self.transcript.error is not None:
            return
        raise self.transcript.refused.get(AUTHORIZE_ID) or Unavailable(
            f"Tradovate did not answer the websocket's login within {self.timeout_s:.0f} s"
        )

    def subscribe(self, contract_id: int) -> None:
        if self.transcript.error is None:
            number, self._next_id = self._next_id, self._next_id + 1
            body = orjson.dumps({"symbol": contract_id}).decode()
            self.socket.send(f"md/subscribeQuote\n{number}\n\n{body}")
            self.record(f">subscribe {number} {contract_id}")

    def listen(self, wait_s: float, until: Callable[[Transcript], bool] = lambda _: False) -> None:
        """Receive frames until `until` holds, all is quoted and no frame comes, or time is up.

        Time counts from the newest answer: many subscriptions may take long, but a feed that no
        longer answers may not.
        """
        answered_at = heard_at = time.monotonic()
        while self.transcript.error is None and not until(self.transcript):
            now = time.monotonic()
            patience = wait_s if self.transcript.all_answered else self.timeout_s
            end = min(answered_at + patience, now + self.remaining())
            idle = bool(self.transcript.subscribed) and not self.transcript.waiting
            if now >= end or (idle and now >= heard_at + QUIET_S):
                return
            if now >= self._beat_at:
                self.socket.send("[]")
                self._beat_at = now + self.heartbeat_s
            wake = min(end, self._beat_at, heard_at + QUIET_S if idle else end)
            try:
                frame = self.socket.recv(timeout=max(0.0, wake - now))
            except TimeoutError:
                continue
            heard_at = time.monotonic()
            answers = len(self.transcript.answered)
            text = frame if isinstance(frame, str) else frame.decode(errors="replace")
            self.record(f"?{text}" if text.startswith(">") else text)
            if len(self.transcript.answered) > answers:
                answered_at = heard_at

    def record(self, line: str) -> None:
        """Add a line to the transcript. A frame stays one line, and the token is struck out."""
        line = line.replace("\n", " ").replace(self.token, "[token]")
        self._bytes += len(line)
        if self._bytes > MAX_TRANSCRIPT_BYTES:
            raise BadPayload(f"more than {MAX_TRANSCRIPT_BYTES >> 20} MiB of quotes were refused")
        self.lines.append(line)
        self.transcript.add(line)


def _error_of_handshake(status: int) -> SourceError:
    limited = RateLimited(f"Tradovate answers HTTP {status} on its websocket: too many requests")
    known = {
        401: NotEntitled("Tradovate refuses the market-data websocket (HTTP 401)"),
        403: Blocked("Tradovate refuses the market-data websocket (HTTP 403)"),
        423: limited,
        429: limited,
    }
    return known.get(
        status,
        Unavailable(f"Tradovate's market-data address answers HTTP {status}; check NQ_TRADOVATE_MD_URL"),
    )
