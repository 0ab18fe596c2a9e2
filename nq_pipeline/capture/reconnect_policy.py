"""What to do when a session of the gateway has ended: a rule for every kind of end.

Pure. The official client reconnects once, or never, or without pause, depending on how the
connection was lost; here every end inside the capture window leads to another attempt, unless
trying again cannot help. What is fatal and what is not follows Databento's documentation of
error codes; texts are those the gateway was seen to use, and an unknown one is treated as
something that may heal.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from nq_pipeline.clock import to_ns
from nq_pipeline.spend.entitlements import FALLBACK_ORDER

SPACING_S = 0.25
"""Between two connections; the gateway closes those beyond five a second and address at once."""
BASE_S, CAP_S = 0.5, 60.0
LIVED_S, ADVANCED_S = 5.0, 1.0
"""A session that lived so long, or carried the proven moment so far, was a success; see `is_healthy`."""
LIMIT_S, LIMIT_TRIES = 60.0, 10
"""The gateway may take a while to notice that our last session is dead; until then it counts."""

AUTH_FAILED, DEACTIVATED, CONNECTION_LIMIT, UNKNOWN_SYMBOL, BAD_SUBSCRIPTION = 1, 2, 3, 4, 5
INTERNAL, SKIPPED_RECORDS, AGED_OUT = 6, 7, 8
NOT_FATAL = frozenset({UNKNOWN_SYMBOL, SKIPPED_RECORDS})
"""Codes after which the session goes on."""

_SCHEMA = re.compile(r"not authorized for (\S+) schema", re.IGNORECASE)
_EARLIEST = re.compile(r"must be (\d{4}-\d\d-\d\dT[\d:.]+)Z? or later", re.IGNORECASE)
_HOPELESS = {
    "license": "the Databento plan has no live data for this dataset: {text} Take a plan with live data "
    "(CME Standard streams trades), or leave the capture off",
    "invoice": "Databento gives no data: {text} Pay the invoice and start the capture again",
    "deactivated": "Databento refuses the key: {text} Put another one into DATABENTO_API_KEY",
    "authentication failed": "Databento refuses the key: {text} Correct DATABENTO_API_KEY",
}
"""By what the refusal says, in lower case: why another attempt cannot help, and what can."""


class EndReason(StrEnum):
    """How a session ended."""

    CLOSED = "closed"  # an orderly end between two records
    RESET = "reset"
    CUT = "cut"  # any end within a record
    SILENT = "silent"  # nothing for longer than a heartbeat takes
    GARBAGE = "garbage"  # bytes that are no records
    UNREACHABLE = "unreachable"  # no connection, or closed before the key was looked at
    REFUSED = "refused"  # the key or the dataset, with a text
    ERROR = "error"  # an ErrorMsg with a code, then the end
    SKIPPED = "skipped"  # the gateway left out records; ended by us, to have them replayed
    REPAIR = "repair"  # a replay was found incomplete; ended by us, to repeat it
    STOPPED = "stopped"  # ended by us, for good
    FAILED = "failed"  # our own disk


@dataclass(frozen=True, slots=True)
class SessionEnd:
    """The end of a session.

    Attributes
    ----------
    text
        What the gateway or the operating system said.
    code
        Of the ErrorMsg, for `How.ERROR`.
    healthy
        Whether the session was a success before it ended; see `is_healthy`.
    """

    reason: EndReason
    text: str = ""
    code: int | None = None
    healthy: bool = False

    def __str__(self) -> str:
        code = "" if self.code is None else f" {self.code}"
        return f"{self.reason}{code}: {self.text}" if self.text else f"{self.reason}{code}"


@dataclass(frozen=True, slots=True)
class Attempts:
    """What was tried since the last sound session.

    Attributes
    ----------
    failed
        Sessions in a row that were not sound.
    limited
        How many of them the gateway refused for a reason that may pass with time alone.
    """

    failed: int = 0
    limited: int = 0

    def after(self, ending: SessionEnd) -> Attempts:
        if ending.healthy:
            return Attempts()
        limited = self.limited + (ending.code == CONNECTION_LIMIT or ending.reason is EndReason.REFUSED)
        return Attempts(self.failed + 1, limited)


@dataclass(frozen=True, slots=True)
class Retry:
    """Connect again.

    Attributes
    ----------
    after_s
        How long to wait first, seconds.
    replay_too_old
        The replay asked for was refused as too old.
    earliest_ns
        The earliest start that the refusal names, nanoseconds UTC, if it names one.
    """

    after_s: float
    replay_too_old: bool = False
    earliest_ns: int | None = None


@dataclass(frozen=True, slots=True)
class StepDown:
    """Connect again without this schema, which the plan does not include."""

    schema: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Do not connect again; `reason` is one sentence, None when all is as it should be.

    `entitled` is False when the plan lacks the dataset.
    """

    reason: str | None
    entitled: bool = True


def is_healthy(lived_s: float, advanced_s: float) -> bool:
    """Whether a session did its work, so that the next one may follow without a pause.

    Records alone prove nothing: a gateway may send the first ones of a replay again and again.

    Parameters
    ----------
    lived_s
        From the first bytes of the stream to the last, seconds.
    advanced_s
        By how much the session moved the moment up to which everything is proven, seconds.
    """
    return lived_s >= LIVED_S or advanced_s >= ADVANCED_S


def next_step(
    ending: SessionEnd, attempts: Attempts, *, now: datetime, closes: datetime | None, chance: float
) -> Retry | StepDown | Stop:
    """What to do after a session, or an attempt at one, has ended.

    Parameters
    ----------
    attempts
        What was tried before, without this one.
    closes
        When the capture ends in any case; None for never.
    chance
        A random number in [0, 1): the jitter that keeps many clients from coming at once.
    """
    if ending.reason is EndReason.STOPPED or (closes is not None and now >= closes):
        return Stop(None)
    if ending.reason is EndReason.FAILED:
        return Stop(ending.text)
    backoff = 0.0 if ending.healthy else _backoff(attempts.failed, chance)
    if ending.reason is EndReason.REFUSED:
        return _hopeless(ending.text) or _limited(ending, attempts)
    if ending.reason is not EndReason.ERROR:
        return Retry(backoff)
    if (refused := _SCHEMA.search(ending.text)) and (schema := refused[1].lower()) in FALLBACK_ORDER:
        return StepDown(schema)
    if ending.code == AGED_OUT or _EARLIEST.search(ending.text):
        return Retry(backoff, replay_too_old=True, earliest_ns=_earliest(ending.text))
    if ending.code == CONNECTION_LIMIT:
        return _limited(ending, attempts)
    if ending.code in (AUTH_FAILED, DEACTIVATED):
        return _hopeless(ending.text) or Stop(f"Databento refuses the key: {_sentence(ending.text)}")
    if ending.code == BAD_SUBSCRIPTION:
        return _hopeless(ending.text) or Stop(
            f"the gateway does not accept the subscription: {_sentence(ending.text)} Asking again would "
            "not help; check NQ_CAPTURE_SCHEMA and NQ_DATABENTO_DATASET"
        )
    return Retry(backoff)


def _backoff(failed: int, chance: float) -> float:
    """Nothing before the first attempt, then full jitter below a doubling bound."""
    return chance * min(CAP_S, BASE_S * 2 ** min(failed, 16)) if failed else 0.0


def _limited(ending: SessionEnd, attempts: Attempts) -> Retry | Stop:
    if attempts.limited + 1 < LIMIT_TRIES:
        return Retry(LIMIT_S)
    return Stop(
        f"the gateway refused {LIMIT_TRIES} attempts in {LIMIT_TRIES - 1} minutes: {_sentence(ending.text)} "
        "End other sessions of this account and start the capture again"
    )


def _hopeless(text: str) -> Stop | None:
    for sign, why in _HOPELESS.items():
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
    said = " ".join(text.split()) or "it gave no reason."
    return said if said.endswith((".", "!", "?")) else f"{said}."
