"""Trades, captured live: one run per trade date, until the window closes.

`capture/capture.py` does the work and keeps the data; Dagster only hosts it. A run that dies loses nothing
that was on the disk, and the next run fills the gap.
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
from nq_pipeline.capture.log.locks import claim_run, hold_run_lease
from nq_pipeline.capture.stats import CaptureStats
from nq_pipeline.errors import CaptureBusy, CaptureError, LogFailed, NotConfigured, NotEntitled, NqError
from nq_pipeline.lake.tables import TRADES
from nq_pipeline.market import sessions
from nq_pipeline.market.sessions import describe_closure
from nq_pipeline.orchestration import freshness, metadata
from nq_pipeline.orchestration.capture_watch import CaptureWatch
from nq_pipeline.orchestration.checks import capture_evaluations
from nq_pipeline.orchestration.names import CAPTURE, CAPTURE_HEALTH, KIND, LIVE_TRADES
from nq_pipeline.orchestration.partitions import CAPTURE_DATES
from nq_pipeline.orchestration.resources import Vendors
from nq_pipeline.orchestration.steps import MARKET_DATA
from nq_pipeline.settings import Settings
from nq_pipeline.signals import on_signal
from nq_pipeline.workspace import Workspace

GROUP = "capture"

Sealed = dg.MaterializeResult[None]

CAPTURE_HEALTH_SPEC = dg.AssetSpec(
    CAPTURE_HEALTH,
    deps=[LIVE_TRADES],
    description="The health of the live capture: an observation a minute while it runs, and sooner when its "
    "state changes. Records and bytes so far, records a second since the last observation, lag from "
    "Databento's receipt to our log (99th percentile), reconnects, gaps by state and the schemas in use. See "
    "*Plots* on this page.",
    group_name=GROUP,
    owners=MARKET_DATA,
    tags={"nq/layer": "health"},
    kinds={"databento"},
)


@dg.asset(
    key=LIVE_TRADES,
    partitions_def=CAPTURE_DATES,
    description="Trades in options on E-mini Nasdaq-100 futures and in the future itself, captured live "
    "from Databento's gateway: all 26 option roots and NQ, or those of NQ_PRODUCTS. The table is about a "
    "second behind the market while a capture runs. A partition is materialized when its window has closed "
    "and its gaps are filled or given up. The sensor `live_capture` keeps the capture going while the "
    f"window is open (NQ_CAPTURE_WINDOW); `nq capture` does the same in a terminal.\n\n{TRADES.meaning}",
    metadata={
        **metadata.of_table(TRADES),
        "vendor_documentation": dg.MetadataValue.url(
            "https://databento.com/docs/schemas-and-data-formats/trades"
        ),
    },
    group_name=GROUP,
    owners=MARKET_DATA,
    freshness_policy=freshness.SEALED,
    tags={"nq/underlying": "future", "nq/cost": "plan"},
    kinds={"databento", "parquet"},
)
def trades(context: dg.AssetExecutionContext, vendors: dg.ResourceParam[Vendors]) -> Sealed:
    """Capture until the window closes, then seal the partition; a cancelled run flushes first."""
    from nq_pipeline.runtime import endpoints, gateway_clock
    from nq_pipeline.sources.databento.gap_history import DatabentoHistory

    settings = vendors.settings()
    claim_run(Workspace.of(settings).capture, context.run.run_id)
    # A run launched by hand, perhaps from the asset's page, lacks these.
    tags = {
        KIND: CAPTURE,
        LIVE_CAPTURE_TAG: settings.environment,
        SETTINGS_TAG: settings_fingerprint(settings),
    }
    context.instance.add_run_tags(context.run.run_id, tags)
    try:
        with hold_run_lease(settings, context.run.run_id), endpoints(settings) as reachable:
            capture = Capture(
                reachable,
                clock=gateway_clock(reachable),
                run_id=context.run.run_id,
                history=DatabentoHistory(reachable),
            )
            return _capture_and_seal(context, reachable, capture)
    except NqError as error:
        if _is_final(error):
            context.instance.add_run_tags(context.run.run_id, {STOPPED_TAG: type(error).__name__})
        raise dg.Failure(str(error), allow_retries=False) from error


def _capture_and_seal(context: dg.AssetExecutionContext, settings: Settings, capture: Capture) -> Sealed:
    clock = capture.clock
    day = sessions.trade_date(clock.now())
    if context.partition_key != day.isoformat():
        raise dg.Failure(
            f"The gateway streams only the current session, {day}, not {context.partition_key}; "
            f"launch the partition {day}.",
            allow_retries=False,
        )
    if not sessions.is_open(clock.now(), settings.capture.window):
        closed = describe_closure(clock.now(), settings.capture.window)
        raise dg.Failure(f"The capture window is closed: {closed}.", allow_retries=False)

    def end_reason() -> str:
        return "" if sessions.trade_date(clock.now()) == day else f"trade date {day} is over"

    def observe(stats: CaptureStats, rate: float) -> None:
        state = metadata.of_progress(stats, rate, trade_date=day, settings=settings)
        context.log_event(dg.AssetObservation(CAPTURE_HEALTH, metadata=state))

    stop, refusal = threading.Event(), ""
    try:
        with (
            _signals_set(stop) as signals,
            CaptureWatch(context, stop, end_reason=end_reason, observe=observe) as watch,
        ):
            capture.run_and_publish(stop, progress=watch.update, warn=context.log.warning)
    except NotEntitled as error:
        refusal = str(error)
        raise
    finally:
        # However the capture ended: checks not evaluated now would keep showing what was true before.
        now, missing = clock.now(), capture.stats.missing
        found = quality.read_capture_day(settings, now, day, missing=missing, refusal=refusal)
        for evaluation in capture_evaluations(quality.judge_capture(found)):
            context.instance.report_runless_asset_event(evaluation)
    if signals or watch.abandoned:
        # Everything is flushed; now raise what Dagster's signal would have raised at once.
        raise dg.DagsterExecutionInterruptedError
    return dg.MaterializeResult(metadata=metadata.of_trades(capture.stats, trade_date=day, settings=settings))


def _is_final(error: NqError) -> bool:
    """Whether a new attempt cannot help. A full disk may be freed and another capture may end; a refused key
    stays refused."""
    if isinstance(error, CaptureBusy | LogFailed):
        return False
    return isinstance(error, CaptureError | NotEntitled | NotConfigured)


@contextmanager
def _signals_set(stop: threading.Event) -> Iterator[list[int]]:
    """Set `stop` on SIGINT and SIGTERM; yields the list of received signals.

    Dagster would raise its interrupt in the middle of a callback of the event loop, where it could be lost or
    take the last records with it.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def stop_for(number: int) -> None:
        received.append(number)
        stop.set()

    with on_signal(stop_for, signal.SIGINT, signal.SIGTERM):
        yield received
