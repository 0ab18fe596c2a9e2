"""What to do when a gateway session has ended: one rule for each way to end. Pure.

The official client reconnects once, never, or without pause, depending on how the connection was lost.
Here every end inside the capture window leads to another attempt, unless that cannot help. Which codes
are fatal follows Databento's documentation; the texts are those the gateway was observed to use, and an
unknown text counts as temporary.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from nq_pipeline.capture.schema_fallback import FALLBACK_ORDER
from nq_pipeline.clock import to_ns

SPACING_S = 0.25
"""Between two connections; the gateway closes those beyond five a second per address at once."""
BASE_S, CAP_S = 0.5, 60.0
LIVED_S, ADVANCED_S = 5.0, 1.0
"""The limits of `is_healthy`."""
LIMIT_S, LIMIT_TRIES = 60.0, 10
"""The gateway may take a while to notice that our last session is dead, and counts it until then."""

AUTH_FAILED, DEACTIVATED, CONNECTION_LIMIT, UNKNOWN_SYMBOL, BAD_SUBSCRIPTION = 1, 2, 3, 4, 5
INTERNAL, SKIPPED_RECORDS, AGED_OUT = 6, 7, 8
NOT_FATAL = frozenset({UNKNOWN_SYMBOL, SKIPPED_RECORDS})
"""Codes after which the session continues."""

_SCHEMA = re.compile(r"not authorized for (\S+) schema", re.IGNORECASE)
_EARLIEST = re.compile(r"must be (\d{4}-\d\d-\d\dT[\d:.]+)Z? or later", re.IGNORECASE)
_PERMANENT = {
    "license": "the Databento plan has no live data for this dataset: {text} Take a plan with live data "
    "(CME Standard streams trades), or leave the capture off",
    "invoice": "Databento refuses to send data: {text} Pay the invoice and start the capture again",
    "deactivated": "Databento refuses the key: {text} Set another one as DATABENTO_API_KEY",
    "authentication failed": "Databento refuses the key: {text} Correct DATABENTO_API_KEY",
}
"""Words of a refusal, in lower case, after which another attempt cannot help; the reason and the remedy."""


class EndReason(StrEnum):
    """How a session ended."""

    CLOSED = "closed"  # orderly, between two records
    RESET = "reset"
    CUT = "cut"  # in any way, within a record
    SILENT = "silent"  # no bytes for longer than a heartbeat interval
    GARBAGE = "garbage"  # bytes that are not records
    UNREACHABLE = "unreachable"  # no connection, or closed before the key was checked
    REFUSED = "refused"  # the key or the dataset, with a text
    ERROR = "error"  # an ErrorMsg with a code, then the end
    SKIPPED = "skipped"  # the gateway skipped records; we end the session to have them replayed
    REPAIR = "repair"  # a replay was incomplete; we end the session to repeat it
    STOPPED = "stopped"  # we end the capture
    FAILED = "failed"  # our disk


@dataclass(frozen=True, slots=True)
class SessionEnd:
    """The end of one session: its reason, and what the gateway or the operating system said."""

    reason: EndReason
    text: str = ""  # the message of the gateway or the operating system
    code: int | None = None  # of the ErrorMsg, for `EndReason.ERROR`
    healthy: bool = False  # see `is_healthy`

    def __str__(self) -> str:
        code = "" if self.code is None else f" {self.code}"
        return f"{self.reason}{code}: {self.text}" if self.text else f"{self.reason}{code}"


@dataclass(frozen=True, slots=True)
class Attempts:
    """How many sessions in a row failed, and of those, were refused for a reason that may pass with time."""

    failed: int = 0
    limited: int = 0

    def after(self, ending: SessionEnd) -> Attempts:
        if ending.healthy:
            return Attempts()
        limited = self.limited + (ending.code == CONNECTION_LIMIT or ending.reason is EndReason.REFUSED)
        return Attempts(self.failed + 1, limited)


@dataclass(frozen=True, slots=True)
class Retry:
    """Connect again after a pause in seconds.

    If the requested replay was refused as too old, `earliest_ns` is the earliest start that the refusal
    names, nanoseconds UTC; None if it names none.
    """

    after_s: float
    replay_too_old: bool = False
    earliest_ns: int | None = None


@dataclass(frozen=True, slots=True)
class StepDown:
    """Connect again without a schema that the plan does not include."""

    schema: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Do not connect again. `reason` is None if all is well; `entitled` is False if the plan lacks data."""

    reason: str | None
    entitled: bool = True


def is_healthy(lived_s: float, advanced_s: float) -> bool:
    """Whether a session succeeded, so that the next one may follow without a pause.

    It did if it sent bytes for long enough, or moved the moment up to which everything is proven. Records
    alone prove nothing: a gateway may send the first ones of a replay again and again.
    """
    return lived_s >= LIVED_S or advanced_s >= ADVANCED_S


def next_step(
    ending: SessionEnd, attempts: Attempts, *, now: datetime, closes: datetime | None, chance: float
) -> Retry | StepDown | Stop:
    """What to do after a session, or an attempt at one, has ended.

    `attempts` are those before this one. The capture ends at `closes` in any case; None for never. `chance`
    is the jitter, in [0, 1), which keeps clients from reconnecting all at once.
    """
    if ending.reason is EndReason.STOPPED or (closes is not None and now >= closes):
        return Stop(None)
    if ending.reason is EndReason.FAILED:
        return Stop(ending.text)
    backoff = 0.0 if ending.healthy else _backoff(attempts.failed, chance)
    if ending.reason is EndReason.REFUSED:
        return _permanent(ending.text) or _limited(ending, attempts)
    if ending.reason is not EndReason.ERROR:
        return Retry(backoff)
    if (refused := _SCHEMA.search(ending.text)) and (schema := refused[1].lower()) in FALLBACK_ORDER:
        return StepDown(schema)
    if ending.code == AGED_OUT or _EARLIEST.search(ending.text):
        return Retry(backoff, replay_too_old=True, earliest_ns=_earliest(ending.text))
    if ending.code == CONNECTION_LIMIT:
        return _limited(ending, attempts)
    if ending.code in (AUTH_FAILED, DEACTIVATED):
        return _permanent(ending.text) or Stop(f"Databento refuses the key: {_sentence(ending.text)}")
    if ending.code == BAD_SUBSCRIPTION:
        why = f"the gateway does not accept the subscription: {_sentence(ending.text)}"
        return _permanent(ending.text) or Stop(f"{why} Check NQ_CAPTURE_SCHEMA and NQ_DATABENTO_DATASET")
    return Retry(backoff)


def _backoff(failed: int, chance: float) -> float:
    """No pause before the first attempt, then full jitter below a doubling bound."""
    return chance * min(CAP_S, BASE_S * 2 ** min(failed, 16)) if failed else 0.0


def _limited(ending: SessionEnd, attempts: Attempts) -> Retry | Stop:
    if attempts.limited + 1 < LIMIT_TRIES:
        return Retry(LIMIT_S)
    return Stop(
        f"the gateway refused {LIMIT_TRIES} attempts in {LIMIT_TRIES - 1} minutes: {_sentence(ending.text)} "
        "End other sessions of this account and start the capture again"
    )


def _permanent(text: str) -> Stop | None:
    for sign, why in _PERMANENT.items():
        if sign in text.lower():
            return Stop(why.format(text=_sentence(text)), entitled=sign != "license")
    return None


def _earliest(text: str) -> int | None:
    named = _EARLIEST.search(text)
    try:
        return to_ns(datetime.fromisoformat(named[1]).replace(tzinfo=UTC)) if named else None
    except ValueError:
        return None


def _sentence(text: str) -> str:
    words = " ".join(text.split()) or "it gave no reason."
    return words if words.endswith((".", "!", "?")) else f"{words}."
