"""A live capture: puts its parts together and runs it until the window closes.

    gateway ──► log             each chunk within one call, on the event loop's thread
                 └──► publish   about every second, on a thread of its own (`publisher`)
    session ended ──► `supervisor` ──► next session, replayed from the last proven moment
    replay completed ──► second replay, only counted (`recount`) ──► gap verified, or replayed again
    gap older than the replay ──► historical API, bought only within a budget (`gap_repair`)

`gap_tracker` knows what is proven and what is missing. Nothing here knows its host: a terminal, a
Dagster run and a test all call `Capture(...).run(stop)`.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING

from nq_pipeline.capture import gateway
from nq_pipeline.capture.gap_repair import GapRepairer, HistoricalRecords
from nq_pipeline.capture.gap_store import BackgroundWriter, GapStore
from nq_pipeline.capture.gap_tracker import GapTracker
from nq_pipeline.capture.gaps import open_window
from nq_pipeline.capture.gateway import GatewayConnector
from nq_pipeline.capture.log.copies import copy_after_capture
from nq_pipeline.capture.log.locks import hold_capture_lease
from nq_pipeline.capture.log.writer import CaptureLog
from nq_pipeline.capture.publisher import Publisher, PublishLoop, newest_token
from nq_pipeline.capture.recount import LakeComparison
from nq_pipeline.capture.schema_fallback import SchemaFallback
from nq_pipeline.capture.stats import CaptureStats, Meter
from nq_pipeline.capture.supervisor import SessionSupervisor, Timing
from nq_pipeline.clock import Clock, to_ns
from nq_pipeline.errors import CaptureError, NotConfigured
from nq_pipeline.leases.leases import Lease
from nq_pipeline.market import sessions
from nq_pipeline.sources.databento.spec import DatabentoSettings, check_databento_key
from nq_pipeline.workspace import Workspace

if TYPE_CHECKING:
    from nq_pipeline.settings import Settings


class Capture:
    """A capture of the window that is open. `stats`, always the same object, says what it has done so far.

    `settings` have a Databento key, and the gateway's address unless it is the vendor's. `clock` is the
    gateway's: wall time, or the stand-in's. `history` is for what the gateway no longer replays; its counts
    and prices are free, and records are bought only with `NQ_CAPTURE_REPAIR=paid`.

    Raises `CaptureError` for a pinned clock, `NotConfigured` for a missing or malformed key.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock | None = None,
        run_id: str | None = None,
        timing: Timing | None = None,
        history: HistoricalRecords | None = None,
    ) -> None:
        self.clock = clock or settings.clock
        if self.clock.pinned:
            raise CaptureError("a capture needs a running clock; unset NQ_NOW")
        databento = settings.vendor(DatabentoSettings)
        key, self._dataset = databento.api_key, databento.dataset
        if key is None:
            raise NotConfigured("a capture needs a Databento key; set DATABENTO_API_KEY")
        self.run_id = run_id or uuid.uuid4().hex
        self.stats = CaptureStats()
        self._settings, self._history, self._timing = settings, history, timing or Timing()
        workspace = Workspace.of(settings)
        self._root, self._lake = workspace.capture, workspace.lake
        address = gateway.gateway_address(databento.gateway, self._dataset)
        check_databento_key(key, address[0])
        heartbeat_s, late_s = self._timing.heartbeat_s, self._timing.late_s
        self._connector = GatewayConnector(
            key, self._dataset, address, heartbeat_s, late_s, settings.capture.zstd
        )
        self._parents = {
            "options": gateway.option_parents(settings.products),
            "futures": gateway.future_parents(settings.products),
        }

    def run(
        self,
        stop: threading.Event,
        *,
        publish: Callable[[], object] | None = None,
        progress: Callable[[CaptureStats], None] | None = None,
        lease: Lease | None = None,
    ) -> CaptureStats:
        """Capture until the window closes and its gaps are filled, or `stop` is set.

        `publish` and `progress` are called about every second, `publish` also at the end. `lease` is the
        lease `capture`, which sets `stop` when it is lost; nothing is published without it.

        Raises
        ------
        LeaseLost
            Another machine may capture now.
        CaptureError
            The window is closed, or continuing cannot help; the message says what to do.
        CaptureBusy
            Another process captures.
        LogFailed
            The disk refuses writes; a gap row says from when records are missing.
        NotEntitled
            The plan has no live data.
        """
        settings, window = self._settings, self._settings.capture.window
        opened = open_window(self.clock.now(), window)
        if opened is None:
            opens = sessions.next_open(self.clock.now(), window)
            raise CaptureError(
                f"the capture window ({window}) is closed; it opens {opens:%Y-%m-%d %H:%M} UTC. "
                "Start the capture then, or set NQ_CAPTURE_WINDOW"
            )
        opens, closes = opened
        store = GapStore(self._lake, dataset=self._dataset, run_id=self.run_id)
        wanted = {"options": settings.capture.options_schema, "futures": settings.capture.futures_schema}
        comparison = LakeComparison(store, publish, lease)
        with (
            CaptureLog(
                self._root,
                self._dataset,
                clock=self.clock,
                sync_every_s=settings.capture.sync_ms / 1000,
                after=self._published_segment(),
            ) as log,
            BackgroundWriter() as writer,
        ):
            with PublishLoop(
                publish and comparison.publish, self.stats, sync=log.sync, every_s=self._timing.publish_s
            ) as loop:
                tracker = GapTracker(
                    store,
                    writer.submit,
                    clock=self.clock,
                    run_id=self.run_id,
                    window=window,
                    opens_ns=to_ns(opens),
                    close_ns=to_ns(closes) if closes else None,
                    settle_s=self._timing.settle_s,
                    aging_s=self._timing.aging_s,
                )
                repairer = GapRepairer(
                    self._history,
                    self._lake,
                    buys=settings.capture.repair == "paid",
                    run_id=self.run_id,
                    clock=self.clock,
                    wait_for_publication=loop.wait,
                )
                supervisor = SessionSupervisor(
                    clock=self.clock,
                    run_id=self.run_id,
                    timing=self._timing,
                    stop=stop,
                    closes=closes,
                    parents=self._parents,
                    fallback=SchemaFallback(self._lake, self._dataset, wanted),
                    connector=self._connector,
                    log=log,
                    tracker=tracker,
                    store=store,
                    writer=writer,
                    repairer=repairer,
                    comparison=comparison,
                    meter=Meter(self.stats, progress, every_s=self._timing.report_s),
                    proven_ns=to_ns(opens),
                )
                tracker.load_gaps(log.folder, supervisor.streams)
                with repairer:
                    asyncio.run(supervisor.run())
                if lease:
                    lease.check()
                supervisor.collect_repairs()
            supervisor.collect_repairs()  # also what the last publication was compared with
        supervisor.report()
        return self.stats

    def run_and_publish(
        self,
        stop: threading.Event,
        *,
        progress: Callable[[CaptureStats], None] | None,
        warn: Callable[[str], object],
    ) -> CaptureStats:
        """Hold the lease, `run`, publish to the lake, and copy the sealed segments to the object store.

        The loss of the lease sets `stop`; `warn` gets a sentence where segments cannot be copied. Raises also
        `CaptureBusy` when another process captures.
        """
        above = newest_token(self._lake)
        with hold_capture_lease(self._settings, run_id=self.run_id, on_lost=stop.set, above=above) as lease:
            log = self._root / self._dataset
            publisher = Publisher(log, self._lake, clock=self.clock, run_id=self.run_id, token=lease.token)
            stats = self.run(stop, publish=publisher.publish, progress=progress, lease=lease)
            publisher.tidy()
        copy_after_capture(self._root, Workspace.of(self._settings).segment_copies, warn)
        return stats

    def _published_segment(self) -> int:
        """The newest published segment: were it lost, a new segment must not reuse its number."""
        try:
            return Publisher(self._root / self._dataset, self._lake, run_id=self.run_id).position.segment
        except CaptureError:  # the publisher meets the same error and reports it
            return 0
