"""Which source wins each series, and why the others did not. Pure.

Each series is decided alone, so that a missing series does not cost a vendor the whole chain. A candidate is
*sound* when it has rows with prices, its newest quote or trade is fresh and not in the future, and its quotes
are plausible. It is *healthy* when it is also complete: its vendor says so, and it has about as many
contracts as the fullest sound native answer. The first healthy source by priority wins; where none is
healthy, the sound one with the most quotes. A stale or failed source never wins. A proxy (index or fund
options) wins only when no native source won a series of the product it stands for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import polars as pl

from nq_pipeline.lake.tables import DECISIONS, OPTION_CHAIN, conform
from nq_pipeline.market import sessions
from nq_pipeline.market.contracts import Series
from nq_pipeline.market.sessions import in_chicago
from nq_pipeline.outcome import Outcome
from nq_pipeline.sources.base import ChainAnswer, ChainRequest, SeriesAnswer

NATIVE = "future"
_BID, _ASK = pl.col("bid"), pl.col("ask")
QUOTED = _BID.is_not_null() | _ASK.is_not_null()
BAD_QUOTE = (_BID > _ASK) | (_BID < 0) | (_ASK < 0) | ~_BID.is_finite() | ~_ASK.is_finite()
"""Crossed, negative or not finite."""
SKEW = timedelta(days=1)
"""How far a vendor's clock or time zone may run ahead of the request."""


@dataclass(frozen=True, slots=True)
class Gates:
    """Limits of a healthy series; the settings of the same names explain them."""

    stale_after_s: int
    min_complete: float
    max_bad_quotes: float


@dataclass(frozen=True, slots=True)
class _Candidate:
    source: str
    rank: int
    series: str
    proxy: bool
    answer: SeriesAnswer
    snapshot_ts: datetime
    contracts: int = 0
    priced: int = 0
    quoted: int = 0
    bad: int = 0
    newest: datetime | None = None
    timed: bool = False
    premature: bool = False


def decide(
    answers: Mapping[str, ChainAnswer],
    request: ChainRequest,
    *,
    proxies: frozenset[str],
    gates: Gates,
    decided_at: datetime,
) -> pl.DataFrame:
    """One row per series and candidate (`DECISIONS`), at most one winner per series.

    `answers` are in order of priority; `proxies` names the sources whose options are not on futures.
    """
    candidates = [
        candidate
        for rank, (source, answer) in enumerate(answers.items(), start=1)
        for candidate in _candidates(source, rank, answer, request, proxy=source in proxies)
    ]
    limits = _limits(candidates, request, gates)
    native = [c for c in candidates if not c.proxy]
    rows = [
        row
        for series in dict.fromkeys(c.series for c in native)
        for row in _contest([c for c in native if c.series == series], limits, gates)
    ]
    native_won = {_product(c.series) for c, won, _, _ in rows if won}
    rows += _proxy_rows([c for c in candidates if c.proxy], limits, gates, native_won)
    return _frame(rows, request, decided_at)


def winning_rows(answers: Mapping[str, ChainAnswer], decisions: pl.DataFrame) -> pl.DataFrame:
    """The winners' rows, as rows of `OPTION_CHAIN`."""
    won = decisions.filter("won").select(
        "source", "series", selected_at="decided_at", selection_reason="reason"
    )
    frames = [answer.frame for answer in answers.values() if answer.frame.height]
    if not frames or won.is_empty():
        return OPTION_CHAIN.empty()
    return conform(OPTION_CHAIN, pl.concat(frames).join(won, on=["source", "series"], how="inner"))


_Failing = tuple[Outcome, str]
_Limit = tuple[datetime, datetime]
_Verdict = tuple[_Candidate, bool, Outcome, str]


def _candidates(
    source: str, rank: int, answer: ChainAnswer, request: ChainRequest, *, proxy: bool
) -> list[_Candidate]:
    priced = QUOTED | pl.col("last").is_not_null() | pl.col("settlement").is_not_null()
    counts = answer.frame.group_by("series").agg(
        contracts=pl.len(),
        priced=priced.sum(),
        quoted=QUOTED.sum(),
        bad=BAD_QUOTE.fill_null(False).sum(),
        newest=pl.max_horizontal(pl.col("quote_ts").max(), pl.col("last_ts").max()),
        timed=pl.col("quote_ts").is_not_null().any(),
        snapshot_ts=pl.col("snapshot_ts").max(),
    )
    premature = (pl.col("newest") > latest_plausible(request)).fill_null(False)
    stats = {row.pop("series"): row for row in counts.with_columns(premature=premature).iter_rows(named=True)}
    # A proxy that names no series failed all requested ones for its one reason.
    whole = SeriesAnswer(answer.outcome, answer.reason)
    series = answer.series or {one.key: whole for one in request.series}
    nothing = {"snapshot_ts": request.snapshot_ts}
    return [
        _Candidate(source, rank, key, proxy, own, **stats.get(key, nothing)) for key, own in series.items()
    ]


def _limits(candidates: list[_Candidate], request: ChainRequest, gates: Gates) -> dict[str, _Limit]:
    """The newest quote or trade of each source and the oldest that is fresh.

    All series count together, because one quiet series does not make a source stale; those in the future do
    not.
    """
    limits: dict[str, _Limit] = {}
    for source in dict.fromkeys(c.source for c in candidates):
        own = [c for c in candidates if c.source == source]
        newest = max((c.newest for c in own if c.newest is not None and not c.premature), default=None)
        if newest is not None:
            timed = any(c.timed for c in own)
            limits[source] = newest, oldest_fresh(request, gates.stale_after_s, timed=timed)
    return limits


def _contest(candidates: list[_Candidate], limits: Mapping[str, _Limit], gates: Gates) -> list[_Verdict]:
    failures = {c.source: _failure(c, limits.get(c.source), gates) for c in candidates}
    # Only sound answers measure completeness: a stale one must not make a fresh one look incomplete.
    sound = [c for c in candidates if failures[c.source] is None]
    shortfalls = {c.source: _shortfall(c, sound, gates) for c in sound}
    healthy = [c for c in sound if shortfalls[c.source] is None]
    winner = min(healthy, key=lambda c: c.rank, default=None) or max(
        sound, key=lambda c: (c.quoted, -c.rank), default=None
    )
    return [_verdict(c, winner, failures[c.source], shortfalls.get(c.source)) for c in candidates]


def _verdict(
    c: _Candidate, winner: _Candidate | None, failure: _Failing | None, shortfall: _Failing | None
) -> _Verdict:
    if failure is not None:
        return c, False, *failure
    assert winner is not None  # c itself is sound
    if shortfall is not None:
        outcome, reason = shortfall
        if c is winner:
            reason = f"no source is healthy; this one is the most complete ({reason})"
        return c, c is winner, outcome, reason
    if c is winner:
        return c, True, Outcome.OK, "first healthy source by priority"
    return c, False, Outcome.OK, f"healthy, but {winner.source} has priority"


def _failure(c: _Candidate, limit: _Limit | None, gates: Gates) -> _Failing | None:
    """Why a candidate cannot win, whatever the others have; None when it is sound."""
    if not c.answer.outcome.has_rows or not c.contracts:
        outcome = Outcome.EMPTY if c.answer.outcome.has_rows else c.answer.outcome
        return outcome, c.answer.reason or "no rows"
    if c.answer.outcome is Outcome.STALE:
        return Outcome.STALE, c.answer.reason or "stale"
    if not c.priced:
        why = f" ({c.answer.reason})" if c.answer.reason else ""
        return Outcome.EMPTY, f"none of {c.contracts} contracts has a quote, a trade or a settlement{why}"
    if c.newest is not None and c.premature:
        return Outcome.BAD_PAYLOAD, f"the newest quote or trade is from {in_chicago(c.newest)}, in the future"
    if limit is not None and limit[0] < limit[1]:
        newest, oldest = map(in_chicago, limit)
        return Outcome.STALE, f"the newest quote or trade is from {newest}, before {oldest}"
    if c.quoted and c.bad / c.quoted > gates.max_bad_quotes:
        return Outcome.BAD_PAYLOAD, f"{c.bad} of {c.quoted} quotes are crossed, negative or not finite"
    return None


def _shortfall(c: _Candidate, sound: Sequence[_Candidate], gates: Gates) -> _Failing | None:
    """Why a sound candidate is not complete; None when it is."""
    fullest, most_quoted = max(o.contracts for o in sound), max(o.quoted for o in sound)
    if c.contracts < gates.min_complete * fullest:
        return Outcome.PARTIAL, f"{c.contracts} contracts where another source has {fullest}"
    if c.quoted < gates.min_complete * most_quoted:
        return Outcome.PARTIAL, f"{c.quoted} quoted contracts where another source has {most_quoted}"
    if c.answer.outcome is Outcome.PARTIAL:
        return Outcome.PARTIAL, c.answer.reason or "the vendor did not send the whole series"
    return None


def latest_plausible(request: ChainRequest) -> datetime:
    """The latest possible instant of a quote or trade: `SKEW` after the request or its session's close.

    The session counts because a vendor that sends only a trade date is days ahead over a holiday.
    """
    return max(request.snapshot_ts, sessions.session(request.trade_date).close) + SKEW


def oldest_fresh(request: ChainRequest, stale_after_s: int, *, timed: bool = True) -> datetime:
    """Quotes and trades before this instant are stale.

    In regular hours a source with quote times has `stale_after_s`. One that only reports when a contract last
    traded (`timed` false) is held to the session. Before regular hours the limit is the previous session.
    """
    session = sessions.session(request.trade_date)
    if sessions.is_open(request.moment, "rth"):
        return request.moment - timedelta(seconds=stale_after_s) if timed else session.open
    before = sessions.current_session(session.open - timedelta(seconds=1))
    rth_open = session.rth[0] if session.rth else session.close
    return before.open if request.moment < rth_open else session.open


def _proxy_rows(
    candidates: list[_Candidate], limits: Mapping[str, _Limit], gates: Gates, native_won: set[str]
) -> list[_Verdict]:
    """Verdicts on proxies; an incomplete one may win, because nothing measures its completeness.

    `native_won`: products of which a native source won a series.
    """
    rows: list[_Verdict] = []
    winners: dict[str, str] = {}
    for c in sorted(candidates, key=lambda c: c.rank):
        failure, product = _failure(c, limits.get(c.source), gates), _product(c.series)
        if failure is not None:
            rows.append((c, False, *failure))
        elif product in native_won:
            rows.append((c, False, c.answer.outcome, "a proxy: used only when every native source fails"))
        elif winners.setdefault(product, c.source) == c.source:
            reason = f"a proxy (not {product} options): no native source has a chain"
            rows.append((c, True, c.answer.outcome, reason))
        else:
            rows.append((c, False, c.answer.outcome, f"a proxy, and {winners[product]} has priority"))
    return rows


def _product(series: str) -> str:
    """The product of a series, or the one its proxy stands for."""
    product = Series.parse(series).root_info.product
    return product.stands_for or product.code


def _frame(rows: list[_Verdict], request: ChainRequest, decided_at: datetime) -> pl.DataFrame:
    records = [
        {
            "run_id": request.run_id,
            "decided_at": decided_at,
            "snapshot_ts": c.snapshot_ts,
            "trade_date": request.trade_date,
            "environment": request.environment,
            "series": c.series,
            "source": c.source,
            "rank": c.rank,
            "outcome": str(outcome),
            "won": won,
            "reason": reason,
            "contracts": c.contracts,
            "quoted": c.quoted,
            "newest_ts": c.newest,
        }
        for c, won, outcome, reason in rows
    ]
    return (
        conform(DECISIONS, pl.DataFrame(records, infer_schema_length=None)) if records else DECISIONS.empty()
    )
