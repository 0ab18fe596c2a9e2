"""Every error this program raises on purpose.

    NqError                     one clear sentence: what, why, what to do
    ├── SettingsError           a setting is missing or makes no sense
    ├── LakeError               the lake on disk cannot be written or read as asked
    │   └── NoLake              there is none in the data folder
    ├── LedgerError             the spend ledger cannot be used, or cannot book what was asked of it
    ├── AlertError              what was alerted of is not known any more
    │   └── WebhookRefused      the webhook did not take a message; `passing` when that may change by itself
    ├── SandboxError            the stand-ins could not be started
    ├── UiError                 Dagster's UI could not be started, or ended by itself
    ├── CaptureError            the live capture cannot go on
    │   ├── BadStream           bytes that are no DBN records; `offset` says where
    │   ├── LogFailed           the capture log could not be written, and takes nothing more
    │   └── CaptureBusy         another process is capturing
    └── SourceError             a vendor did not give what was asked; carries the outcome
        ├── Blocked             bot protection or a ban: do not retry, cool down
        ├── NotEntitled         the plan does not include it: permanent until the plan changes
        ├── RateLimited         too many requests
        ├── BadPayload          an answer that is not what the protocol promises
        ├── Unavailable         nothing answered, or a server fault, after the retries
        ├── DeadlineReached     the time allowed for this source ran out
        ├── NotConfigured       a credential or an opt-in is missing
        └── OverBudget          the price is unknown or above what is allowed

A vendor's failure never leaves `Source.ask` as an exception: it becomes the outcome of
the answer. Exceptions of this tree that reach the command line print as one sentence.
"""

from __future__ import annotations

from nq_pipeline.outcome import Outcome


class NqError(Exception):
    """Base of all errors raised on purpose; `str()` is one sentence for a person."""


class SettingsError(NqError):
    """A setting is missing, contradictory or out of range."""


class SettingsWarning(UserWarning):
    """A variable looks like a setting and is none; shown by Python's warnings, never raised."""


class LakeError(NqError):
    """The lake cannot be written or read as asked."""


class NoLake(LakeError):
    """There is no lake in the data folder; the sentence has the absolute path that was looked in."""


class LedgerError(NqError):
    """The spend ledger cannot be opened or written, or what it is asked to book makes no sense."""


class AlertError(NqError):
    """It is not known what was alerted of."""


class WebhookRefused(AlertError):
    """The webhook did not take a message; says why, without its address.

    `passing` when any message would have met the same now: nothing answered, a server fault, too many.
    """

    def __init__(self, message: str, *, passing: bool, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.passing = passing
        self.retry_after_s = retry_after_s


class SandboxError(NqError):
    """The stand-ins could not be started or found."""


class UiError(NqError):
    """Dagster's UI could not be started, or ended by itself."""


class CaptureError(NqError):
    """The live capture cannot go on, or its log cannot be read."""


class BadStream(CaptureError):
    """Bytes that are no DBN records.

    `offset` counts the stream's bytes, decompressed, up to the first that makes no sense.
    """

    def __init__(self, message: str, *, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


class LogFailed(CaptureError):
    """The capture log could not be written; once raised, every later call raises it again."""


class CaptureBusy(CaptureError):
    """Another process is capturing."""


class SourceError(NqError):
    """A vendor did not give what was asked; `outcome` says which kind of failure it was."""

    outcome: Outcome = Outcome.UNAVAILABLE


class Blocked(SourceError):
    outcome = Outcome.BLOCKED


class NotEntitled(SourceError):
    outcome = Outcome.NOT_ENTITLED


class RateLimited(SourceError):
    outcome = Outcome.RATE_LIMITED


class BadPayload(SourceError):
    outcome = Outcome.BAD_PAYLOAD


class Unavailable(SourceError):
    outcome = Outcome.UNAVAILABLE


class DeadlineReached(SourceError):
    outcome = Outcome.PARTIAL


class NotConfigured(SourceError):
    outcome = Outcome.NOT_CONFIGURED


class OverBudget(SourceError):
    outcome = Outcome.OVER_BUDGET
