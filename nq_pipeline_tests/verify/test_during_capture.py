"""A verification beside a running capture: each has its own, and neither disturbs the other."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from pathlib import Path

from nq_pipeline.capture.capture import Capture
from nq_pipeline.capture.log.segments import list_segments
from nq_pipeline.capture.supervisor import Timing
from nq_pipeline.lake.tables import SESSIONS
from nq_pipeline.sandbox.gateway.feed import DATASET
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.verify_standins import run_verification, serve_feed, verdicts, verify_settings

CHECKS = ("connect", "stream", "symbols", "reconnect", "replay")
OPENED = datetime(2025, 6, 10, 13, 31, tzinfo=UTC)
PATIENCE_S = 120.0


def test_a_capture_and_a_verification_run_side_by_side(tmp_path: Path) -> None:
    stop, environment = threading.Event(), tmp_path / "sandbox"
    with serve_feed(load=100, now=OPENED) as it:
        engine = Capture(
            verify_settings(it, tmp_path, capture_window="rth"),
            clock=it.clock,
            timing=Timing(heartbeat_s=1, settle_s=0.3),
        )
        capturing = threading.Thread(target=engine.run, args=(stop,))
        capturing.start()
        try:
            give_up = time.monotonic() + PATIENCE_S
            while not list_segments(environment / "capture" / DATASET):
                assert capturing.is_alive() and time.monotonic() < give_up
                time.sleep(0.02)
            report = run_verification(it, tmp_path, *CHECKS)
        finally:
            stop.set()
            capturing.join(PATIENCE_S)
    assert verdicts(report) == dict.fromkeys(CHECKS, "PASS"), report.results
    kept = Workspace(environment).lake.scan(SESSIONS).collect()
    assert kept["ended"].to_list() == ["stopped"]
    assert engine.stats.reconnects == 0
