"""The contract of every source: it gets a `ChainRequest` and returns a `ChainAnswer` with an outcome.

Whatever a vendor does or fails to do is an outcome. A source raises only for a fault of this program. Its
frame has exactly the columns of `lake.tables.SOURCE_CHAIN`, which `chain_frame` checks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from decimal import Decimal
from typing import Protocol

import polars as pl

from nq_pipeline.errors import LakeError, SourceError
from nq_pipeline.lake.tables import SOURCE_CHAIN, conform
from nq_pipeline.market.contracts import Series
from nq_pipeline.outcome import Outcome
from nq_pipeline.redaction import redact
from nq_pipeline.transport.policy import Policy
from nq_pipeline.transport.vendor_session import VendorSession


@dataclass(frozen=True, slots=True)
class ChainRequest:
    """What one snapshot requests from every source.

    Attributes
    ----------
    snapshot_ts
        When the pipeline asks (aware, UTC; the scheduled time for a scheduled run).
    moment
        The moment of the market: `market.sessions.chain_moment(snapshot_ts, window)`.
    series
        In order of expiration; never empty.
    vendor_codes
        The vendor's own code by series key where the user gave one (`--series MM1N5`).
    refused
        Parts of the chain that the vendor's plan refused on this trade date, as in `ChainAnswer.refused`. The
        source does not request them again.
    """

    trade_date: date
    snapshot_ts: datetime
    moment: datetime
    series: tuple[Series, ...]
    run_id: str
    environment: str
    vendor_codes: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SeriesAnswer:
    """The outcome of one series. The reason is one sentence, empty when the outcome is ok."""

    outcome: Outcome
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ChainAnswer:
    """A source's answer to a request.

    Attributes
    ----------
    series
        Outcome by series key: the requested series, or a proxy's own.
    dropped
        Count by reason of every row or cell that could not be used (`unknown_symbol`, `spread`, …).
    controls
        Whether the vendor's control totals held, by name: `{"rows_equal_total": True}`.
    refused
        The vendor's message for each part that the plan does not include, although other parts came. A part
        is a schema, the underlying of a proxy, or `WHOLE_CHAIN` when only a list of contracts came.
    """

    source: str
    outcome: Outcome
    reason: str
    frame: pl.DataFrame
    series: Mapping[str, SeriesAnswer]
    dropped: Counter[str] = field(default_factory=Counter)
    controls: Mapping[str, bool] = field(default_factory=dict)
    cached: bool = False
    refused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Probe:
    """A vendor's state for `nq doctor`: three facts and the remedy for the first that fails."""

    configured: bool
    reachable: bool | None
    entitled: bool | None
    detail: str
    remedy: str = ""


class Source(Protocol):
    """The source of one vendor's chains.

    Attributes
    ----------
    underlying_classes
        The kinds of underlying of its options: future, index, etf. A source without `future` is a proxy.
    metered
        Whether a request may cost money; such a source is a `MeteredSource`.
    base_url
        Paths given to the session are relative to it.
    """

    name: str
    underlying_classes: frozenset[str]
    metered: bool
    base_url: str
    policy: Policy

    def ask(self, request: ChainRequest, session: VendorSession) -> ChainAnswer:
        """Fetch the chains of the requested series."""
        ...

    def probe(self, session: VendorSession) -> Probe:
        """Send the cheapest free request that shows whether the vendor would answer.

        Raises the `SourceError` of a request that failed.
        """
        ...


class MeteredSource(Source, Protocol):
    """A source whose vendor charges for its answers."""

    def price(self, request: ChainRequest, session: VendorSession) -> Decimal:
        """Fetch the cost of `ask`, USD; this is free. Raises `SourceError` when the cost is unknown."""
        ...


def series_failure(error: SourceError) -> SeriesAnswer:
    """The answer of a series without rows: a deadline, otherwise `partial`, makes it `unavailable`."""
    outcome = Outcome.UNAVAILABLE if error.outcome is Outcome.PARTIAL else error.outcome
    return SeriesAnswer(outcome, str(error))


def failed(source: str, request: ChainRequest, error: SourceError) -> ChainAnswer:
    """The answer of a source that received nothing."""
    failure = series_failure(error)
    return ChainAnswer(
        source=source,
        outcome=failure.outcome,
        reason=failure.reason,
        frame=SOURCE_CHAIN.empty(),
        series={series.key: failure for series in request.series},
    )


def without_secrets(answer: ChainAnswer, secrets: Collection[str]) -> ChainAnswer:
    """The answer with these secrets redacted from its messages, which may quote the vendor."""
    return replace(
        answer,
        reason=redact(answer.reason, secrets),
        series={
            key: SeriesAnswer(one.outcome, redact(one.reason, secrets)) for key, one in answer.series.items()
        },
        refused={part: redact(words, secrets) for part, words in answer.refused.items()},
    )


def chain_frame(columns: pl.DataFrame) -> pl.DataFrame:
    """Bring a normalized frame to the chain schema: add missing columns as null, cast, order.

    Raises `ValueError` for an unknown column, and when a column that may not be null is missing or holds a
    null: the parser must drop and count such rows itself.
    """
    try:
        return conform(SOURCE_CHAIN, columns)
    except LakeError as error:
        raise ValueError(str(error)) from None  # the fault is in the source's code, not in the lake


def overall(outcomes: Sequence[Outcome]) -> Outcome:
    """The outcome of a whole answer from its series' outcomes.

    `ok` when all are ok or empty and one is ok, since an unlisted series is not a fault; `partial` when only
    some have rows; otherwise the failure that comes last in `Outcome`.
    """
    if not outcomes:
        return Outcome.EMPTY
    kinds = set(outcomes)
    if kinds <= {Outcome.OK, Outcome.EMPTY}:
        return Outcome.OK if Outcome.OK in kinds else Outcome.EMPTY
    if kinds == {Outcome.STALE} or kinds == {Outcome.STALE, Outcome.EMPTY}:
        return Outcome.STALE
    if any(kind.has_rows for kind in kinds):
        return Outcome.PARTIAL
    return max(kinds - {Outcome.EMPTY}, key=list(Outcome).index)
