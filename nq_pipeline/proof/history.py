"""The checks of the historical API: what a span costs, and that it sells what the gateway replays."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from decimal import Decimal

import numpy as np

from nq_pipeline.clock import NS_PER_S, from_ns, to_ns
from nq_pipeline.errors import NotConfigured, OverBudget
from nq_pipeline.market import sessions
from nq_pipeline.proof import compare
from nq_pipeline.proof.feed import FLOOR
from nq_pipeline.proof.finding import Context, Finding, failed, passed, skipped
from nq_pipeline.proof.replay import OVERLAP_NS, replay_from, trouble
from nq_pipeline.sources.databento_client import HistoricalClient, Query
from nq_pipeline.sources.dbn import decode
from nq_pipeline.sources.exchange import Policy
from nq_pipeline.spend.ledger import Charge, open_ledger
from nq_pipeline.spend.money import shown

SPAN_S = 30
"""How long a span is priced and compared: a few cents at most, at any activity."""
LAG_NS = 5 * NS_PER_S
"""What is younger may not be complete anywhere yet."""


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


def history(ctx: Context) -> Finding:
    """The historical API sells the records that the gateway replays: record by record, by `ts_recv`.

    A live replay goes by `ts_event` and the historical API by `ts_recv`, so the replay begins earlier.
    """
    client = _client(ctx)
    query = _newest(ctx, client)
    price = client.cost(query)
    if price > ctx.max_usd:
        return skipped(f"{SPAN_S} s of trades cost {shown(price)}; --max-usd allows {shown(ctx.max_usd)}")
    told = replay_from(ctx, query.start - OVERLAP_NS)
    if told.too_old:
        return skipped(f"the gateway no longer replays {from_ns(query.start):%Y-%m-%d %H:%M} UTC")
    if said := trouble(told):
        return failed(f"the replay to compare with: {said}")
    try:
        bought, spent = _buy(ctx, client, query, price)
    except OverBudget as refusal:
        return skipped(str(refusal))
    begin, end = np.uint64(query.start), np.uint64(query.end)
    difference = compare.by_record(compare.within(told.trades, "ts_recv", begin, end), bought)
    facts = {
        "from": from_ns(query.start), "to": from_ns(query.end), "records": len(bought),
        "differences": difference.examples, "spent_usd": spent,
    }  # fmt: skip
    if difference:
        return failed(f"the gateway's replay has {difference} that the historical API sold", **facts)
    if not len(bought):
        return skipped(f"no trade in {SPAN_S} s, so nothing was compared", **facts)
    return passed(
        f"{len(bought):,} trades of {SPAN_S} s until {from_ns(query.end):%H:%M:%S} UTC, bought for "
        f"{shown(spent)}, are the ones the gateway replays",
        **facts,
    )


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
    reached = min(client.available_end(dataset, (FLOOR,)), to_ns(ctx.clock.now()) - LAG_NS)
    end = to_ns(sessions.chain_moment(from_ns(reached), "globex")) // NS_PER_S * NS_PER_S
    return Query(dataset, FLOOR, ctx.parents, end - SPAN_S * NS_PER_S, end)


def _buy(
    ctx: Context, client: HistoricalClient, query: Query, price: Decimal
) -> tuple[compare.Array, Decimal]:
    """The trades of a query, and what they cost; the ledger grants it first, or raises `OverBudget`."""
    charge = Charge(
        vendor="databento",
        purpose="verify",
        dataset=query.dataset,
        schema=query.schema,
        mode="historical-streaming",
        description=f"all parents, {SPAN_S} s until {from_ns(query.end):%Y-%m-%d %H:%M:%S} UTC",
        cost_usd=price,
        billable_bytes=None,
        unit_price_usd=None,
        priced_at=datetime.now(UTC),
        run_id=ctx.evidence.folder.name,
    )
    with open_ledger(ctx.settings).spending(charge) as spending:
        records = decode(client.download(query, spending), query.schema)
        spent = spending.commit(billed_bytes=records.array.nbytes)
    ctx.spent_usd += spent
    return records.array, spent
