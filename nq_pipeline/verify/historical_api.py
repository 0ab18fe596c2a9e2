"""Checks of the historical API: what a span costs, and that it has what the gateway replays.

The span is the newest whole seconds of an open market that the historical API has. History goes by
`ts_recv` and a live replay by `ts_event`, so the replay begins earlier.
"""

from __future__ import annotations

import time
from datetime import timedelta

import numpy as np

from nq_pipeline.capture.gap_tracker import OVERLAP_NS
from nq_pipeline.clock import NS_PER_S, from_ns, to_ns
from nq_pipeline.dbn.stream import decode
from nq_pipeline.errors import OverBudget
from nq_pipeline.market import sessions
from nq_pipeline.sources.databento.client import HistoricalClient, open_client
from nq_pipeline.sources.databento.purchases import Purchases
from nq_pipeline.sources.databento.query import Query
from nq_pipeline.sources.databento.spec import DatabentoSettings
from nq_pipeline.spend.entitlements import LOWEST_LIVE_SCHEMA
from nq_pipeline.spend.export import publish_spend
from nq_pipeline.spend.ledger import open_ledger
from nq_pipeline.spend.money import format_usd
from nq_pipeline.verify import compare
from nq_pipeline.verify.check import CheckResult, Context, failed, passed, skipped
from nq_pipeline.verify.replay import record_replay, replay_failure

SPAN_S = 30
"""The length of the span, seconds: it costs a few cents at most."""
LAG = timedelta(seconds=5)
"""Younger records may be incomplete everywhere."""


def cost(ctx: Context) -> CheckResult:
    """The vendor prices a small span, and the ledger knows what was spent; free."""
    client = _client(ctx)
    query = _newest_span(ctx, client)
    price = client.price(query)
    month = open_ledger(ctx.settings).month()
    facts = {
        "from": from_ns(query.start), "to": from_ns(query.end), "schema": query.schema,
        "cost_usd": price.usd, "bytes": price.size, "unit_price_usd_per_gib": price.unit_usd,
        "plan_usd": month.plan_usd, "metered_usd": month.metered_usd, "remaining_usd": month.remaining_usd,
    }  # fmt: skip
    listed = f" ({price.size:,} bytes at {format_usd(price.unit_usd)} a GiB)" if price.unit_usd else ""
    return passed(
        f"{SPAN_S} s of {query.schema} until {_end_time(query)}: {format_usd(price.usd)}{listed}; this month "
        f"${month.plan_usd:,.2f} plan and ${month.metered_usd:,.2f} metered, "
        f"${month.remaining_usd:,.2f} left",
        **facts,
    )


def count(ctx: Context) -> CheckResult:
    """The historical API counts as many records in the span as the gateway replays; free."""
    client = _client(ctx)
    query = _newest_span(ctx, client)
    replay = record_replay(ctx, query.start - OVERLAP_NS)
    if replay.too_old:
        return skipped(f"the gateway no longer replays {from_ns(query.start):%Y-%m-%d %H:%M} UTC")
    if failure := replay_failure(replay):
        return failed(f"the replay to compare with: {failure}")
    replayed = compare.select_span(replay.trades, "ts_recv", np.uint64(query.start), np.uint64(query.end))
    counted = client.count(query)
    facts = {
        "from": from_ns(query.start), "to": from_ns(query.end), "counted": counted, "replayed": len(replayed)
    }  # fmt: skip
    ctx.span = query, replayed
    if counted != len(replayed):
        return failed(
            f"{SPAN_S} s of trades until {_end_time(query)}: the historical API counts {counted:,}, the "
            f"gateway replays {len(replayed):,}",
            **facts,
        )
    if not counted:
        return skipped(
            f"no trade in {SPAN_S} s until {_end_time(query)}, so there is nothing to compare", **facts
        )
    return passed(
        f"{counted:,} trades in {SPAN_S} s until {_end_time(query)}, counted by history and replayed live",
        **facts,
    )


def history(ctx: Context) -> CheckResult:
    """The historical API sells exactly the records that the gateway replays."""
    if ctx.span is None:
        return skipped("needs the replay of `count`, which failed")
    query, replayed = ctx.span
    client, run_id = _client(ctx), ctx.evidence.name
    purchases = Purchases(client, open_ledger(ctx.settings), "verify", run_id, max_usd=ctx.max_usd)
    try:
        body = purchases.buy_body(query, client.price(query), request_id=run_id)
    except OverBudget as refusal:
        return skipped(str(refusal))
    finally:
        ctx.spent_usd += purchases.cost_usd
        publish_spend(ctx.settings, run_id=run_id)
    sold = decode(body, query.schema).array
    difference = compare.compare_records(replayed, sold)
    facts = {"records": len(sold), "differences": difference.examples, "spent_usd": purchases.cost_usd}
    if difference:
        return failed(f"the gateway's replay has {difference} that the historical API sold", **facts)
    return passed(
        f"the {len(sold):,} trades, bought for {format_usd(purchases.cost_usd)}, are those "
        "that the gateway replays",
        **facts,
    )


def _client(ctx: Context) -> HistoricalClient:
    end = time.monotonic() + ctx.timing.patience_s
    return open_client(ctx.settings, lambda: end - time.monotonic())


def _newest_span(ctx: Context, client: HistoricalClient) -> Query:
    """The trades of the newest span, of all parents."""
    dataset = ctx.settings.vendor(DatabentoSettings).dataset
    reached = min(from_ns(client.available_end(dataset, (LOWEST_LIVE_SCHEMA,))), ctx.clock.now() - LAG)
    end = to_ns(sessions.chain_moment(reached, "globex")) // NS_PER_S * NS_PER_S
    return Query(dataset, LOWEST_LIVE_SCHEMA, ctx.parents, end - SPAN_S * NS_PER_S, end)


def _end_time(query: Query) -> str:
    return f"{from_ns(query.end):%Y-%m-%d %H:%M:%S} UTC"
