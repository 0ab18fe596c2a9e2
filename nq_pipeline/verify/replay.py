"""The checks of recovery: a connection is dropped, taken up again, and everything is counted anew.

    live       streams; then its connection is dropped                    ──┐
    resumed    begins a little before that, by replay, and streams on     ──┼─► the capture log ─► trades
    recounted  a replay of the whole span, which nothing else has touched ──► what is right

A trade belongs to the span by its `ts_event`, since that is what a replay starts from.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import polars as pl

from nq_pipeline.capture.gap_tracker import OVERLAP_NS
from nq_pipeline.capture.gateway import SessionState
from nq_pipeline.capture.log import CaptureLog
from nq_pipeline.capture.publisher import Publisher
from nq_pipeline.clock import from_ns
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import TRADES
from nq_pipeline.verify import compare
from nq_pipeline.verify.check import (
    CheckResult,
    Context,
    failed,
    passed,
    skipped,
)
from nq_pipeline.verify.feed import FLOOR
from nq_pipeline.verify.feed_recorder import Enough, Recording

TAIL_S = 10.0
"""At most so long the resumed session streams on."""


def reconnect(ctx: Context) -> CheckResult:
    """After the drop and the replay the table has each trade once: counted by instrument."""
    assert ctx.live is not None
    dropped_ns = int(compare.trade_times(ctx.live.trades).max())
    time.sleep(ctx.pace.outage_s)
    with CaptureLog(ctx.work / "capture", ctx.line.dataset, clock=ctx.clock) as log:
        ctx.resumed = replay_from(ctx, dropped_ns - OVERLAP_NS, min(TAIL_S, ctx.stream_s / 2), log.append)
    if said := trouble(ctx.resumed):
        return failed(f"the session after the drop: {said}")
    first, last = _span(ctx)
    ctx.recounted = replay_from(ctx, int(first))
    ctx.evidence.save("replay.dbn", ctx.recounted.sample())
    if said := trouble(ctx.recounted):
        return failed(f"the replay to count by: {said}")
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
        f"dropped, {ctx.pace.outage_s:.0f} s later resumed by replay: {rows.height:,} trades of "
        f"{rows['instrument_id'].n_unique():,} instruments, {during:,} of them since the drop; none lost, "
        "none twice",
        **facts,
    )


def replay(ctx: Context) -> CheckResult:
    """Every replay has the same records, and the same that were streamed: record by record."""
    assert ctx.live is not None
    if ctx.resumed is None or ctx.recounted is None:
        return skipped("needs the replays of reconnect, which did not come")
    first, last = _span(ctx)
    dropped = compare.trade_times(ctx.live.trades).max()
    spans = {
        "stream": (ctx.live, first, dropped - ctx.settle_ns),
        "replay after the drop": (ctx.resumed, max(first, dropped - np.uint64(OVERLAP_NS)), last),
    }
    facts, wrong, compared = {}, [], 0
    for name, (told, begin, end) in spans.items():
        right = compare.select_span(ctx.recounted.trades, "ts_event", begin, end)
        difference = compare.compare_records(compare.select_span(told.trades, "ts_event", begin, end), right)
        facts[name] = {"records": len(right), "differences": difference.examples}
        compared += len(right)
        if difference:
            wrong.append(f"the {name} has {difference} records of the last replay")
    if wrong:
        return failed("; ".join(wrong), **facts)
    if not compared:
        return skipped("too few trades to compare; stream for longer with --minutes", **facts)
    return passed(f"{compared:,} records, streamed and replayed, are the same in a second replay", **facts)


def replay_from(
    ctx: Context, start_ns: int, tail_s: float = 0.0, record: Callable[..., object] | None = None
) -> Recording:
    """A session from an instant on, until `tail_s` after the gateway calls its replay complete."""
    return ctx.line.listen(
        FLOOR, ctx.parents, _replayed(ctx.pace.settle_s + tail_s), patience_s=ctx.pace.patience_s + tail_s,
        start_ns=start_ns, record=record,
    )  # fmt: skip


def _replayed(then_s: float) -> Enough:
    done: list[float] = []

    def enough(state: SessionState, elapsed: float) -> bool:
        if FLOOR in state.replayed and not done:
            done.append(elapsed)
        return bool(done) and elapsed >= done[0] + then_s

    return enough


def trouble(found: Recording) -> str:
    """Why a session did not bring its replay whole, as far as it says itself."""
    if found.trouble or found.state.skipped:
        return found.trouble or f"the gateway left records out: {found.state.skipped}"
    return "" if FLOOR in found.state.replayed else f"no end of the replay in {found.seconds:.0f} s"


def _span(ctx: Context) -> tuple[np.uint64, np.uint64]:
    """From when on the first session has all trades, to when the second one has.

    At either edge records of another instrument may come in another order.
    """
    assert ctx.live is not None and ctx.resumed is not None
    reached = [np.uint64(ctx.resumed.state.replayed[FLOOR])]
    if len(ctx.resumed.trades):
        reached.append(compare.trade_times(ctx.resumed.trades).max())
    return compare.trade_times(ctx.live.trades).min() + ctx.settle_ns, max(reached) - ctx.settle_ns


def _published(ctx: Context, first: np.uint64, last: np.uint64) -> pl.DataFrame:
    """The rows of the span, of a lake made from the log of both sessions as the capture's is."""
    lake = Lake(ctx.work / "lake")
    Publisher(
        ctx.work / "capture" / ctx.line.dataset, lake, clock=ctx.clock, run_id=ctx.evidence.folder.name
    ).publish()
    ts = pl.col("ts_event").dt.epoch("ns")
    return lake.scan(TRADES).filter(ts >= int(first), ts < int(last)).select("instrument_id").collect()
