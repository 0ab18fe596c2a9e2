"""Captures in processes of their own, to be killed.

A fork server has everything imported, so a process captures within a fraction of a second. Without
that, two hundred of them would spend ten minutes importing.
"""

from __future__ import annotations

import multiprocessing
import threading
from datetime import datetime
from multiprocessing.process import BaseProcess
from pathlib import Path

from nq_pipeline.capture.capture import Capture
from nq_pipeline.capture.publisher import Publisher
from nq_pipeline.capture.supervisor import Timing
from nq_pipeline.clock import ShiftedClock
from nq_pipeline.configuration import build_settings
from nq_pipeline.market import sessions
from nq_pipeline.sandbox.gateway.gateway import Gateway
from nq_pipeline.sources.databento.spec import DatabentoSettings
from nq_pipeline.workspace import Workspace

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__])
sessions.trade_date(datetime.fromisoformat("2025-06-10T12:00+00:00"))  # the calendar takes a while to load


def start(it: Gateway, data: Path) -> BaseProcess:
    """Begin a capture of the stand-in; it goes on until it is killed."""
    words = (data, it.address, next(iter(it.keys)), it.clock.now())
    process = FORKS.Process(target=_capture, args=words, daemon=True)
    process.start()
    return process


def _capture(data: Path, gateway: str, key: str, now: datetime) -> None:
    clock = ShiftedClock(now)
    settings = build_settings(
        data_dir=data,
        databento_gateway=gateway,
        databento_api_key=key,
        capture_schema="trades",
    )
    capture = Capture(settings, clock=clock, timing=Timing(heartbeat_s=1, late_s=0.5, settle_s=0.3))
    log = Workspace.of(settings).capture / settings.vendor(DatabentoSettings).dataset
    publisher = Publisher(log, Workspace.of(settings).lake, clock=clock, run_id="killed")
    capture.run(threading.Event(), publish=publisher.publish)
