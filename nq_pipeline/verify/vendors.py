"""Checks of the chain vendors: the state of each, and that cached answers are not requested again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

from nq_pipeline.chains.ask import open_session
from nq_pipeline.chains.request import build_request
from nq_pipeline.chains.snapshot import take_snapshot
from nq_pipeline.settings import Settings
from nq_pipeline.sources.base import MeteredSource
from nq_pipeline.sources.registry import load_source
from nq_pipeline.verify.check import CheckResult, Context, failed, passed, skipped

SERIES = 2
"""The nearest series are enough to test the cache."""


def vendor(name: str) -> Callable[[Context], CheckResult]:
    """The check of one chain vendor by the doctor's probe."""

    def check(ctx: Context) -> CheckResult:
        if name not in ctx.settings.chains.sources:
            return skipped("not in NQ_SOURCES")
        probe = ctx.probes[name]
        detail = "; ".join(filter(None, [probe.detail, probe.remedy and f"to fix it, {probe.remedy}"]))
        if not probe.configured:
            return skipped(f"not configured: {detail}")
        return passed(detail) if _is_healthy(ctx, name) else failed(detail)

    return check


def cache(ctx: Context) -> CheckResult:
    """A repeated request is answered from the cache: a free vendor's chain, Databento's price of one."""
    # A cache of its own, so that the first request is never a hit.
    own = ctx.settings.with_values(data_dir=ctx.work.parent / "cache")
    free = next(
        (n for n in own.chains.sources if not load_source(n, own).metered and _is_healthy(ctx, n)), None
    )
    counts, cached = list[str](), True
    repeats: tuple[tuple[str | None, Callable[[Settings, str], int]], ...] = (
        (free, _request_chain),
        ("databento", _request_price),
    )
    for name, request in repeats:
        if name is None or not _is_healthy(ctx, name):
            continue
        first, second = request(own, name), request(own, name)
        counts.append(f"{name} {first}, then {second}")
        cached = cached and first > 0 and second == 0
    if not counts:
        return skipped("no vendor is configured for a repeated request")
    requests = f"requests for the same answer twice: {'; '.join(counts)}"
    return passed(requests) if cached else failed(f"a cached answer is requested again; {requests}")


def _is_healthy(ctx: Context, name: str) -> bool:
    probe = ctx.probes[name]
    return bool(probe.configured and probe.reachable and probe.entitled)


def _request_chain(settings: Settings, name: str) -> int:
    """Request the chains of the nearest series; returns the number of requests sent."""
    settings = settings.with_values(sources=(name,))
    request = build_request(settings)
    snapshot = take_snapshot(settings, replace(request, series=request.series[:SERIES]))
    return snapshot.results[name].misses


def _request_price(settings: Settings, name: str) -> int:
    """Request the price of a chain, which is free; returns the number of requests sent."""
    source, request = load_source(name, settings), build_request(settings)
    session = open_session(source, settings, request)
    try:
        cast(MeteredSource, source).price(request, session)
        return sum(fetch.cache != "hit" for fetch in session.fetches)
    finally:
        session.close()
