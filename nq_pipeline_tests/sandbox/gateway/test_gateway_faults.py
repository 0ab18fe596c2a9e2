"""Each fault of the gateway as the official client sees it, and slow readers.

The official client hides much: a clean close is silent, a cut record looks like one, and nobody notices
silence before the first record. These tests document it.
"""

from __future__ import annotations

import errno
import io
import time
from datetime import timedelta
from typing import Any

import databento_dbn
import numpy as np
import pytest
from databento.common.error import BentoError

from nq_pipeline.clock import to_ns
from nq_pipeline.errors import SandboxError
from nq_pipeline.sandbox.gateway.fault_script import (
    ERRORS,
    GATEWAY_FAULTS,
    NOT_FATAL,
    Fault,
    FaultScript,
    parse_fault,
)
from nq_pipeline_tests.testing.gateway_client import NOON, Recorder, bare, gateway, recorder, unlimited


def ended_by(fault: Fault, **options: Any) -> tuple[Recorder, str, FaultScript]:
    """The client of a session that a fault ended, its error, and the script."""
    with (
        gateway(script=FaultScript(fault), limits=unlimited()).serve_in_thread() as served,
        recorder(served, **options) as client,
    ):
        error = client.end()
    return client, error, served.script


# ── ends ────────────────────────────────────────────────────────────────────────────────────────


def test_a_clean_close_follows_the_scripted_number_of_records() -> None:
    client, error, script = ended_by(Fault("fin", after_records=137))

    assert (len(client.array()), error) == (137, "")
    assert [(s.fault.kind, s.records) for s in script.injected] == [("fin", 137)]


def test_the_official_client_ignores_a_clean_close() -> None:
    with (
        gateway(script=FaultScript(Fault("fin", after_records=50))).serve_in_thread() as served,
        recorder(served, reconnect_policy="reconnect") as client,
    ):
        assert client.end() == ""

    assert len(client.array()) == 50


@pytest.mark.filterwarnings("ignore::databento.common.error.BentoWarning")
def test_the_official_client_ignores_a_full_disk() -> None:
    class FullDisk(io.BytesIO):
        def write(self, data: Any) -> int:
            if self.tell():
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    disk = FullDisk()
    with (
        gateway(script=FaultScript(Fault("fin", after_records=50))).serve_in_thread() as served,
        recorder(served, start=False) as client,
    ):
        client.live.add_stream(disk)
        client.subscribe()
        assert client.start().end() == ""

    assert disk.getvalue().startswith(b"DBN") and len(disk.getvalue()) < 50 * 48
    assert len(client.array()) == 50


def test_a_reset_reconnects_once_without_replay() -> None:
    _, error, _ = ended_by(Fault("rst", after_records=100))
    assert "reset" in error.lower()

    with (
        gateway(
            script=FaultScript(Fault("rst", after_records=100)), limits=unlimited()
        ).serve_in_thread() as served,
        recorder(served, reconnect_policy="reconnect") as client,
    ):
        client.wait(lambda: client.codes("SystemMsg").count(1) == 2)
        client.wait_for(len(client.array()) + 100)


def test_a_cut_record_looks_like_a_clean_close() -> None:
    client, error, _ = ended_by(Fault("cut", after_records=100))

    assert (len(client.array()), error) == (100, "")


def test_a_cut_record_is_half_a_record_on_the_wire() -> None:
    with (
        gateway(script=FaultScript(Fault("cut", after_records=3))).serve_in_thread() as served,
        bare(served) as client,
    ):
        client.authenticate()
        client.say("schema=trades|stype_in=parent|symbols=NQ.FUT,Q2B.OPT|id=0|is_last=1\nstart_session\n")
        stream = client.rest()

    decoder = databento_dbn.DBNDecoder()
    trades = [r for r in decoder.write_and_decode(stream) if isinstance(r, databento_dbn.TradeMsg)]
    assert len(trades) == 3
    assert len(decoder.buffer()) == 24


def test_garbage_ends_the_official_client_silently() -> None:
    client, error, _ = ended_by(Fault("garbage", after_records=100))

    # Whole records of the chunk in which the garbage begins are lost by the client, too.
    assert len(client.array()) <= 100
    assert error == ""
    assert not client.live.is_connected()


def test_silence_keeps_the_connection_open() -> None:
    with (
        gateway(script=FaultScript(Fault("silence", after_records=20))).serve_in_thread() as served,
        recorder(served, heartbeat_interval_s=1) as client,
    ):
        client.wait_for(20)
        time.sleep(1.5)

        assert len(client.array()) == 20
        assert 0 not in client.codes("SystemMsg")
        assert client.live.is_connected()


def test_metadata_can_be_withheld_forever() -> None:
    with (
        gateway(script=FaultScript(Fault("no_metadata"))).serve_in_thread() as served,
        recorder(served) as client,
    ):
        client.wait(lambda: served.script.injected)
        time.sleep(0.3)

        assert (client.heard, client.live.metadata) == ([], None)
        assert client.live.is_connected()


def test_authentication_can_be_refused_once_with_any_text() -> None:
    script = FaultScript(
        Fault("refuse_auth", text="Unable to submit the request because there is an unpaid invoice.")
    )
    with gateway(script=script).serve_in_thread() as served:
        with recorder(served, start=False) as client, pytest.raises(BentoError, match="unpaid invoice"):
            client.subscribe()
        with recorder(served) as client:
            client.wait_for(1)


def test_a_connection_can_be_refused_once() -> None:
    with gateway(script=FaultScript(Fault("refuse_connection"))).serve_in_thread() as served:
        with bare(served) as client:
            assert client.rest() == b""
        with bare(served) as client:
            assert client.line()


# ── errors in the stream ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("code", sorted(set(ERRORS) - NOT_FATAL))
def test_a_fatal_error_is_a_record_and_then_the_end(code: int) -> None:
    client, error, _ = ended_by(Fault("error", after_records=10, code=code))

    assert (client.codes("ErrorMsg"), error) == ([code], ERRORS[code])
    assert len(client.array()) == 10


@pytest.mark.parametrize("compression", [databento_dbn.Compression.NONE, databento_dbn.Compression.ZSTD])
def test_the_stream_continues_after_an_error_that_is_not_fatal(compression: Any) -> None:
    with (
        gateway(
            script=FaultScript(Fault("error", after_records=10, code=4, text="Mind"))
        ).serve_in_thread() as served,
        recorder(served, compression=compression, ts_out=True) as client,
    ):
        client.wait_for(50)

    assert [(int(e.code), e.err) for e in client.of("ErrorMsg")] == [(4, "Mind")]


def test_code_7_loses_the_records_it_reports() -> None:
    with (
        gateway(
            script=FaultScript(Fault("error", after_records=100, code=7, records=30))
        ).serve_in_thread() as served,
        recorder(served) as client,
    ):
        client.wait_for(500)
        begin = client.live.metadata.start if client.live.metadata else 0
        got = client.array()

    truth = served.records("trades", begin, int(got["ts_recv"][-1]) + 1)
    assert np.array_equal(got[:100], truth[:100])
    assert np.array_equal(got[100:], truth[130 : len(got) + 30])
    place = [type(r).__name__ for r in client.heard].index("ErrorMsg")
    assert [int(r.rtype) for r in client.heard[:place]].count(0) == 100


# ── records too few, too many ───────────────────────────────────────────────────────────────────


def test_a_replay_can_omit_records_and_claim_completeness() -> None:
    start = to_ns(NOON - timedelta(minutes=1))
    with (
        gateway(
            script=FaultScript(Fault("omit", after_records=1_000, records=7))
        ).serve_in_thread() as served,
        recorder(served, start=False) as client,
    ):
        client.subscribe(start=start)
        client.start()
        client.wait(lambda: 3 in client.codes("SystemMsg"))
        got = client.array()

    truth = served.records("trades", start, int(got["ts_recv"][-1]) + 1)
    truth = truth[truth["ts_event"] >= start]
    assert np.array_equal(got[:1_000], truth[:1_000])
    assert np.array_equal(got[1_000:], truth[1_007 : len(got) + 7])


def test_an_omission_waits_for_a_replay() -> None:
    with gateway(script=FaultScript(Fault("omit", records=7))).serve_in_thread() as served:
        with recorder(served) as client:
            client.wait_for(200)
        assert not served.script.injected

        with recorder(served, start=False) as client:
            client.subscribe(start=served.began)
            client.start().wait_for(10)
        assert [s.fault.kind for s in served.script.injected] == ["omit"]


def test_records_can_be_duplicated() -> None:
    with (
        gateway(
            script=FaultScript(Fault("duplicate", after_records=40, records=5))
        ).serve_in_thread() as served,
        recorder(served) as client,
    ):
        client.wait_for(200)
        begin = client.live.metadata.start if client.live.metadata else 0
        got = client.array()

    truth = served.records("trades", begin, int(got["ts_recv"][-1]) + 1)
    again = next(n for n in range(5, 0, -1) if np.array_equal(got[40 : 40 + n], got[40 + n : 40 + 2 * n]))
    assert np.array_equal(np.delete(got, slice(40, 40 + again)), truth[: len(got) - again])


# ── scripts ─────────────────────────────────────────────────────────────────────────────────────


def test_faults_happen_in_order_and_once() -> None:
    faults = [Fault(kind, after_records=20) for kind in ("fin", "cut", "rst", "fin")]
    with gateway(script=FaultScript(*faults), limits=unlimited()).serve_in_thread() as served:
        for _ in faults:
            with recorder(served) as client:
                client.end()
        with recorder(served) as client:
            client.wait_for(100)

    assert [s.fault for s in served.script.injected] == faults
    assert len({s.session_id for s in served.script.injected}) == 4
    assert not served.script.pending


def test_an_added_fault_happens_in_a_quiet_market_too() -> None:
    with (
        gateway(now=NOON + timedelta(days=4), load=None).serve_in_thread() as served,
        recorder(served) as client,
    ):
        client.wait(lambda: client.codes("SystemMsg") == [1])
        served.script.add(Fault("fin"))

        assert client.end() == ""


def test_a_fault_waits_for_its_time() -> None:
    with (
        gateway(script=FaultScript(Fault("fin", after_s=0.5))).serve_in_thread() as served,
        recorder(served) as client,
    ):
        started = time.monotonic()
        client.end()

    assert time.monotonic() - started > 0.3


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("fin", Fault("fin")),
        (" cut@1000", Fault("cut", after_records=1000)),
        ("error=7@2.5s", Fault("error", code=7, after_s=2.5)),
        ("omit=3", Fault("omit", records=3)),
        ("silence@4s", Fault("silence", after_s=4.0)),
    ],
)
def test_parse_fault(text: str, fault: Fault) -> None:
    assert parse_fault(text) == fault


@pytest.mark.parametrize("text", ["", "explode", "fin@", "fin@soon", "error=9", "fin=1=2", "FIN"])
def test_an_unknown_gateway_fault_lists_the_faults(text: str) -> None:
    with pytest.raises(SandboxError, match=", ".join(list(GATEWAY_FAULTS)[:4])):
        parse_fault(text)


# ── slow readers ────────────────────────────────────────────────────────────────────────────────

LINE = "schema={schema}|stype_in=raw_symbol|symbols=ALL_SYMBOLS|id=0|is_last=1\nstart_session\n"


def read_slowly(schema: str, more: str) -> tuple[list[Any], Any]:
    """A client that stops reading until the gateway has waited for it, then reads on."""
    limits = unlimited(slow_after_s=0.2)
    with (
        gateway(load=300_000, limits=limits).serve_in_thread() as served,
        bare(served, receive_buffer=65_536) as client,
    ):
        client.authenticate(more=more)
        client.say(LINE.format(schema=schema))
        head = client.read(3_000_000)
        # The buffers on the way take a few megabytes; after that the gateway waits.
        time.sleep(0.8)
        decoder = databento_dbn.DBNDecoder()
        heard: list[Any] = list(decoder.write_and_decode(head))
        give_up = time.monotonic() + 120
        while not {2, 7} & {int(r.code) for r in heard if int(getattr(r, "rtype", 0)) in (21, 23)}:
            assert time.monotonic() < give_up
            heard += decoder.write_and_decode(client.read(1_000_000))
        heard += decoder.write_and_decode(client.read(2_000_000))
    return heard[1:], served


def sequences(heard: list[Any]) -> list[int]:
    return [r.sequence for r in heard if int(r.rtype) in (0, 1)]


def test_a_slow_reader_of_trades_is_warned_and_loses_nothing() -> None:
    heard, _ = read_slowly("trades", "")

    warnings = [r.msg for r in heard if int(r.rtype) == 23 and int(r.code) == 2]
    assert warnings[0].startswith("Warning: slow reading")
    assert not [r for r in heard if int(r.rtype) == 21]
    assert set(np.diff(sequences(heard))) == {1}


def test_a_slow_reader_of_books_with_warn_loses_nothing() -> None:
    heard, _ = read_slowly("mbp-1", "|slow_reader_behavior=warn")

    assert any(int(r.rtype) == 23 and int(r.code) == 2 for r in heard)
    assert set(np.diff(sequences(heard))) == {1}


def test_a_slow_reader_of_books_skips_and_is_notified() -> None:
    heard, _ = read_slowly("mbp-1", "")

    losses = [i for i, r in enumerate(heard) if int(r.rtype) == 21]
    assert heard[losses[0]].err == "Slow client detected for mbp-1. Skipped records"
    assert int(heard[losses[0]].code) == 7
    before, after = sequences(heard[: losses[0]]), sequences(heard[losses[0] :])
    assert set(np.diff(before)) == {1}
    assert after[0] > before[-1] + 1
