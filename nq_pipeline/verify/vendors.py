"""The checks of the chain vendors: each one's state, and that what is kept is not asked for again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

from nq_pipeline.chains.ask import open_session
from nq_pipeline.chains.request import build_request
from nq_pipeline.chains.snapshot import take_snapshot
from nq_pipeline.settings import Settings
from nq_pipeline.sources.base import MeteredSource
from nq_pipeline.sources.registry import open_source
from nq_pipeline.verify.check import (
    CheckResult,
    Context,
    failed,
    passed,
    skipped,
)

SERIES = 2
"""The nearest series are enough to see whether a chain is kept."""


def vendor(name: str) -> Callable[[Context], CheckResult]:
    """The check of one chain vendor: what the doctor says of it."""

    def find(ctx: Context) -> CheckResult:
        if name not in ctx.settings.chains.sources:
            return skipped("not in NQ_SOURCES")
        probe = ctx.probes[name]
        said = "; ".join(filter(None, [probe.detail, probe.mend and f"to mend it, {probe.mend}"]))
        if not probe.configured:
            return skipped(f"not configured: {said}")
        return passed(said) if probe.reachable and probe.entitled else failed(said)

    return find


def cache(ctx: Context) -> CheckResult:
    """The same question again is answered from what was kept: a free vendor's chain, a paid one's price."""
    # A cache of its own, so that the first question is one, whatever ran before.
    own = ctx.settings.with_values(data_dir=ctx.work.parent / "cache")
    told, kept = list[str](), True
    free = next((n for n in own.chains.sources if not open_source(n, own).metered and _well(ctx, n)), None)
    questions: list[tuple[str | None, Callable[[Settings, str], int]]] = [
        (free, _chain),
        ("databento", _price),
    ]
    for name, asked in questions:
        if name is None or not _well(ctx, name):
            continue
        first, second = asked(own, name), asked(own, name)
        told.append(f"{name} {first}, then {second}")
        kept = kept and first > 0 and second == 0
    if not told:
        return skipped("no vendor is configured that could be asked twice")
    requests = f"requests for the same question twice: {'; '.join(told)}"
    return passed(requests) if kept else failed(f"what should be kept is asked for again; {requests}")


def _well(ctx: Context, name: str) -> bool:
    probe = ctx.probes[name]
    return bool(probe.configured and probe.reachable and probe.entitled)


def _chain(settings: Settings, name: str) -> int:
    """Ask a vendor for the chains of the nearest series; requests that it took."""
    settings = settings.with_values(sources=(name,))
    request = build_request(settings)
    snapshot = take_snapshot(settings, replace(request, series=request.series[:SERIES]))
    return snapshot.results[name].misses


def _price(settings: Settings, name: str) -> int:
    """Ask what a chain would cost, which is free; requests that it took."""
    source, request = open_source(name, settings), build_request(settings)
    exchange = open_session(source, settings, request)
    try:
        cast(MeteredSource, source).price(request, exchange)
        return sum(fetch.cache != "hit" for fetch in exchange.fetches)
    finally:
        exchange.close()
