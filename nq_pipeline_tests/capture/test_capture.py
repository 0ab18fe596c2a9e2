"""The capture against the stand-in of the gateway, over real sockets: what it writes."""

from __future__ import annotations

import errno
import re
import socket
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import SecretStr

from nq_pipeline.capture.capture import Capture
from nq_pipeline.capture.gap_store import GapStore
from nq_pipeline.capture.gap_tracker import OVERLAP_NS
from nq_pipeline.capture.gateway import AUTH_S, GatewaySession, Subscription
from nq_pipeline.capture.log.locks import hold_capture_lock
from nq_pipeline.capture.log.segments import list_segments
from nq_pipeline.capture.publisher import Publisher
from nq_pipeline.capture.supervisor import Timing
from nq_pipeline.clock import PinnedClock, ShiftedClock, to_ns
from nq_pipeline.errors import CaptureBusy, CaptureError, LogFailed, NotConfigured, NotEntitled
from nq_pipeline.lake.tables import GAPS, SESSIONS
from nq_pipeline.sandbox.gateway.fault_script import Fault, FaultScript
from nq_pipeline.sandbox.gateway.feed import DATASET, Limits
from nq_pipeline.sandbox.gateway.gateway import HOST, KEY, Gateway
from nq_pipeline.sandbox.synthetic.market import Market
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.capture_runs import (
    CLOSES,
    LOAD,
    NOW,
    OPENS,
    PATIENCE_S,
    QUICK,
    RunningCapture,
    all_verified,
    capture_settings,
    log_is_complete,
    logged_trades,
    read_gaps,
    record_stop,
    run_capture,
    serve_gateway,
    session_ends,
)
from nq_pipeline_tests.testing.gateway_client import gateway
from nq_pipeline_tests.testing.load_tape import LoadTape

LONG_SKIP = 2 * LOAD + LOAD * OVERLAP_NS // 10**9
BACKLOG_S = OVERLAP_NS / 1e9 + 2
"""A gateway that is behind by more than the overlap of a replay."""
FAST = 4.0
"""How much faster than the wall clock a market runs."""
BEYOND_OVERLAP = 2 * LOAD * OVERLAP_NS // 10**9


def test_a_capture_that_starts_late_has_everything_since_the_opening(tmp_path: Path) -> None:
    with serve_gateway() as it:
        totals = run_capture(it, tmp_path, all_verified)
        assert log_is_complete(it, tmp_path)
    (gap,) = read_gaps(tmp_path).to_dicts()
    assert (gap["cause"], gap["state"], gap["schema"]) == ("late start", "verified", "trades")
    assert gap["first_ts"] == OPENS and gap["last_ts"] >= NOW
    assert gap["records_replayed"] == gap["records_counted"] > 20 * 400
    assert session_ends(tmp_path) == ["stopped"]
    assert totals.records > 0 and totals.bytes > 48 * totals.records and totals.missing == []


@pytest.mark.parametrize("kind", ["fin", "rst", "cut", "garbage", "silence"])
def test_every_lost_connection_is_a_gap_that_is_filled_and_verified(kind: str, tmp_path: Path) -> None:
    with serve_gateway() as it:

        def filled(running: RunningCapture) -> bool:
            if not all_verified(running):
                return False
            if not it.script.injected and not it.script.pending:
                it.script.add(Fault(kind))
            return len(it.script.injected) == 1 and running.stats.verified_gaps == 2

        totals = run_capture(it, tmp_path, filled)
        assert log_is_complete(it, tmp_path)
    late, lost = read_gaps(tmp_path).to_dicts()
    names = {"fin": "closed", "rst": "reset", "silence": "silent"}
    assert (late["cause"], lost["cause"]) == ("late start", names.get(kind, kind))
    assert lost["state"] == "verified" and lost["records_replayed"] == lost["records_counted"]
    assert totals.reconnects == 1 and session_ends(tmp_path) == [names.get(kind, kind), "stopped"]


def test_after_a_lost_log_no_new_segment_passes_for_a_published_one(tmp_path: Path) -> None:
    cursor = tmp_path / "sandbox" / "lake" / "trades" / f"{DATASET}.published"
    cursor.parent.mkdir(parents=True)
    cursor.write_text("7:448")
    with serve_gateway() as it:
        run_capture(it, tmp_path, all_verified)
    numbers = [segment.number for segment in list_segments(tmp_path / "sandbox" / "capture" / DATASET)]
    assert numbers and min(numbers) == 8


def test_a_replay_that_leaves_records_out_is_caught_and_repeated(tmp_path: Path) -> None:
    with serve_gateway(Fault("omit", records=3, after_records=BEYOND_OVERLAP)) as it:
        totals = run_capture(it, tmp_path, lambda r: r.stats.verified_gaps >= 2 and all_verified(r))
        assert log_is_complete(it, tmp_path)
    late, repair = read_gaps(tmp_path).to_dicts()
    assert (late["state"], late["attempts"], repair["cause"]) == ("verified", 1, "repair")
    history = Workspace(tmp_path / "sandbox").lake.scan(GAPS).collect().sort("revision")
    reasons = history.filter(gap_id=late["gap_id"])["reason"].drop_nulls().to_list()
    assert any("the count found" in reason for reason in reasons)
    assert totals.reconnects == 1 and session_ends(tmp_path) == ["repair", "stopped"]


def test_rows_of_records_sent_twice_show_in_the_gap(tmp_path: Path) -> None:
    """Two equal records in a row are two trades, as far as a session goes: only the count knows better."""
    it = gateway(now=NOW, load=LOAD, script=FaultScript(Fault("duplicate", after_records=BEYOND_OVERLAP)))
    lake = tmp_path / "sandbox"
    publisher = Publisher(lake / "capture" / DATASET, Workspace(lake).lake, run_id="run", clock=it.clock)
    with it.serve_in_thread():
        totals = run_capture(it, tmp_path, lambda r: r.stats.verified_gaps == 2, publish=publisher.publish)
        assert log_is_complete(it, tmp_path)
    late, repair = read_gaps(tmp_path).to_dicts()
    assert (late["state"], late["attempts"], late["records_replayed"]) == (
        "verified",
        1,
        late["records_counted"],
    )
    assert late["rows_published"] == late["records_counted"] + 1
    assert "1 more, which the gateway sent twice" in late["reason"]
    assert (repair["rows_published"], repair["reason"]) == (repair["records_counted"], None)
    assert [alert for alert in totals.alerts() if "1 verified gaps" in alert]


def test_a_gap_stays_open_when_every_replay_leaves_records_out(tmp_path: Path) -> None:
    with serve_gateway() as it:

        def often_enough(running: RunningCapture) -> bool:
            if not it.script.pending:  # each replay leaves out more than the one before, counts too
                it.script.add(
                    Fault("omit", records=3 + len(it.script.injected), after_records=BEYOND_OVERLAP)
                )
            return running.stats.disputed_gaps > 0

        run_capture(it, tmp_path, often_enough)
    late = read_gaps(tmp_path).to_dicts()[0]
    assert late["state"] == "open" and "the count found" in late["reason"] and late["attempts"] == 3


def test_skipped_records_are_a_gap_that_is_replayed(tmp_path: Path) -> None:
    with serve_gateway() as it:

        def filled(running: RunningCapture) -> bool:
            if not all_verified(running):
                return False
            if not it.script.injected and not it.script.pending:
                it.script.add(Fault("error", code=7, records=LONG_SKIP))
            return running.stats.verified_gaps == 2

        run_capture(it, tmp_path, filled)
        assert log_is_complete(it, tmp_path)
    skipped = read_gaps(tmp_path).to_dicts()[1]
    assert skipped["cause"] == "skipped" and "Skipped records" in skipped["detail"]


def test_a_warning_of_slow_reading_is_shown_and_is_no_gap(tmp_path: Path) -> None:
    with serve_gateway(limits=Limits(slow_after_s=0.0)) as it:  # every reader is too slow
        totals = run_capture(it, tmp_path, lambda r: any("slow reader" in note for note in r.notes))
    assert totals.reconnects == 0


def test_the_capture_falls_back_to_a_schema_of_the_plan(tmp_path: Path) -> None:
    with serve_gateway(not_entitled=("mbo", "mbp-1")) as it:
        totals = run_capture(it, tmp_path, all_verified, capture_schema="mbo")
        assert totals.schemas == {"options": "trades", "futures": "trades"}
        assert session_ends(tmp_path) == ["error", "error", "stopped"]
        again = run_capture(it, tmp_path, all_verified, capture_schema="mbo")
        assert again.reconnects == 0 and session_ends(tmp_path)[3:] == ["stopped"]
        assert log_is_complete(it, tmp_path)


def test_two_schemas_refused_one_after_the_other_end_in_one(tmp_path: Path) -> None:
    with serve_gateway(not_entitled=("mbo", "mbp-1")) as it:
        wanted = {"capture_schema": "mbo", "capture_futures_schema": "mbp-1"}
        totals = run_capture(it, tmp_path, all_verified, **wanted)
        assert log_is_complete(it, tmp_path)
    assert totals.schemas == {"options": "trades", "futures": "trades"}
    assert session_ends(tmp_path) == ["error", "error", "stopped"]
    found = read_gaps(tmp_path)
    assert set(found["schema"]) == {"trades"} and set(found["state"]) == {"verified"}


def test_options_and_futures_may_have_schemas_of_their_own(tmp_path: Path) -> None:
    with serve_gateway() as it:
        totals = run_capture(it, tmp_path, lambda r: r.stats.verified_gaps == 2, capture_schema="mbp-1")
    assert totals.schemas == {"options": "mbp-1", "futures": "trades"}
    found = read_gaps(tmp_path)
    assert set(found["schema"]) == {"mbp-1", "trades"} and set(found["state"]) == {"verified"}


def test_a_plan_without_any_schema_is_a_clear_failure(tmp_path: Path) -> None:
    with (
        serve_gateway(not_entitled=("mbo", "mbp-1", "trades")) as it,
        pytest.raises(NotEntitled, match="CME Standard"),
    ):
        RunningCapture(it, tmp_path).join()


def test_a_plan_without_the_dataset_is_a_clear_failure(tmp_path: Path) -> None:
    text = "A live data license is required to access GLBX.MDP3."
    with (
        serve_gateway(Fault("refuse_auth", text=text)) as it,
        pytest.raises(NotEntitled, match=r"plan.*license"),
    ):
        RunningCapture(it, tmp_path).join()
    assert session_ends(tmp_path) == ["refused"]


def test_a_wrong_key_stops_with_what_to_correct_and_never_shows_it(tmp_path: Path) -> None:
    with serve_gateway(keys=("db-another-key-0000000000000000",)) as it:
        with pytest.raises(CaptureError, match="DATABENTO_API_KEY") as caught:
            RunningCapture(it, tmp_path).join()
        assert it.published and KEY not in str(caught.value)


def test_what_was_missed_between_two_captures_is_found_and_filled(tmp_path: Path) -> None:
    with serve_gateway() as it:
        run_capture(it, tmp_path, all_verified)
        began = it.clock.now()
        time.sleep(1)
        run_capture(it, tmp_path, all_verified)
        assert log_is_complete(it, tmp_path)
    between = read_gaps(tmp_path).to_dicts()[1]
    assert between["cause"] == "not running" and between["state"] == "verified"
    assert between["first_ts"] < began + timedelta(seconds=1) < between["last_ts"]


def test_a_backlog_at_the_stop_is_a_gap_that_is_filled(tmp_path: Path) -> None:
    with serve_gateway(speed=FAST) as it:
        running = RunningCapture(it, tmp_path)
        running.until(lambda: all_verified(running))
        it.script.add(Fault("drip"))
        running.until(lambda: it.script.injected)
        time.sleep(BACKLOG_S / FAST)
        running.finish()
        reached, stopped = int(logged_trades(tmp_path)["ts_event"].max()), to_ns(it.clock.now())
        assert stopped - reached > OVERLAP_NS, "no backlog"
        run_capture(it, tmp_path, all_verified)
        assert log_is_complete(it, tmp_path)
    assert to_ns(read_gaps(tmp_path)["first_ts"][-1]) <= reached


def test_a_window_missed_altogether_is_a_gap_out_of_reach(tmp_path: Path) -> None:
    with serve_gateway(load=None) as it:
        run_capture(it, tmp_path, all_verified)
    # A session that ends during the replay loses a further part, and the stand-in that makes a day
    # says nothing meanwhile.
    patient = replace(QUICK, late_s=PATIENCE_S)
    with serve_gateway(now=NOW + timedelta(days=2), load=None) as it:
        run_capture(it, tmp_path, lambda r: r.stats.verified_gaps, timing=patient)
    found = read_gaps(tmp_path)
    lost = found.filter(pl.col("state") == "unfillable")
    assert lost["trade_date"].to_list() == [OPENS.date(), OPENS.date() + timedelta(days=1)]
    assert "historical API" in lost["reason"][0]
    # What a day's replay still reaches of yesterday's window is filled.
    rest = found.filter(pl.col("state") == "verified", pl.col("first_ts") > NOW + timedelta(hours=12))
    assert rest["last_ts"][0] == CLOSES + timedelta(days=1) and rest["cause"][-1] == "late start"


def test_a_too_old_replay_continues_from_the_named_start(tmp_path: Path) -> None:
    limits = Limits(connections_per_s=1_000, replay_window_s=15)
    with serve_gateway(limits=limits) as it:
        run_capture(it, tmp_path, lambda r: r.stats.verified_gaps)
    *lost, rest = read_gaps(tmp_path).to_dicts()
    assert {gap["state"] for gap in lost} == {"unfillable"} and rest["state"] == "verified"
    assert lost[0]["first_ts"] == OPENS and lost[-1]["last_ts"] == rest["first_ts"] > OPENS


def test_a_too_old_replay_without_a_start_requests_everything(tmp_path: Path) -> None:
    faults = [Fault("error", code=8, text="Replay data aged out", after_records=LOAD)]
    with serve_gateway(*faults, limits=Limits(connections_per_s=1_000, replay_window_s=60)) as it:
        running = RunningCapture(it, tmp_path)
        running.until(lambda: it.script.injected)
        it.script.add(*(Fault("refuse_connection") for _ in range(2)))
        it.limits = Limits(connections_per_s=1_000, replay_window_s=10)
        running.until(lambda: running.stats.verified_gaps)
        running.finish()
        lost, rest = read_gaps(tmp_path).to_dicts()
        assert log_is_complete(it, tmp_path, first=rest["first_ts"])
    assert (lost["state"], rest["state"]) == ("unfillable", "verified")
    assert lost["first_ts"] == OPENS and lost["last_ts"] == rest["first_ts"] > OPENS + timedelta(seconds=5)


def test_the_capture_ends_with_the_window_and_proves_all_of_it(tmp_path: Path) -> None:
    with serve_gateway(now=CLOSES - timedelta(seconds=3), load=None) as it:
        totals = RunningCapture(it, tmp_path).join()
        assert it.clock.now() >= CLOSES
        assert log_is_complete(it, tmp_path, to_ns(CLOSES))
    assert totals.open_gaps == 0 and session_ends(tmp_path) == ["stopped"]


def test_a_backlog_at_the_close_is_still_received(tmp_path: Path) -> None:
    record_stop(tmp_path, CLOSES - timedelta(seconds=26))
    begins = CLOSES - timedelta(seconds=24)
    with serve_gateway(now=begins, load=40, speed=FAST) as it:
        running = RunningCapture(it, tmp_path, replace(QUICK, late_s=0.5))
        running.until(lambda: all_verified(running) and it.clock.now() > CLOSES - timedelta(seconds=8))
        it.script.add(Fault("drip"))
        running.join()
        assert log_is_complete(it, tmp_path, to_ns(CLOSES), first=begins)


def test_a_hole_after_the_close_is_none(tmp_path: Path) -> None:
    with serve_gateway(now=CLOSES - timedelta(seconds=3), load=None) as it:
        RunningCapture(it, tmp_path).join()
    with serve_gateway(now=OPENS + timedelta(days=1, seconds=5), load=None) as it:
        run_capture(it, tmp_path, all_verified)
    assert read_gaps(tmp_path)["cause"].to_list() == ["late start", "late start"]


def test_a_second_capture_refuses_to_start(tmp_path: Path) -> None:
    with serve_gateway() as it, hold_capture_lock(tmp_path / "sandbox" / "capture"):
        with pytest.raises(CaptureBusy, match="another capture"):
            RunningCapture(it, tmp_path).join()
        assert it.streaming == 0


def test_a_failed_log_stops_the_capture_and_leaves_a_gap(tmp_path: Path) -> None:
    with serve_gateway() as it:
        running = RunningCapture(it, tmp_path)
        running.until(lambda: all_verified(running))
        list_segments(tmp_path / "sandbox" / "capture" / DATASET)[-1].path.unlink()
        with pytest.raises(LogFailed, match="deleted"):
            running.join()
    assert read_gaps(tmp_path)["cause"].to_list() == ["late start", "failed"]
    assert read_gaps(tmp_path)["state"][1] == "open" and session_ends(tmp_path) == ["failed"]


def test_a_session_ends_only_when_its_records_are_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with serve_gateway() as it:
        running = RunningCapture(it, tmp_path, capture_sync_ms=60_000)
        running.until(lambda: all_verified(running))
        monkeypatch.setattr("nq_pipeline.capture.log.writer.sync_data", refuse)
        it.script.add(Fault("fin"))
        with pytest.raises(LogFailed, match="Input/output error"):
            running.join()
    assert read_gaps(tmp_path)["cause"].to_list() == ["late start", "failed"]
    assert session_ends(tmp_path) == ["failed"]


def test_a_gap_is_stored_before_the_next_session_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a capture killed meanwhile would leave a log whose last records seem to prove everything."""
    order: list[str] = []
    write, open_session = GapStore.write_session, GatewaySession.open

    def slow_write(store: GapStore, *arguments: Any) -> None:
        time.sleep(1)
        write(store, *arguments)
        order.append("stored")

    async def noted_open(session: GatewaySession, subscriptions: list[Subscription]) -> None:
        order.append("opened")
        await open_session(session, subscriptions)

    monkeypatch.setattr(GapStore, "write_session", slow_write)
    with serve_gateway() as it:
        running = RunningCapture(it, tmp_path)
        running.until(lambda: all_verified(running))
        monkeypatch.setattr(GatewaySession, "open", noted_open)
        it.script.add(Fault("fin"))
        running.until(lambda: running.stats.verified_gaps == 2)
        running.finish()
    assert order[:2] == ["stored", "opened"]


def test_a_gap_that_could_not_be_stored_is_found_by_the_next_capture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with serve_gateway() as it:
        running = RunningCapture(it, tmp_path)
        running.until(lambda: all_verified(running))
        with monkeypatch.context() as patch:
            patch.setattr(GapStore, "write", refuse)
            it.script.add(Fault("fin"))
            with pytest.raises(OSError, match="No space left"):
                running.join()
        dropped_ns = int(logged_trades(tmp_path)["ts_event"].max())
        run_capture(it, tmp_path, all_verified)
        assert log_is_complete(it, tmp_path)
    lost = read_gaps(tmp_path).to_dicts()[-1]
    assert (lost["cause"], lost["state"]) == ("not running", "verified")
    assert to_ns(lost["first_ts"]) <= dropped_ns


def test_a_capture_stops_while_it_waits_for_the_gateways_answer(tmp_path: Path) -> None:
    with serve_gateway() as it, socket.create_server((HOST, 0)) as mute:
        running = RunningCapture(it, tmp_path, databento_gateway=f"{HOST}:{mute.getsockname()[1]}")
        connection, _ = mute.accept()
        asked = time.monotonic()
        running.finish()
        assert time.monotonic() - asked < AUTH_S / 2
        connection.close()
    assert session_ends(tmp_path) == ["stopped"]


def test_no_alarm_where_the_roots_that_are_always_listed_are_named(tmp_path: Path) -> None:
    timing = Timing(heartbeat_s=1, late_s=0.5, settle_s=0.3, missing_s=0.2)
    with serve_gateway() as it:
        known = run_capture(it, tmp_path, lambda r: r.stats.seconds > 2, timing=timing)
    assert known.missing == []


class NoQuarterlies(Market):
    """A market whose plan, or whose vendor, lacks the quarterly options."""

    def _contracts(self, proxy: str | None, trade_date: date) -> pl.DataFrame:
        return super()._contracts(proxy, trade_date).filter(pl.col("root") != "NQ")


def test_a_root_that_is_always_listed_and_not_named_is_an_alert(tmp_path: Path) -> None:
    timing = Timing(heartbeat_s=1, late_s=0.5, settle_s=0.3, missing_s=1.5)
    market = Gateway(LoadTape(NoQuarterlies(), LOAD), clock=ShiftedClock(NOW))
    with market.serve_in_thread() as it:
        running = RunningCapture(it, tmp_path, timing)
        running.until(lambda: running.stats.missing)
        totals = running.finish()
    assert totals.missing == ["NQ.OPT"]
    assert "ALERT: the gateway names no instrument of NQ.OPT" in running.notes
    (alert,) = totals.alerts()
    assert "NQ.OPT" in alert
    sessions = Workspace(tmp_path / "sandbox").lake.scan(SESSIONS).collect()
    assert sessions.sort("ended_at")["missing"][-1] == "NQ.OPT"


def test_a_failing_publisher_is_shown_and_raised_at_the_end(tmp_path: Path) -> None:
    def broken() -> None:
        raise CaptureError("no rows today")

    with serve_gateway() as it:
        running = RunningCapture(it, tmp_path, publish=broken)
        running.until(lambda: running.stats.publish_failure)
        before = running.stats.records
        running.until(lambda: running.stats.records > before)
        with pytest.raises(CaptureError, match="no rows today"):
            running.finish()


def test_what_was_captured_is_published_once_more_at_the_end(tmp_path: Path) -> None:
    calls: list[int] = []
    with serve_gateway() as it:
        run_capture(it, tmp_path, all_verified, publish=lambda: calls.append(len(logged_trades(tmp_path))))
    assert calls[-1] == len(logged_trades(tmp_path))


def test_outside_the_window_the_capture_says_when_it_opens(tmp_path: Path) -> None:
    closed = Capture(capture_settings(None, tmp_path), clock=ShiftedClock(CLOSES), timing=QUICK)
    with pytest.raises(CaptureError, match="opens 2025-06-11 13:30 UTC"):
        closed.run(threading.Event())


def test_a_capture_needs_a_clock_that_runs_and_a_key(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="NQ_NOW"):
        Capture(capture_settings(None, tmp_path), clock=PinnedClock(NOW))
    keyless = capture_settings(None, tmp_path).with_values(databento_api_key=None)
    with pytest.raises(NotConfigured, match="DATABENTO_API_KEY"):
        Capture(keyless)
    wrong = capture_settings(None, tmp_path).with_values(databento_api_key=SecretStr("abc"))
    with pytest.raises(NotConfigured, match="is not a Databento key"):
        Capture(wrong.with_values(databento_gateway=None))


def test_an_unreachable_gateway_is_retried_within_its_limit(tmp_path: Path) -> None:
    faults = [Fault("refuse_connection") for _ in range(4)]
    with serve_gateway(*faults) as it:  # with the vendor's limit of connections a second
        totals = run_capture(it, tmp_path, all_verified)
        assert log_is_complete(it, tmp_path)
    assert session_ends(tmp_path).count("unreachable") == 4 == totals.reconnects
    assert read_gaps(tmp_path)["cause"].to_list() == ["late start"]


class Hurried(ShiftedClock):
    """The market at its own pace, and pauses a hundred times as fast."""

    def monotonic(self) -> float:
        return super().monotonic() * 100


class Endless(FaultScript):
    """The same fault again and again, once it is begun."""

    def __init__(self, fault: Fault, *, begun: bool = True) -> None:
        super().__init__()
        self.fault, self.begun = fault, begun

    def next_due(self, kinds: Collection[str]) -> Fault | None:
        return self.fault if self.begun and self.fault.kind in kinds else None

    def claim(self, fault: Fault, session_id: int, records: int = 0) -> bool:
        return self.begun


def pauses(running: RunningCapture) -> list[float]:
    """The pauses that a capture took, repeated ones once."""
    return [float(found[1]) for note in running.notes if (found := re.search(r"attempt in ([\d.]+) s", note))]


@contextmanager
def hurried(
    script: FaultScript, data: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Gateway, RunningCapture]]:
    """A capture whose jitter is none."""
    monkeypatch.setattr("random.random", lambda: 1.0)
    it = gateway(load=LOAD, script=script, limits=Limits(connections_per_s=1_000))
    it.clock = Hurried(NOW)
    with it.serve_in_thread():
        running = RunningCapture(it, data)
        try:
            yield it, running
        finally:
            running.finish()


def test_sessions_that_prove_nothing_back_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hurried(Endless(Fault("fin", after_records=4)), tmp_path, monkeypatch) as (_, running):
        running.until(lambda: running.stats.reconnects == 6)
    assert pauses(running) == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0]


def test_a_failing_second_count_backs_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Endless(Fault("refuse_connection"), begun=False)
    with hurried(script, tmp_path, monkeypatch) as (it, running):
        running.until(lambda: it.streaming)
        script.begun = True
        running.until(lambda: len(pauses(running)) == 4)
    assert pauses(running)[:4] == [1.0, 2.0, 4.0, 8.0]
