"""The contract every vendor keeps: a request goes in, an answer with an outcome comes out.

A source never raises for what a vendor does or fails to do: that is its outcome. It raises
only for a fault of this program. Its frame has exactly the columns of
`lake.tables.SOURCE_CHAIN`; `answered()` casts and checks that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from decimal import Decimal
from typing import Protocol

import polars as pl

from nq_pipeline.errors import SourceError
from nq_pipeline.lake.tables import SOURCE_CHAIN
from nq_pipeline.market.contracts import Series
from nq_pipeline.outcome import Outcome
from nq_pipeline.redaction import redact
from nq_pipeline.transport.policy import Policy
from nq_pipeline.transport.vendor_session import VendorSession


@dataclass(frozen=True, slots=True)
class ChainRequest:
    """What is asked of every vendor in one snapshot.

    Attributes
    ----------
    snapshot_ts
        When the pipeline asks (aware, UTC; scheduled time for a scheduled run).
    moment
        The market moment asked about: `market.sessions.chain_moment(snapshot_ts, window)`.
    series
        The series wanted, in order of expiration; never empty.
    vendor_codes
        Vendor's own code by series key where the user gave one (`--series MM1N5`).
    refused
        Parts that the vendor's plan refused on this trade date (as `ChainAnswer.refused` names them)
        with its words: they are not asked for again.
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
    """What came of one series: its outcome and, when not ok, the reason in one sentence."""

    outcome: Outcome
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ChainAnswer:
    """What a vendor gave.

    Attributes
    ----------
    frame
        Rows of `SOURCE_CHAIN`; empty when there are none.
    series
        Outcome per series key. Keys are the requested series for native sources and the
        proxy's own series for proxies.
    dropped
        Count by reason of rows or cells that could not be used (`fractional_size`,
        `unknown_symbol`, `spread`, …): nothing disappears without a number here.
    controls
        Named control totals of the vendor and whether they held, for the quality check:
        `{"premium_is_last_times_20": True, "rows_equal_total": True}`.
    cached
        Whether this answer was served without asking the vendor again.
    refused
        Parts that the plan does not include though others came, with the vendor's words: schemas, or
        underlyings of proxies; `CHAIN` where what came is no more than a list.
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
    """A vendor's state for `nq doctor`: three facts and the mend for the first that fails."""

    configured: bool
    reachable: bool | None
    entitled: bool | None
    detail: str
    mend: str = ""


class Source(Protocol):
    """One vendor.

    Attributes
    ----------
    name
        The vendor's name in tables and settings.
    underlying_classes
        What its options are on; anything but {"future"} makes it a proxy.
    metered
        Whether asking may cost money; such a source is a `MeteredSource`.
    base_url
        Where it is asked; paths given to the exchange are relative to it.
    policy
        How fast and how often it may be asked.
    """

    name: str
    underlying_classes: frozenset[str]
    metered: bool
    base_url: str
    policy: Policy

    def ask(self, request: ChainRequest, exchange: VendorSession) -> ChainAnswer:
        """Ask the vendor for the chains of the requested series."""
        ...

    def probe(self, exchange: VendorSession) -> Probe:
        """Ask the cheapest free question that shows whether the vendor would answer."""
        ...


class MeteredSource(Source, Protocol):
    """A vendor that charges for its answers."""

    def price(self, request: ChainRequest, exchange: VendorSession) -> Decimal:
        """What `ask` would cost now, USD; asking this is free. Raises `SourceError` when unknown."""
        ...


def series_failure(error: SourceError) -> SeriesAnswer:
    """The answer of a series that has no rows, so that even a deadline leaves nothing `partial`."""
    outcome = Outcome.UNAVAILABLE if error.outcome is Outcome.PARTIAL else error.outcome
    return SeriesAnswer(outcome, str(error))


def failed(source: str, request: ChainRequest, error: SourceError) -> ChainAnswer:
    """The answer of a vendor that gave nothing at all."""
    failure = series_failure(error)
    return ChainAnswer(
        source=source,
        outcome=failure.outcome,
        reason=failure.reason,
        frame=SOURCE_CHAIN.empty(),
        series={series.key: failure for series in request.series},
    )


def without_secrets(answer: ChainAnswer, secrets: Collection[str]) -> ChainAnswer:
    """The answer whose words, which may be the vendor's, hold none of these secrets."""
    return replace(
        answer,
        reason=redact(answer.reason, secrets),
        series={
            key: SeriesAnswer(one.outcome, redact(one.reason, secrets)) for key, one in answer.series.items()
        },
        refused={part: redact(words, secrets) for part, words in answer.refused.items()},
    )


def chain_frame(columns: pl.DataFrame) -> pl.DataFrame:
    """Bring a vendor's normalised frame to the chain schema: add missing columns as null, cast, order.

    Raises `ValueError` when a column that may not be null is missing or holds a null: that is
    a fault of the parser, which must drop and count such rows itself.
    """
    schema = SOURCE_CHAIN.schema
    unknown = set(columns.columns) - set(schema)
    if unknown:
        raise ValueError(f"columns not in the chain schema: {sorted(unknown)}")
    frame = columns.select(
        [
            (pl.col(name) if name in columns.columns else pl.lit(None)).cast(dtype).alias(name)
            for name, dtype in schema.items()
        ]
    )
    required = [c.name for c in SOURCE_CHAIN.columns if not c.nullable]
    holes = [name for name in required if frame[name].null_count()]
    if holes:
        raise ValueError(f"columns that may not be null hold nulls: {holes}")
    return frame


def overall(outcomes: Sequence[Outcome]) -> Outcome:
    """The outcome of a whole answer from its series' outcomes.

    ok when all are ok (or a mix of ok and empty: an unlisted series is no fault); partial when
    some have rows; otherwise the most telling failure, in the order of the vocabulary.
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
