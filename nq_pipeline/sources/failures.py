"""How every source reports what went wrong: HTTP statuses, unusable answers, control totals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from nq_pipeline.errors import (
    BadPayload,
    Blocked,
    DeadlineReached,
    NoRoom,
    NotConfigured,
    NotEntitled,
    OverBudget,
    RateLimited,
    SourceError,
    Unavailable,
)
from nq_pipeline.transport.vendor_session import Reply, VendorSession

STOP_ERRORS = (Blocked, NotEntitled, RateLimited, DeadlineReached, NotConfigured, OverBudget, NoRoom)
"""Errors after which the next request to the same vendor would fail too."""

MAX_UNUSABLE_SHARE = 0.01
"""A series with a larger share of unusable rows or cells is `partial`."""


@contextmanager
def rejecting(session: VendorSession, reply: Reply) -> Iterator[None]:
    """Reject the reply when reading it raises a `SourceError`, so that the cache does not serve it again."""
    try:
        yield
    except SourceError as error:
        session.reject(reply, error.outcome, str(error))
        raise


def error_of_status(
    vendor: str,
    status: int | None,
    known: Mapping[int, SourceError],
    *,
    otherwise: type[SourceError] = BadPayload,
) -> SourceError:
    """The error of an HTTP status other than 200.

    `known` has the statuses that the vendor documents, or that were seen; `otherwise` is for others below
    500.
    """
    if status is not None and status in known:
        return known[status]
    if status is not None and status >= 500:
        return Unavailable(f"{vendor} answered HTTP {status}; try again later")
    return otherwise(f"{vendor} answered HTTP {status}, which it does not document")


def printable(words: object) -> str:
    """The vendor's own words as one printable line of at most 160 characters; empty if they are not text."""
    if not isinstance(words, str):
        return ""
    return "".join(c for c in " ".join(words.split()) if c.isprintable()).strip(' "\\')[:160]


def quoted(words: object) -> str:
    """`printable` words in brackets and quotes, after a space; empty when there are none."""
    text = printable(words)
    return f' ("{text}")' if text else ""


def describe_dropped(dropped: Mapping[str, int]) -> str:
    """Counts of unusable rows and cells in words, the largest first: `3 malformed cell, 1 duplicate`."""
    counts = Counter(dropped).most_common()
    return ", ".join(f"{n} {reason.replace('_', ' ')}" for reason, n in counts)


def merge_controls(controls: Iterable[Mapping[str, bool]]) -> dict[str, bool]:
    """Each control total, true when it held in every answer that has it."""
    merged: dict[str, bool] = {}
    for held in controls:
        for name, holds in held.items():
            merged[name] = merged.get(name, True) and holds
    return merged
