"""The checks of the historical API: what a span costs, and that what is kept is not asked for again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import cast

from nq_pipeline.clock import NS_PER_S, from_ns, to_ns
from nq_pipeline.errors import NotConfigured
from nq_pipeline.market import sessions
from nq_pipeline.proof.feed import FLOOR
from nq_pipeline.proof.finding import Context, Finding, failed, passed, skipped
from nq_pipeline.settings import Settings
from nq_pipeline.sources.base import MeteredSource
from nq_pipeline.sources.databento_client import HistoricalClient, Query
from nq_pipeline.sources.exchange import Policy
from nq_pipeline.sources.registry import open_source
from nq_pipeline.sources.snapshot import build_request, exchange_for, take_snapshot
from nq_pipeline.spend.ledger import open_ledger
from nq_pipeline.spend.money import shown

SPAN_S = 30
"""How long a span is priced and compared: a few cents at most, at any activity."""
SERIES = 2
"""The nearest series are enough to see whether a chain is kept."""


def cost(ctx: Context) -> Finding:
    """The vendor prices a small span before it is asked for, and the ledger knows what was spent; free."""
    client = _client(ctx)
    query = _newest(ctx, client)
    price = client.cost(query)
    month = open_ledger(ctx.settings).month()
    facts = {
        "from": from_ns(query.start), "to": from_ns(query.end), "schema": query.schema, "cost_usd": price,
        "plan_usd": month.plan_usd, "metered_usd": month.metered_usd, "remaining_usd": month.remaining_usd,
    }  # fmt: skip
    return passed(
        f"{SPAN_S} s of {query.schema} of all parents until {from_ns(query.end):%Y-%m-%d %H:%M:%S} UTC: "
        f"{shown(price)}; this month {shown(month.plan_usd)} plan and {shown(month.metered_usd)} metered, "
        f"{shown(month.remaining_usd)} left",
        **facts,
    )


def cache(ctx: Context) -> Finding:
    """The same question again is answered from what was kept: a free vendor's chain, a paid one's price."""
    # A cache of its own, so that the first question is one, whatever ran before.
    own = ctx.settings.model_copy(update={"data_dir": ctx.work.parent / "cache"})
    told, kept = list[str](), True
    free = next((n for n in own.sources if not open_source(n, own).metered and _well(ctx, n)), None)
    questions: list[tuple[str | None, Callable[[Settings, str], int]]] = [
        (free, _chain),
        ("databento", _price),
    ]
    for name, asked in questions:
        if name is None or not _well(ctx, name):
            continue
        first, second = asked(own, name), asked(own, name)
        told.append(f"{name}: {first} requests, then {second}")
        kept = kept and first > 0 and second == 0
    if not told:
        return skipped("no vendor is configured that could be asked twice")
    return passed("; ".join(told)) if kept else failed(f"asked again what is kept: {'; '.join(told)}")


def _well(ctx: Context, name: str) -> bool:
    probe = ctx.probes[name]
    return bool(probe.configured and probe.reachable and probe.entitled)


def _chain(settings: Settings, name: str) -> int:
    """Ask a vendor for the chains of the nearest series; requests that it took."""
    settings = settings.model_copy(update={"sources": (name,)})
    request = build_request(settings)
    snapshot = take_snapshot(settings, replace(request, series=request.series[:SERIES]))
    return snapshot.asked[name].misses


def _price(settings: Settings, name: str) -> int:
    """Ask what a chain would cost, which is free; requests that it took."""
    source, request = open_source(name, settings), build_request(settings)
    exchange = exchange_for(source, settings, request)
    try:
        cast(MeteredSource, source).price(request, exchange)
        return sum(fetch.cache != "hit" for fetch in exchange.fetches)
    finally:
        exchange.close()


def _client(ctx: Context) -> HistoricalClient:
    settings, end = ctx.settings, time.monotonic() + ctx.pace.patience_s
    if settings.databento_api_key is None:
        raise NotConfigured("there is no key; set DATABENTO_API_KEY")
    policy = Policy(timeout_s=settings.http_timeout_s, attempts=settings.http_attempts)
    return HistoricalClient(
        settings.databento_api_key, settings.databento_url, policy, lambda: end - time.monotonic()
    )


def _newest(ctx: Context, client: HistoricalClient) -> Query:
    """The newest whole seconds of an open market that the historical API has."""
    dataset = ctx.settings.databento_dataset
    reached = min(client.available_end(dataset, (FLOOR,)), to_ns(ctx.clock.now()))
    end = to_ns(sessions.chain_moment(from_ns(reached), "globex")) // NS_PER_S * NS_PER_S
    return Query(dataset, FLOOR, ctx.parents, end - SPAN_S * NS_PER_S, end)
