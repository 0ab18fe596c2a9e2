"""Every error this program raises on purpose; `nq` ends with exit code 1 unless the class states another.

The message is one sentence for a person: what happened, why, and what to do. A vendor's failure does not
leave `Source.ask` as an exception: it becomes the outcome of the answer.
"""

from __future__ import annotations

from nq_pipeline.outcome import Outcome


class NqError(Exception):
    """Base of all errors raised on purpose; `str()` is one sentence for a person."""


class SettingsError(NqError):
    """A setting is missing, contradictory or out of range. Exit code 2."""


class SettingsWarning(UserWarning):
    """A variable looks like a setting but is not one; a warning, never raised."""


class NoSession(NqError):
    """The day is not a CME trade date: a weekend, a holiday, or a year that is not supported."""


class LakeError(NqError):
    """The lake cannot be written or read."""


class StaleToken(LakeError):
    """The writer's lease is older than one under which rows were accepted; it writes nothing more."""


class NoLake(LakeError):
    """The data folder has no lake; the message names its absolute path. Exit code 6."""


class ExportError(NqError):
    """The format of an export cannot hold what was selected, or there is nothing to export."""


class ExportUsage(ExportError):
    """The options of an export do not fit each other, its format or a table. Exit code 2."""


class StoreError(NqError):
    """The object store does not answer or refuses; the message names the bucket and no secret."""


class LedgerError(NqError):
    """The spend ledger cannot be opened or written, or an entry is invalid."""


class OtherLake(NqError):
    """The ledger that several machines share belongs to another lake than the one this machine sees."""


class LeaseHeld(NqError):
    """Another process, perhaps on another machine, holds the lease."""


class LeaseLost(NqError):
    """A lease could not be renewed in time, or another process has taken it: stop the work it protects."""


class AlertError(NqError):
    """The state of the alerts cannot be read."""


class WebhookRefused(AlertError):
    """The webhook did not accept a message, and asked to wait `retry_after_s`. Never contains its address.

    If `retryable`, the same message may succeed later, and any other message would fail now: no answer, a
    server fault, too many requests.
    """

    def __init__(self, message: str, *, retryable: bool, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.retry_after_s = retry_after_s


class SandboxError(NqError):
    """The stand-ins could not be started or found."""


class ServeError(NqError):
    """A server cannot listen, or may not without a token."""


class UiError(NqError):
    """Dagster's UI could not be started, or ended."""


class CaptureError(NqError):
    """The live capture cannot continue, or its log cannot be read."""


class BadStream(CaptureError):
    """The bytes are not DBN records; `offset` is the position of the first bad byte, decompressed."""

    def __init__(self, message: str, *, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


class LogFailed(CaptureError):
    """The capture log cannot be written; once raised, every later call raises it again."""


class CaptureBusy(CaptureError):
    """Another process is capturing."""


class StreamError(NqError):
    """A subscription cannot begin or go on."""


class BadCursor(StreamError):
    """A cursor is damaged, of another stream, or older than the capture log."""


class TooSlow(StreamError):
    """A subscriber does not keep up; it can subscribe again with its last cursor."""


class SourceError(NqError):
    """A vendor failed; `outcome` is the kind of failure."""

    outcome = Outcome.UNAVAILABLE


class Blocked(SourceError):
    """Bot protection or a ban; do not retry."""

    outcome = Outcome.BLOCKED


class NotEntitled(SourceError):
    """The plan does not include it."""

    outcome = Outcome.NOT_ENTITLED


class RateLimited(SourceError):
    """Too many requests."""

    outcome = Outcome.RATE_LIMITED


class BadPayload(SourceError):
    """The answer breaks the protocol."""

    outcome = Outcome.BAD_PAYLOAD


class Unavailable(SourceError):
    """No answer or a server fault, after retries."""


class NoRoom(Unavailable):
    """The disk has no room for an answer that costs money, so it was not requested."""


class DeadlineReached(SourceError):
    """The time limit of the source was reached."""

    outcome = Outcome.PARTIAL


class NotConfigured(SourceError):
    """A credential or an opt-in is missing."""

    outcome = Outcome.NOT_CONFIGURED


class OverBudget(SourceError):
    """The price is unknown or exceeds a budget."""

    outcome = Outcome.OVER_BUDGET
