"""Captures of the stand-in gateway on a thread, and what their log and lake hold."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from nq_pipeline.capture.capture import Capture
from nq_pipeline.capture.gap_store import GapStore
from nq_pipeline.capture.log.reader import tail
from nq_pipeline.capture.publisher import Publisher
from nq_pipeline.capture.stats import CaptureStats
from nq_pipeline.capture.supervisor import Timing
from nq_pipeline.clock import to_ns
from nq_pipeline.configuration import build_settings
from nq_pipeline.lake.tables import GAPS, SESSIONS, TRADES
from nq_pipeline.sandbox.gateway.fault_script import Fault, FaultScript
from nq_pipeline.sandbox.gateway.feed import DATASET
from nq_pipeline.sandbox.gateway.gateway import HOST, KEY, Gateway
from nq_pipeline.settings import Settings
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.gateway_client import gateway

OPENS = datetime(2025, 6, 10, 13, 30, tzinfo=UTC)
CLOSES = datetime(2025, 6, 10, 20, tzinfo=UTC)
NOW = OPENS + timedelta(seconds=20)
PATIENCE_S = 240.0
LOAD = 500
"""Records a second of the stand-in's tape."""
QUICK = Timing(heartbeat_s=1, late_s=2.0, settle_s=0.3, aging_s=5.0, publish_s=0.2, report_s=0.05)
KEY_COLUMNS = ("instrument_id", "ts_event", "sequence", "price", "size")


def capture_settings(served: Gateway | None, data: Path, **more: Any) -> Settings:
    chosen = {
        "data_dir": data,
        "databento_api_key": KEY,
        "databento_gateway": f"{HOST}:{served.port}" if served else f"{HOST}:1",
        "capture_schema": "trades",
    }
    return build_settings(**{**chosen, **more})


@contextmanager
def serve_gateway(
    *faults: Fault, now: datetime = NOW, load: int | None = LOAD, **more: Any
) -> Iterator[Gateway]:
    with gateway(now=now, load=load, script=FaultScript(*faults), **more).serve_in_thread() as served:
        yield served


class RunningCapture:
    """A capture on a thread of its own.

    Attributes
    ----------
    notes
        The notes of its stats so far, repeated ones once.
    """

    def __init__(self, served: Gateway, data: Path, timing: Timing = QUICK, **more: Any) -> None:
        self.stop, self.served = threading.Event(), served
        self._publish, history = more.pop("publish", None), more.pop("history", None)
        self.capture = Capture(
            capture_settings(served, data, **more),
            clock=served.clock,
            timing=timing,
            history=history,
        )
        self.notes: list[str] = []
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @property
    def stats(self) -> CaptureStats:
        return self.capture.stats

    def _run(self) -> None:
        try:
            self.capture.run(self.stop, publish=self._publish, progress=self._note)
        except BaseException as error:
            self._failure = error

    def _note(self, stats: CaptureStats) -> None:
        if not self.notes or self.notes[-1] != stats.note:
            self.notes.append(stats.note)

    def until(self, enough: Callable[[], Any]) -> None:
        """Wait until something is true, or the capture has ended."""
        give_up = time.monotonic() + PATIENCE_S
        while not enough() and self._thread.is_alive():
            assert time.monotonic() < give_up, (self.notes, self.stats)
            time.sleep(0.01)

    def finish(self) -> CaptureStats:
        """Stop the capture; raises what it raised."""
        self.stop.set()
        return self.join()

    def join(self) -> CaptureStats:
        """Wait for the end of the capture; raises what it raised."""
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), self.notes
        if self._failure:
            raise self._failure
        return self.stats


def run_capture(
    served: Gateway, data: Path, until: Callable[[RunningCapture], Any], **more: Any
) -> CaptureStats:
    """Capture until something is true of the capture, then stop it cleanly."""
    running = RunningCapture(served, data, **more)
    try:
        running.until(lambda: until(running))
    finally:
        stats = running.finish()
    return stats


def all_verified(running: RunningCapture) -> bool:
    """Whether every gap is verified and the session of the last count is over; it would take a fault."""
    stats = running.stats
    return stats.verified_gaps > 0 and stats.open_gaps == 0 and running.served.streaming <= 1


def publisher_of(served: Gateway, data: Path) -> Publisher:
    workspace = Workspace(data / "sandbox")
    return Publisher(workspace.capture / DATASET, workspace.lake, clock=served.clock, run_id="test")


def record_stop(data: Path, at: datetime) -> None:
    """Store the session of an earlier capture that had everything up to an instant."""
    store = GapStore(Workspace(data / "sandbox").lake, dataset=DATASET, run_id="earlier")
    nothing = dict.fromkeys(("gateway_session", "replay_from", "detail", "code", "missing"))
    times = {"started_at": to_ns(at), "ended_at": to_ns(at), "proven_ts": to_ns(at)}
    numbers = {"session_key": "earlier-1", "schemas": "trades", "ended": "stopped", "records": 0, "bytes": 0}
    store.write_session({**nothing, **times, **numbers}, at)


# ── what was written ────────────────────────────────────────────────────────────────────────────


def read_gaps(data: Path) -> pl.DataFrame:
    """The current state of every gap, by its start."""
    rows = Workspace(data / "sandbox").lake.scan(GAPS).collect().sort("revision")
    return rows.group_by("gap_id").last().sort("first_ts")


def session_ends(data: Path) -> list[str]:
    """How each session ended, in order."""
    rows = Workspace(data / "sandbox").lake.scan(SESSIONS).collect()
    return rows.sort("ended_at")["ended"].to_list()


def logged_trades(data: Path) -> np.ndarray[Any, Any]:
    """All trades in the log."""
    folder = Workspace(data / "sandbox").capture / DATASET
    return np.concatenate([block.frame.array(0) for block in tail(folder)])


def log_is_complete(
    served: Gateway, data: Path, last_ns: int | None = None, *, first: datetime = OPENS
) -> bool:
    """Whether the log has every trade from an instant to `last_ns`, its own last by default, unchanged."""
    found = logged_trades(data)
    last_ns = last_ns or int(found["ts_event"].max())
    sent = served.records("trades", to_ns(first) - 10**9, last_ns + 10**9)
    return _distinct(found, first, last_ns).equals(_distinct(sent, first, last_ns))


def _distinct(trades: np.ndarray[Any, Any], first: datetime, last_ns: int) -> pl.DataFrame:
    """The trades of a span as words, without repetitions."""
    within = trades[(trades["ts_event"] >= to_ns(first)) & (trades["ts_event"] < last_ns)]
    words = np.ascontiguousarray(within).view("<u8").reshape(-1, within.dtype.itemsize // 8)
    return pl.from_numpy(words).unique().sort(pl.all())


def last_published(data: Path) -> int:
    """The newest `ts_event` in the lake, nanoseconds UTC."""
    newest = Workspace(data / "sandbox").lake.scan(TRADES).select(pl.col("ts_event").dt.epoch("ns").max())
    return int(newest.collect().item())


def published_and_sent(
    served: Gateway, data: Path, last_ns: int, *, first: datetime = OPENS
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The trades of the lake and of the tape between two instants, sorted, with repetitions."""
    rows = Workspace(data / "sandbox").lake.scan(TRADES)
    return rows_and_tape(served, rows, last_ns, first=first)


def rows_and_tape(
    served: Gateway, rows: pl.LazyFrame, last_ns: int, *, first: datetime = OPENS
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The trades of a frame and of the tape between two instants, sorted, with repetitions."""
    first_ns = to_ns(first)
    tape = served.records("trades", first_ns - 10**9, last_ns + 10**9)
    tape = tape[(tape["ts_event"] >= first_ns) & (tape["ts_event"] < last_ns)]
    sent = pl.DataFrame({name: tape[name].astype("i8") for name in KEY_COLUMNS})
    found = (
        rows.select(
            pl.col("instrument_id", "sequence", "size").cast(pl.Int64),
            pl.col("ts_event").dt.epoch("ns"),
            (pl.col("price") * 1e9).round().cast(pl.Int64),
        )
        .select(KEY_COLUMNS)
        .filter(pl.col("ts_event").is_between(first_ns, last_ns, closed="left"))
        .collect()
    )
    return found.sort(KEY_COLUMNS), sent.sort(KEY_COLUMNS)
