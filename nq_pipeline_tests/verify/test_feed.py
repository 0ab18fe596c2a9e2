"""The checks of the live feed, against gateways that behave and gateways that do not, over real sockets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from nq_pipeline.capture.gap_tracker import OVERLAP_NS
from nq_pipeline.clock import NS_PER_S, PinnedClock, ShiftedClock
from nq_pipeline.errors import CaptureError
from nq_pipeline.sandbox.gateway.fault_script import Fault
from nq_pipeline.sandbox.gateway.feed import Limits
from nq_pipeline.sandbox.gateway.gateway import HOST
from nq_pipeline.verify.run import run_checks
from nq_pipeline_tests.testing.gateway_client import NOON
from nq_pipeline_tests.testing.verify_standins import (
    LOAD,
    QUICK,
    reason,
    run_verification,
    serve_feed,
    verdicts,
    verify_settings,
)

LIVE = ("connect", "stream", "symbols", "reconnect", "replay", "clock", "latency")
RECOVERY = ("connect", "stream", "reconnect", "replay")
LOST = 7
BEHIND_OVERLAP = LOAD * (OVERLAP_NS // NS_PER_S + 1)
"""So many records after a replay began it is past what was streamed before the drop."""
WITHIN_OVERLAP = LOAD * (OVERLAP_NS // NS_PER_S - 1)
SATURDAY = NOON + timedelta(days=4)


def test_a_sound_feed_passes_every_check_and_says_what_was_seen(tmp_path: Path) -> None:
    with serve_feed() as it:
        report = run_verification(it, tmp_path, *LIVE)
    assert verdicts(report) == dict.fromkeys(LIVE, "PASS"), report.results
    assert "gateway 0.8.0" in reason(report, "connect")
    assert "none lost, none twice" in reason(report, "reconnect")
    assert "not listed now" in reason(report, "symbols")
    assert report.sound and report.summary == "7 passed, 0 failed, 0 skipped"


def test_the_environments_log_and_lake_are_not_touched(tmp_path: Path) -> None:
    with serve_feed() as it:
        run_verification(it, tmp_path, *RECOVERY)
    assert [folder.name for folder in (tmp_path / "sandbox").iterdir()] == ["evidence"]


# ── connecting ──────────────────────────────────────────────────────────────────────────────────


def test_a_key_that_is_refused_fails_and_nothing_else_is_tried(tmp_path: Path) -> None:
    with serve_feed(keys=("db-another-key-0000000000000000000",)) as it:
        report = run_verification(it, tmp_path, *RECOVERY)
    assert verdicts(report) == {"connect": "FAIL", **dict.fromkeys(RECOVERY[1:], "SKIP")}
    assert "DATABENTO_API_KEY" in reason(report, "connect")
    assert reason(report, "stream") == "needs connect, which did not pass"
    assert not report.sound


def test_a_plan_without_the_dataset_fails_and_says_which_plan_has_it(tmp_path: Path) -> None:
    with serve_feed(refusal="A live data license is required to access GLBX.MDP3.") as it:
        report = run_verification(it, tmp_path, "connect")
    assert verdicts(report) == {"connect": "FAIL"}
    assert "CME Standard" in reason(report, "connect")


def test_a_session_without_metadata_fails(tmp_path: Path) -> None:
    with serve_feed(Fault("no_metadata")) as it:
        report = run_verification(it, tmp_path, "connect", timing=replace(QUICK, patience_s=2.0))
    assert verdicts(report) == {"connect": "FAIL"}
    assert "sent nothing" in reason(report, "connect")


def test_no_session_left_for_the_account_fails_and_says_so(tmp_path: Path) -> None:
    with serve_feed(limits=Limits(connections_per_s=1_000, sessions=0)) as it:
        report = run_verification(it, tmp_path, "connect")
    assert verdicts(report) == {"connect": "FAIL"}
    assert "no session left" in reason(report, "connect")


def test_a_connection_that_is_closed_at_once_fails(tmp_path: Path) -> None:
    with serve_feed(Fault("refuse_connection")) as it:
        report = run_verification(it, tmp_path, "connect")
    assert verdicts(report) == {"connect": "FAIL"}
    assert "does not greet" in reason(report, "connect")


def test_a_server_that_is_no_gateway_fails(tmp_path: Path) -> None:
    with talking(b"HTTP/1.1 400 Bad Request\r\n\r\n") as address, serve_feed() as it:
        report = run_verification(it, tmp_path, "connect", databento_gateway=address)
    assert verdicts(report) == {"connect": "FAIL"}
    assert "NQ_DATABENTO_GATEWAY" in reason(report, "connect")


def test_an_address_without_a_server_fails(tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as closed, serve_feed() as it:
        address = f"{HOST}:{closed.getsockname()[1]}"
        closed.close()
        report = run_verification(it, tmp_path, "connect", databento_gateway=address)
    assert verdicts(report) == {"connect": "FAIL"} and address in reason(report, "connect")


def test_without_a_key_the_gateway_is_skipped(tmp_path: Path) -> None:
    with serve_feed() as it:
        report = run_verification(it, tmp_path, *RECOVERY, databento_api_key=None)
    assert set(verdicts(report).values()) == {"SKIP"}
    assert "DATABENTO_API_KEY" in reason(report, "connect")
    assert report.sound


def test_a_clock_that_stands_still_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="NQ_NOW"):
        run_checks(verify_settings(None, tmp_path), clock=PinnedClock(NOON))


# ── streaming ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["fin", "rst", "cut", "garbage"])
def test_a_stream_that_ends_by_itself_fails(kind: str, tmp_path: Path) -> None:
    with serve_feed(Fault(kind, after_records=200)) as it:
        report = run_verification(it, tmp_path, "connect", "stream", stream_s=3.0)
    assert verdicts(report) == {"connect": "PASS", "stream": "FAIL"}


def test_records_that_the_gateway_skipped_fail(tmp_path: Path) -> None:
    with serve_feed(Fault("error", code=7, after_records=100, records=10)) as it:
        report = run_verification(it, tmp_path, "connect", "stream")
    assert verdicts(report) == {"connect": "PASS", "stream": "FAIL"}
    assert "Skipped records" in reason(report, "stream")


def test_an_open_market_without_a_trade_fails(tmp_path: Path) -> None:
    """The gateway is at the weekend, while the clock says that the market is open."""
    with serve_feed(now=SATURDAY, load=None) as it:
        report = run_verification(
            it, tmp_path, "connect", "stream", clock=ShiftedClock(NOON), timing=replace(QUICK, patience_s=1.5)
        )
    assert verdicts(report) == {"connect": "PASS", "stream": "FAIL"}
    assert "no trade arrived" in reason(report, "stream")


def test_a_first_trade_after_the_stream_was_to_end_is_waited_for(tmp_path: Path) -> None:
    with serve_feed() as it:
        report = run_verification(it, tmp_path, "connect", "stream", stream_s=0.01)
    assert verdicts(report) == {"connect": "PASS", "stream": "PASS"}


def test_a_closed_market_skips_the_stream_but_checks_symbols(
    tmp_path: Path,
) -> None:
    with serve_feed(now=SATURDAY, load=None) as it:
        report = run_verification(it, tmp_path, *LIVE, stream_s=3.0)
    assert verdicts(report) == {
        **dict.fromkeys(LIVE, "SKIP"), "connect": "PASS", "symbols": "PASS",
    }  # fmt: skip
    assert "opens Sun 2025-06-15 17:00 CT" in reason(report, "stream")
    assert report.sound


# ── recovering ──────────────────────────────────────────────────────────────────────────────────


def test_a_replay_that_leaves_out_what_was_missed_fails(tmp_path: Path) -> None:
    """The records left out lie behind the overlap with what was streamed: nothing else has them."""
    with serve_feed(Fault("omit", records=LOST, after_records=BEHIND_OVERLAP)) as it:
        report = run_verification(it, tmp_path, *RECOVERY, timing=replace(QUICK, outage_s=2.0))
    assert verdicts(report) == {"connect": "PASS", "stream": "PASS", "reconnect": "FAIL", "replay": "FAIL"}
    assert f"{LOST} missing and 0 too many" in reason(report, "reconnect")


def test_a_replay_that_leaves_out_what_was_streamed_before_fails(tmp_path: Path) -> None:
    """Within the overlap the table is whole all the same; the replay is not."""
    with serve_feed(Fault("omit", records=LOST, after_records=WITHIN_OVERLAP)) as it:
        report = run_verification(it, tmp_path, *RECOVERY, stream_s=2.0)
    assert verdicts(report) == {"connect": "PASS", "stream": "PASS", "reconnect": "PASS", "replay": "FAIL"}
    assert f"the replay after the drop has {LOST} missing and 0 too many" in reason(report, "replay")


def test_records_that_were_streamed_twice_fail(tmp_path: Path) -> None:
    with serve_feed(Fault("duplicate", records=20, after_records=LOAD)) as it:
        report = run_verification(it, tmp_path, *RECOVERY, stream_s=2.0)
    assert verdicts(report)["replay"] == "FAIL"
    assert "the stream has 0 missing and" in reason(report, "replay")


def test_a_session_that_ends_within_its_replay_fails(tmp_path: Path) -> None:
    with serve_feed(Fault("cut", after_records=WITHIN_OVERLAP)) as it:
        report = run_verification(it, tmp_path, *RECOVERY, stream_s=2.0)
    assert verdicts(report) == {"connect": "PASS", "stream": "PASS", "reconnect": "FAIL", "replay": "SKIP"}
    assert "the session after the drop: cut" in reason(report, "reconnect")


# ── what the plan grants ────────────────────────────────────────────────────────────────────────


def test_entitlement_shows_what_the_capture_falls_back_to(tmp_path: Path) -> None:
    with serve_feed() as it:
        report = run_verification(it, tmp_path, "connect", "entitlement", capture_schema="mbo")
    assert verdicts(report) == {"connect": "PASS", "entitlement": "PASS"}
    sentence = reason(report, "entitlement")
    assert sentence.startswith("granted: mbp-1, trades") and "Not authorized for mbo schema" in sentence
    assert "NQ_CAPTURE_SCHEMA=mbo falls back to mbp-1" in sentence


def test_a_plan_that_streams_no_trades_fails(tmp_path: Path) -> None:
    with serve_feed(not_entitled=("mbo", "mbp-1", "trades")) as it:
        report = run_verification(it, tmp_path, "connect", "stream", "entitlement")
    assert verdicts(report) == {"connect": "PASS", "stream": "FAIL", "entitlement": "FAIL"}
    assert "Not authorized for trades schema" in reason(report, "entitlement")


# ── time ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("off_s", "which"), [(2, "ahead of"), (-2, "behind")])
def test_a_local_clock_that_is_wrong_fails_and_says_which_way(
    off_s: float, which: str, tmp_path: Path
) -> None:
    with serve_feed() as it:
        wrong = ShiftedClock(it.clock.now() + timedelta(seconds=off_s))
        report = run_verification(it, tmp_path, "connect", "stream", "clock", clock=wrong)
    assert verdicts(report) == {"connect": "PASS", "stream": "PASS", "clock": "FAIL"}
    assert f"s {which} Databento's" in reason(report, "clock")


def test_records_that_come_seconds_late_fail(tmp_path: Path) -> None:
    with serve_feed() as it:
        late = ShiftedClock(it.clock.now() + timedelta(seconds=2))
        report = run_verification(it, tmp_path, "connect", "stream", "latency", clock=late)
    assert verdicts(report)["latency"] == "FAIL"
    assert "more than 1 s late" in reason(report, "latency")


@contextmanager
def talking(greeting: bytes) -> Iterator[str]:
    """A server that says something to whoever connects; its address."""
    with socket.create_server((HOST, 0)) as listening:

        def serve() -> None:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                connection.sendall(greeting)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"{HOST}:{listening.getsockname()[1]}"
        listening.close()
        thread.join(5)
