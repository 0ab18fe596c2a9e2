"""The outcome of a request to a vendor: the closed vocabulary of tables, checks and messages."""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """The outcome of one request, one series or one whole answer.

    Three of the four vendors also send failures with HTTP status 200, so the body counts, too.
    """

    OK = "ok"
    PARTIAL = "partial"
    EMPTY = "empty"
    STALE = "stale"
    BLOCKED = "blocked"
    NOT_ENTITLED = "not_entitled"
    RATE_LIMITED = "rate_limited"
    BAD_PAYLOAD = "bad_payload"
    UNAVAILABLE = "unavailable"
    NOT_CONFIGURED = "not_configured"
    OVER_BUDGET = "over_budget"

    @property
    def has_rows(self) -> bool:
        """Whether an answer with this outcome has usable rows."""
        return self in (Outcome.OK, Outcome.PARTIAL, Outcome.STALE)
