"""The outcome of a request to a vendor: the closed vocabulary of tables, checks and messages."""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """The outcome of one request, one series or one whole answer.

    HTTP status 200 proves nothing at three of the four vendors, so the body decides, too.
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
        """Whether an answer of this outcome carries usable rows."""
        return self in (Outcome.OK, Outcome.PARTIAL, Outcome.STALE)
