"""Ask the sources: all at the same time, each through its breaker and cache, within its deadline."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import cast

import polars as pl

from nq_pipeline.chains.answer_cache import AnswerCache, answer_key
from nq_pipeline.chains.result import SourceResult
from nq_pipeline.errors import (
    DeadlineReached,
    LakeError,
    NotConfigured,
    NotEntitled,
    NqError,
    SourceError,
    Unavailable,
)
from nq_pipeline.leases.states import SharedStates
from nq_pipeline.outcome import Outcome
from nq_pipeline.settings import Settings
from nq_pipeline.sources.base import ChainAnswer, ChainRequest, MeteredSource, Source, failed, without_secrets
from nq_pipeline.sources.registry import VENDORS
from nq_pipeline.spend import entitlements
from nq_pipeline.spend.entitlements import WHOLE_CHAIN, Entitlement
from nq_pipeline.transport.breaker import Breaker
from nq_pipeline.transport.lifetime import Lifetime
from nq_pipeline.transport.vendor_session import ArchivedSession, Scope, VendorSession
from nq_pipeline.workspace import Workspace

log = logging.getLogger(__name__)

Progress = Callable[[str], None]
GRACE_S = 2.0
"""Seconds beyond a vendor's deadline before its thread is abandoned."""


def ask_sources(
    sources: Sequence[Source],
    settings: Settings,
    request: ChainRequest,
    *,
    refresh: bool,
    free_only: bool = False,
    progress: Progress,
) -> tuple[dict[str, SourceResult], dict[str, pl.DataFrame]]:
    """Ask several sources at the same time; takes as long as the slowest one, at most its deadline.

    Each has a daemon thread. One that ignores the deadline is abandoned: its result says so and has the
    fetches until then. With `free_only`, a source whose answer costs money is asked only for its price.
    Returns the results by source, and the fetches of sources that were asked only for their price.
    """
    results: dict[str, SourceResult] = {}
    priced: dict[str, pl.DataFrame] = {}
    vendor_sessions = {s.name: open_session(s, settings, request, refresh=refresh) for s in sources}

    def work(source: Source) -> None:
        session = vendor_sessions[source.name]
        try:
            result = _ask_one(source, settings, request, session, free_only=free_only)
        except Exception as fault:
            result = fault_result(source.name, request, session, fault)
        if result is None:
            priced[source.name] = session.frame()
            progress(f"{source.name}: costs money, so it is asked only for what the others lack")
        else:
            results[source.name] = result
            progress(f"{source.name}: {result.answer.outcome}, {result.answer.frame.height:,} contracts")

    threads = [threading.Thread(target=work, args=(s,), daemon=True, name=s.name) for s in sources]
    for thread in threads:
        thread.start()
    allowed_s = time_allowed_s(settings, request)
    end = settings.clock.monotonic() + allowed_s + GRACE_S
    for thread in threads:
        thread.join(max(0.0, end - settings.clock.monotonic()))

    def left_behind(name: str) -> SourceResult:
        late = DeadlineReached(f"no answer within {allowed_s:g} s (NQ_SOURCE_DEADLINE_S)")
        return _failed_result(name, request, vendor_sessions[name], late, elapsed_s=allowed_s)

    done = {s.name: results.get(s.name) or left_behind(s.name) for s in sources if s.name not in priced}
    return done, dict(priced)


def _ask_one(
    source: Source, settings: Settings, request: ChainRequest, session: VendorSession, *, free_only: bool
) -> SourceResult | None:
    """Return a cached answer that is fresh; else ask through the breaker, and cache a whole answer.

    None with `free_only` when the answer would cost money or the price is unknown.
    """
    started = settings.clock.monotonic()

    def result(answer: ChainAnswer, used: Mapping[str, str] | None = None) -> SourceResult:
        elapsed_s = settings.clock.monotonic() - started
        return SourceResult(answer, request.series, elapsed_s, session.frame(), used or {})

    cache = AnswerCache(Workspace.of(settings).cache / "answers")
    key = _answer_key(source, settings, request)
    cached = None if session.refresh else cache.get(source.name, key)
    if cached is not None:
        answer, used = cached
        session.note_hit("kept answer", answer.frame["snapshot_ts"].max() or request.snapshot_ts)  # type: ignore[arg-type]
        return result(answer, used)
    refused = {} if session.refresh else known_refusals(source, settings, request)
    if refused.keys() == {WHOLE_CHAIN}:
        refusal = refused[WHOLE_CHAIN]
        error = NotEntitled(f"{refusal.text}; not asked again before {refusal.ask_again}, or with --refresh")
        return result(failed(source.name, request, error))
    request = replace(request, refused={part: refusal.text for part, refusal in refused.items()})
    breaker = Breaker(
        Workspace.of(settings).cache,
        source.name,
        source.base_url,
        penalty_s=VENDORS[source.name].penalty_s,
        states=SharedStates.of(settings),
    )
    if session.refresh:
        breaker.close()
    if free_only and source.metered:
        if (pause := breaker.pause()) is not None:
            return result(failed(source.name, request, pause))
        if not _is_free(cast(MeteredSource, source), request, session):
            session.close()
            return None
    asked = ask_source(source, request, session, through=breaker)
    whole = _is_whole(asked.answer, session)
    try:
        record_entitlements(source, settings, request, asked.answer, whole=whole)
    except LakeError as damage:  # raised at the end of the run: the answer is worth more than this record
        asked = replace(asked, fault=damage)
    if whole and session.fresh_until is not None:
        try:
            cache.put(key, asked.answer, asked.used, session.fresh_until)
        except OSError as error:  # the next run asks again; this one has its answer
            log.warning("the answer of %s is not cached: %s", source.name, error)
    return asked


def ask_source(
    source: Source, request: ChainRequest, session: VendorSession, *, through: Breaker | None = None
) -> SourceResult:
    """Ask one source; a `SourceError` becomes the outcome of its answer. Closes the session."""
    started = session.clock.monotonic()
    try:
        ask = partial(source.ask, request, session)
        answer = through.ask(ask) if through else ask()
    except SourceError as error:
        answer = failed(source.name, request, error)
    finally:
        session.close()
    answer = without_secrets(answer, session.secrets)
    elapsed_s = session.clock.monotonic() - started
    return SourceResult(
        answer, request.series, elapsed_s, session.frame(), dict(session.used), session.unarchived
    )


def fault_result(name: str, request: ChainRequest, session: VendorSession, fault: Exception) -> SourceResult:
    """The result of a source whose code failed. The fault's text, which may hold secrets, is not in it."""
    error = Unavailable(f"a fault of this program ({type(fault).__name__})")
    return _failed_result(name, request, session, error, fault=fault)


def _failed_result(
    name: str,
    request: ChainRequest,
    session: VendorSession,
    error: SourceError,
    *,
    elapsed_s: float = 0.0,
    fault: Exception | None = None,
) -> SourceResult:
    """The result of a source that gave no chain, with the answers that it had archived until then."""
    used = session.used.copy()  # in one step: the thread of the source may still run
    answer = failed(name, request, error)
    return SourceResult(answer, request.series, elapsed_s, session.frame(), used, fault)


def raise_faults(results: Mapping[str, SourceResult]) -> None:
    """Raise the first fault of this program as `NqError`."""
    for name, result in results.items():
        if isinstance(result.fault, NqError):
            raise result.fault
        if (fault := result.fault) is not None:
            raise NqError(
                f"{name}: a fault of this program, {type(fault).__name__}: {fault}; "
                f"the other vendors' rows are in the lake"
            ) from fault


def _is_free(source: MeteredSource, request: ChainRequest, session: VendorSession) -> bool:
    try:
        return source.price(request, session) == 0
    except NotConfigured:
        return True  # it asks nothing, and its outcome says why
    except SourceError:
        return False  # the price is unknown


def _is_whole(answer: ChainAnswer, session: VendorSession) -> bool:
    """Whether a repeated request would give the same: ok, or partial although every request was answered.

    An empty answer counts as answered: a series that expired today is no longer listed.
    """
    if answer.outcome is not Outcome.PARTIAL:
        return answer.outcome is Outcome.OK
    answered = (Outcome.OK, Outcome.EMPTY)
    return session.remaining() > 0 and all(fetch.outcome in answered for fetch in session.fetches)


def time_allowed_s(settings: Settings, request: ChainRequest) -> float:
    """Seconds a vendor may take: NQ_SOURCE_DEADLINE_S for every product in the request."""
    return settings.chains.source_deadline_s * len({one.root_info.product.code for one in request.series})


def open_session(
    source: Source,
    settings: Settings,
    request: ChainRequest,
    *,
    refresh: bool = False,
    answers: Mapping[str, str] | None = None,
    original: bool = False,
) -> VendorSession:
    """Open the session of one source for one request.

    With `answers` (request id by digest of the request) it serves archived answers and sends no request; with
    `original` it records these fetches as the run's own.
    """
    clock = settings.clock
    scope = Scope(
        source=source.name,
        environment=settings.environment,
        run_id=request.run_id,
        trade_date=request.trade_date,
        snapshot_ts=request.snapshot_ts,
        base_url=source.base_url,
        secrets=settings.secrets_of(source.name),
    )
    lifetime = Lifetime(clock, settings.http.cache_open_s, settings.http.cache_closed_s)
    deadline = clock.monotonic() + time_allowed_s(settings, request)
    archive, state_dir = Workspace.of(settings).archive, Workspace.of(settings).cache
    parts = (scope, source.policy, clock, archive, lifetime, state_dir, deadline)
    if answers is None:
        return VendorSession(*parts, refresh=refresh, states=SharedStates.of(settings))
    return ArchivedSession(*parts, answers=answers, original=original)


def _answer_key(source: Source, settings: Settings, request: ChainRequest) -> str:
    """The key of everything that affects an answer: the vendor's settings and address, request and clock."""
    return answer_key(
        {
            "source": source.name,
            "base_url": source.base_url,
            "settings": settings.vendors[source.name].shaping(),
            "window": settings.chains.window,
            "trade_date": request.trade_date,
            "series": [series.key for series in request.series],
            "codes": request.vendor_codes,
            "pinned": settings.now,
        }
    )


def known_refusals(source: Source, settings: Settings, request: ChainRequest) -> Mapping[str, Entitlement]:
    """The refusals of the vendor's plan that hold on this trade date, by part of the chain.

    Empty while the table is damaged: a useless request costs less than a missing chain, and the damage is
    reported by `record_entitlements`.
    """
    try:
        return _refusals(source, settings, request)
    except LakeError:
        return {}


def record_entitlements(
    source: Source, settings: Settings, request: ChainRequest, answer: ChainAnswer, *, whole: bool
) -> None:
    """Record which parts of a chain an answer shows as refused by the plan, and which as granted again.

    Raises `LakeError` when the table of entitlements cannot be read or written.
    """
    product = VENDORS[source.name].plan_product
    if product is None:
        return
    refusals = {part: text for part, text in answer.refused.items() if part not in request.refused}
    if whole:
        granted = _refusals(source, settings, request).keys() - answer.refused.keys()
        refusals |= dict.fromkeys(granted, "")
    if answer.outcome is Outcome.NOT_ENTITLED:
        refusals[WHOLE_CHAIN] = answer.reason
    elif answer.frame.height and WHOLE_CHAIN not in answer.refused:
        refusals[WHOLE_CHAIN] = ""
    for part, text in refusals.items():
        others, rest = "the other vendors' chains are used", "the rest of its chain is used"
        consequence = others if part == WHOLE_CHAIN else rest
        entitlements.record_entitlement(
            Workspace.of(settings).lake,
            Entitlement(
                vendor=source.name,
                dataset=product,
                schema=part,
                mode="historical",
                environment=request.environment,
                trade_date=request.trade_date,
                entitled=not text,
                text=text,
                step=consequence if text else "",
                address=source.base_url,
                data_from=request.trade_date if text and part != WHOLE_CHAIN else None,
            ),
            run_id=request.run_id,
        )


def _refusals(source: Source, settings: Settings, request: ChainRequest) -> dict[str, Entitlement]:
    product = VENDORS[source.name].plan_product
    if product is None:
        return {}
    lake = Workspace.of(settings).lake
    return entitlements.active_refusals(
        lake, source.name, product, "historical", request.trade_date, address=source.base_url
    )
