"""Checks of recovery: a connection is dropped and resumed, and everything is counted again.

    live       streams; then its connection is dropped                    ──┐
    resumed    begins a little earlier, by replay, and streams on         ──┼─► the capture log ─► trades
    recounted  a replay of the whole span, independent of both            ──► the reference

A trade belongs to the span by its `ts_event`, because a replay starts from that.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import polars as pl

from nq_pipeline.capture.gap_tracker import OVERLAP_NS
from nq_pipeline.capture.gateway import SessionState
from nq_pipeline.capture.log.writer import CaptureLog
from nq_pipeline.capture.publisher import Publisher
from nq_pipeline.clock import from_ns
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import TRADES
from nq_pipeline.spend.entitlements import LOWEST_LIVE_SCHEMA
from nq_pipeline.verify import compare
from nq_pipeline.verify.check import CheckResult, Context, failed, passed, skipped
from nq_pipeline.verify.feed_recorder import Enough, Recording

TAIL_S = 10.0
"""How long the resumed session streams on at most, seconds."""


def reconnect(ctx: Context) -> CheckResult:
    """After the drop and the replay, the table has each trade once; counted by instrument."""
    assert ctx.live is not None
    dropped_ns = int(compare.trade_times(ctx.live.trades).max())
    time.sleep(ctx.timing.outage_s)
    with CaptureLog(ctx.work / "capture", ctx.recorder.dataset, clock=ctx.clock) as log:
        ctx.resumed = record_replay(ctx, dropped_ns - OVERLAP_NS, min(TAIL_S, ctx.stream_s / 2), log.append)
    if failure := replay_failure(ctx.resumed):
        return failed(f"the session after the drop: {failure}")
    first, last = _span(ctx)
    ctx.recounted = record_replay(ctx, int(first))
    ctx.evidence.save("replay.dbn", ctx.recounted.sample())
    if failure := replay_failure(ctx.recounted):
        return failed(f"the independent replay: {failure}")
    rows = _published(ctx, first, last)
    right = compare.select_span(ctx.recounted.trades, "ts_event", first, last)
    difference = compare.compare_instruments(rows, right)
    facts = {
        "from": from_ns(int(first)), "to": from_ns(int(last)), "dropped_at": from_ns(dropped_ns),
        "rows": rows.height, "counted": len(right), "resumed_s": ctx.resumed.opened_s,
        "differences": difference.examples,
    }  # fmt: skip
    if difference:
        return failed(f"the table has {difference} trades that an independent replay counts", **facts)
    if not len(right):
        return skipped("too few trades to compare; stream for longer with --minutes", **facts)
    during = len(compare.select_span(right, "ts_event", np.uint64(dropped_ns), last))
    return passed(
        f"dropped, {ctx.timing.outage_s:.0f} s later resumed by replay: {rows.height:,} trades of "
        f"{rows['instrument_id'].n_unique():,} instruments, {during:,} of them since the drop; none lost, "
        "none twice",
        **facts,
    )


def replay(ctx: Context) -> CheckResult:
    """Stream and replays have the same records, compared one by one."""
    assert ctx.live is not None
    if ctx.resumed is None or ctx.recounted is None:
        return skipped("needs the replays of `reconnect`, which failed")
    first, last = _span(ctx)
    dropped = compare.trade_times(ctx.live.trades).max()
    spans = {
        "stream": (ctx.live, first, dropped - ctx.settle_ns),
        "replay after the drop": (ctx.resumed, max(first, dropped - np.uint64(OVERLAP_NS)), last),
    }
    facts, wrong, compared = {}, [], 0
    for name, (recording, begin, end) in spans.items():
        right = compare.select_span(ctx.recounted.trades, "ts_event", begin, end)
        difference = compare.compare_records(
            compare.select_span(recording.trades, "ts_event", begin, end), right
        )
        facts[name] = {"records": len(right), "differences": difference.examples}
        compared += len(right)
        if difference:
            wrong.append(f"the {name} has {difference} records of the independent replay")
    if wrong:
        return failed("; ".join(wrong), **facts)
    if not compared:
        return skipped("too few trades to compare; stream for longer with --minutes", **facts)
    return passed(
        f"{compared:,} records, streamed and replayed, are the same in an independent replay", **facts
    )


def record_replay(
    ctx: Context, start_ns: int, tail_s: float = 0.0, sink: Callable[..., object] | None = None
) -> Recording:
    """Record a session from an instant on, until `tail_s` seconds after its replay is complete."""
    return ctx.recorder.record(
        LOWEST_LIVE_SCHEMA,
        ctx.parents,
        _replayed(ctx.timing.settle_s + tail_s),
        patience_s=ctx.timing.patience_s + tail_s,
        start_ns=start_ns,
        sink=sink,
    )


def _replayed(then_s: float) -> Enough:
    done: list[float] = []

    def enough(state: SessionState, elapsed: float) -> bool:
        if LOWEST_LIVE_SCHEMA in state.replayed and not done:
            done.append(elapsed)
        return bool(done) and elapsed >= done[0] + then_s

    return enough


def replay_failure(found: Recording) -> str:
    """Why a session did not deliver its whole replay, as far as it reports; empty if it did."""
    if found.failure or found.state.skipped:
        return found.failure or f"the gateway skipped records: {found.state.skipped}"
    if LOWEST_LIVE_SCHEMA in found.state.replayed:
        return ""
    return f"the replay was not complete after {found.seconds:.0f} s"


def _span(ctx: Context) -> tuple[np.uint64, np.uint64]:
    """The span of which the first and the second session have all trades, nanoseconds UTC.

    The edges are left out, because instruments may arrive in another order there.
    """
    assert ctx.live is not None and ctx.resumed is not None
    reached = [np.uint64(ctx.resumed.state.replayed[LOWEST_LIVE_SCHEMA])]
    if len(ctx.resumed.trades):
        reached.append(compare.trade_times(ctx.resumed.trades).max())
    return compare.trade_times(ctx.live.trades).min() + ctx.settle_ns, max(reached) - ctx.settle_ns


def _published(ctx: Context, first: np.uint64, last: np.uint64) -> pl.DataFrame:
    """The rows of the span in a lake that is published from the log of both sessions."""
    lake = Lake(ctx.work / "lake")
    Publisher(
        ctx.work / "capture" / ctx.recorder.dataset, lake, clock=ctx.clock, run_id=ctx.evidence.name
    ).publish()
    ts = pl.col("ts_event").dt.epoch("ns")
    return lake.scan(TRADES).filter(ts >= int(first), ts < int(last)).select("instrument_id").collect()
