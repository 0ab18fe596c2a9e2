"""Trades, captured live: one run per trade date that goes on until the window closes.

The engine is the library's (`live/capture.py`) and so are its data: Dagster hosts it, and carries
nothing. A run that dies loses nothing that was on the disk, and its successor takes up the gap.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from nq_pipeline.capture import quality
from nq_pipeline.capture.capture import Capture
from nq_pipeline.capture.capture_policy import (
    LIVE_CAPTURE_TAG,
    SETTINGS_TAG,
    STOPPED_TAG,
    settings_fingerprint,
)
from nq_pipeline.capture.locks import claim_run
from nq_pipeline.capture.publisher import Publisher
from nq_pipeline.capture.stats import CaptureStats
from nq_pipeline.errors import CaptureBusy, CaptureError, LogFailed, NotConfigured, NotEntitled, NqError
from nq_pipeline.lake.tables import TRADES
from nq_pipeline.market import sessions
from nq_pipeline.market.sessions import describe_closure
from nq_pipeline.orchestration import freshness, metadata
from nq_pipeline.orchestration.checks.capture import TRADES_ASSET, evaluations
from nq_pipeline.orchestration.jobs import CAPTURE, KIND
from nq_pipeline.orchestration.partitions import CAPTURE_DATES
from nq_pipeline.orchestration.resources import Vendors
from nq_pipeline.orchestration.watch import Watch
from nq_pipeline.settings import Settings
from nq_pipeline.workspace import Workspace

GROUP = "capture"
OWNERS = ["team:market-data"]
HEALTH_ASSET = dg.AssetKey(["live", "capture_health"])

Sealed = dg.MaterializeResult[None]

HEALTH = dg.AssetSpec(
    HEALTH_ASSET,
    deps=[TRADES_ASSET],
    description="How the live capture is going: an observation a minute while it runs, and sooner when its "
    "state changes. Records and bytes so far, records a second since the last observation, lag from "
    "Databento's receipt to our log (99th percentile), sessions after the first, gaps by state, the schemas "
    "in force. See *Plots* on this page.",
    group_name=GROUP,
    owners=OWNERS,
    tags={"nq/layer": "health"},
    kinds={"databento"},
)


@dg.asset(
    key=TRADES_ASSET,
    partitions_def=CAPTURE_DATES,
    description="Trades in options on E-mini Nasdaq-100 futures and in the future itself, captured live "
    "from Databento's gateway: all 26 option roots and NQ, or those of NQ_PRODUCTS. The table is about a "
    "second behind the market "
    "while a capture runs; a partition is materialized when its window has closed and its gaps were looked "
    "after. The sensor `live_capture` keeps the capture going while the window is open "
    f"(NQ_CAPTURE_WINDOW); `nq capture` does the same in a terminal.\n\n{TRADES.meaning}",
    metadata={
        **metadata.of_table(TRADES),
        "vendor_documentation": dg.MetadataValue.url(
            "https://databento.com/docs/schemas-and-data-formats/trades"
        ),
    },
    group_name=GROUP,
    owners=OWNERS,
    freshness_policy=freshness.SEALED,
    tags={"nq/underlying": "future", "nq/cost": "plan"},
    kinds={"databento", "parquet"},
)
def trades(context: dg.AssetExecutionContext, vendors: dg.ResourceParam[Vendors]) -> Sealed:
    """Capture until the window closes, then seal; a cancelled run flushes first."""
    from nq_pipeline.sandbox.process import endpoints, gateway_clock
    from nq_pipeline.sources.databento.history_store import DatabentoHistory

    settings = vendors.settings()
    claim_run(Workspace.of(settings).capture, context.run.run_id)
    # A run launched by hand, perhaps from the asset's page, has none of these yet.
    tags = {
        KIND: CAPTURE,
        LIVE_CAPTURE_TAG: settings.environment,
        SETTINGS_TAG: settings_fingerprint(settings),
    }
    context.instance.add_run_tags(context.run.run_id, tags)
    try:
        with endpoints(settings) as reachable:
            capture = Capture(
                reachable,
                clock=gateway_clock(reachable),
                run_id=context.run.run_id,
                history=DatabentoHistory(reachable),
            )
            return _record(context, reachable, capture)
    except NqError as error:
        if _is_final(error):
            context.instance.add_run_tags(context.run.run_id, {STOPPED_TAG: type(error).__name__})
        raise dg.Failure(str(error), allow_retries=False) from error


def _record(context: dg.AssetExecutionContext, settings: Settings, capture: Capture) -> Sealed:
    workspace, clock = Workspace.of(settings), capture.clock
    day = sessions.trade_date(clock.now())
    if context.partition_key != day.isoformat():
        raise dg.Failure(
            f"The gateway streams the current session, which is {day}, and not {context.partition_key}; "
            f"launch the partition {day}.",
            allow_retries=False,
        )
    if not sessions.is_open(clock.now(), settings.capture_window):
        closed = describe_closure(clock.now(), settings.capture_window)
        raise dg.Failure(f"The capture window is closed: {closed}.", allow_retries=False)

    def over() -> str:
        return "" if sessions.trade_date(clock.now()) == day else f"trade date {day} is over"

    def observe(totals: CaptureStats, rate: float) -> None:
        shown = metadata.of_progress(totals, rate, trade_date=day, settings=settings)
        context.log_event(dg.AssetObservation(HEALTH_ASSET, metadata=shown))

    log = workspace.capture / settings.databento_dataset
    publisher = Publisher(log, workspace.lake, clock=clock, run_id=capture.run_id)
    stop, refusal = threading.Event(), ""
    try:
        with _signals(stop) as signals, Watch(context, stop, over=over, observe=observe) as watch:
            capture.run(stop, publish=publisher.publish, progress=watch.see)
            publisher.tidy()
    except NotEntitled as error:
        refusal = str(error)
        raise
    finally:
        # However it ended: a check that is not judged now would go on showing what was true before.
        now, missing = clock.now(), capture.totals.missing
        found = quality.read_capture_day(settings, now, day, missing=missing, refusal=refusal)
        for evaluation in evaluations(quality.judge_capture(found)):
            context.instance.report_runless_asset_event(evaluation)
    if signals or watch.given_up:
        # All is flushed; now Dagster is told what its signal would have done at once.
        raise dg.DagsterExecutionInterruptedError
    return dg.MaterializeResult(
        metadata=metadata.of_trades(capture.totals, trade_date=day, settings=settings)
    )


def _is_final(error: NqError) -> bool:
    """Whether trying again cannot help: a full disk may be freed and a capture end, a key stays refused."""
    if isinstance(error, CaptureBusy | LogFailed):
        return False
    return isinstance(error, CaptureError | NotEntitled | NotConfigured)


@contextmanager
def _signals(stop: threading.Event) -> Iterator[list[int]]:
    """Let SIGINT and SIGTERM end the capture in good order instead of being raised in the middle of it.

    Raised within a callback of the event loop, Dagster's interrupt could be lost, or take the last
    records with it. Yields the signals that came.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def act(number: int, _: object) -> None:
        came.append(number)
        stop.set()

    before = {number: signal.signal(number, act) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
