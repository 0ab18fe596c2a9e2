"""Sessions against the stand-in of the gateway, over real sockets."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest
from databento.live.protocol import DatabentoLiveProtocol
from pydantic import SecretStr

from nq_pipeline.capture.gateway import (
    GatewayConnector,
    GatewaySession,
    Subscription,
    future_parents,
    gateway_address,
    missing_parents,
    option_parents,
)
from nq_pipeline.capture.reconnect_policy import EndReason, SessionEnd
from nq_pipeline.clock import to_ns
from nq_pipeline.dbn.framer import Frame
from nq_pipeline.errors import LogFailed
from nq_pipeline.sandbox.gateway.fault_script import Fault, FaultScript
from nq_pipeline.sandbox.gateway.feed import DATASET, Limits
from nq_pipeline.sandbox.gateway.gateway import HOST, KEY, Gateway
from nq_pipeline_tests.testing.gateway_client import NOON, gateway, unlimited

PARENTS = (*option_parents(), *future_parents())
PATIENCE_S = 30.0


@contextmanager
def served(*faults: Fault, **more: Any) -> Iterator[Gateway]:
    with gateway(script=FaultScript(*faults), **{"limits": unlimited(), **more}).serve_in_thread() as it:
        yield it


def session(
    it: Gateway | int,
    until: Callable[[GatewaySession], object] = lambda session: False,
    *,
    record: Callable[[Frame], None] | None = None,
    key: str = KEY,
    schema: str = "trades",
    start_ns: int | None = None,
    parents: tuple[str, ...] = PARENTS,
    **more: Any,
) -> tuple[GatewaySession, SessionEnd]:
    """Hold a session until it ends or `until` is true of it."""

    async def hold() -> tuple[GatewaySession, SessionEnd]:
        port = it if isinstance(it, int) else it.port
        connector = GatewayConnector(SecretStr(key), DATASET, (HOST, port), **more)
        held = GatewaySession(connector, record or (lambda frame: None))
        await held.open([Subscription(schema, parents, start_ns)])
        async with asyncio.timeout(PATIENCE_S):
            while not held.ending.done() and not until(held):
                await asyncio.sleep(0.005)
        held.close(SessionEnd(EndReason.STOPPED))
        return held, await held.ending

    return asyncio.run(hold())


def test_the_client_still_has_the_private_methods_we_replace() -> None:
    assert callable(DatabentoLiveProtocol._process_dbn)
    assert callable(DatabentoLiveProtocol._process_gateway)


def test_a_gateway_that_never_ends_its_greeting_is_left() -> None:
    with socket.create_server((HOST, 0)) as listening:

        def babble() -> None:
            peer, _ = listening.accept()
            with peer, suppress(OSError):
                while True:
                    peer.sendall(b"x" * 65_536)

        thread = threading.Thread(target=babble)
        thread.start()
        _, ending = session(listening.getsockname()[1])
        thread.join()
    assert ending.reason is EndReason.GARBAGE and "no answer to the key" in ending.text


def test_there_are_26_option_roots_and_one_future() -> None:
    assert len(set(option_parents())) == 26
    assert {"NQ.OPT", "QNE.OPT", "QN4.OPT", "Q5D.OPT"} <= set(option_parents())
    assert future_parents() == ("NQ.FUT",)


def test_the_address_is_the_vendors_or_the_configured_one() -> None:
    assert gateway_address(None, "GLBX.MDP3") == ("glbx-mdp3.lsg.databento.com", 13_000)
    assert gateway_address("127.0.0.1:4711", "GLBX.MDP3") == ("127.0.0.1", 4711)


@pytest.mark.parametrize("zstd", [False, True])
def test_a_session_brings_every_byte_of_the_tape(zstd: bool) -> None:
    frames: list[Frame] = []
    with served() as it:
        held, ending = session(it, lambda s: s.state.records > 3_000, record=frames.append, zstd=zstd)
        got = np.concatenate([frame.array(0) for frame in frames])
        first, last = int(got["ts_recv"][0]), int(got["ts_recv"][-1])
        sent = it.records("trades", first, last + 1)
    assert ending == SessionEnd(EndReason.STOPPED)
    assert len(got) == held.state.records
    assert got.tobytes() == sent[: len(got)].tobytes()


def test_every_listed_root_is_mapped_and_missing_ones_are_named() -> None:
    with served() as it:
        held, _ = session(it, lambda s: s.state.records)
    always, at_times = missing_parents(PARENTS, held.state.mapped)
    assert always == [] and {"NQ.OPT", "NQ.FUT"} <= held.state.mapped
    assert not any(parent.startswith("Q5") for parent in at_times)
    assert missing_parents(PARENTS, set())[0] == ["NQ.OPT", "NQ.FUT"]
    assert len(missing_parents(PARENTS, set())[1]) == 26 - 1 - 4


def test_symbols_the_gateway_does_not_know_end_nothing() -> None:
    with served() as it:
        held, _ = session(it, lambda s: s.state.records, parents=("NQ.OPT", "NQ.FUT", "QQ9.OPT"))
    assert len(held.state.unknown) == 1 and "QQ9.OPT" in held.state.unknown[0]


def test_a_replay_reports_its_end() -> None:
    with served() as it:
        begin = to_ns(NOON) - 60 * 10**9
        held, _ = session(it, lambda s: s.state.replayed, start_ns=begin)
        done = held.state.replayed["trades"]
    assert to_ns(NOON) <= done
    assert held.state.records > 60_000


@pytest.mark.parametrize(
    ("fault", "how"),
    [
        (Fault("fin", after_records=500), EndReason.CLOSED),
        (Fault("rst", after_records=500), EndReason.RESET),
        (Fault("cut", after_records=500), EndReason.CUT),
        (Fault("garbage", after_records=500), EndReason.GARBAGE),
        (Fault("silence", after_records=500), EndReason.SILENT),
        (Fault("error", after_records=500, code=6), EndReason.ERROR),
        (Fault("error", after_records=500, code=8), EndReason.ERROR),
    ],
)
def test_every_end_has_its_name(fault: Fault, how: EndReason) -> None:
    with served(fault) as it:
        held, ending = session(it, heartbeat_s=1, late_s=0.5)
    assert ending.reason is how and held.state.records
    # What was sent just before a reset may be lost with it.
    assert held.state.records == 500 or (how is EndReason.RESET and held.state.records <= 500)
    if how is EndReason.ERROR:
        assert ending.code == fault.code


def test_silence_is_noticed_before_the_first_byte_of_the_stream() -> None:
    with served(Fault("no_metadata")) as it:
        held, ending = session(it, heartbeat_s=1, late_s=0.5)
    assert ending.reason is EndReason.SILENT and not held.state.records
    assert held.state.began is None


def test_heartbeats_keep_a_quiet_session_alive() -> None:
    with served(load=None) as it:
        _, ending = session(it, lambda s: s.state.bytes > 2_000, heartbeat_s=1, parents=("Q1A.OPT",))
    assert ending.reason is EndReason.STOPPED


def test_a_wrong_key_is_refused_without_showing_it() -> None:
    with served() as it:
        _, ending = session(it, key="db-wrong-key-of-somebody-else-00")
    assert ending == SessionEnd(EndReason.REFUSED, "Authentication failed.")


def test_a_dataset_outside_the_plan_is_refused() -> None:
    text = "A live data license is required to access GLBX.MDP3."
    with served(Fault("refuse_auth", text=text)) as it:
        _, ending = session(it)
    assert ending == SessionEnd(EndReason.REFUSED, text)


def test_a_connection_closed_at_once_is_not_a_refusal_of_the_key() -> None:
    with served(Fault("refuse_connection")) as it:
        _, ending = session(it)
    assert ending.reason is EndReason.UNREACHABLE


def test_where_nobody_listens_nothing_is_reached() -> None:
    with socket.socket() as closed:
        closed.bind((HOST, 0))
        port = closed.getsockname()[1]
    _, ending = session(port)
    assert ending.reason is EndReason.UNREACHABLE and str(port) in ending.text


def test_a_schema_outside_the_plan_ends_the_session_in_the_stream() -> None:
    with served() as it:
        _, ending = session(it, schema="mbo")
    assert ending == SessionEnd(EndReason.ERROR, "Not authorized for mbo schema", 5)


def test_the_limit_of_sessions_is_an_error_of_its_own() -> None:
    with served(limits=Limits(connections_per_s=1_000, sessions=0)) as it:
        _, ending = session(it)
    assert ending.reason is EndReason.ERROR and ending.code == 3


def test_skipped_records_are_noted_and_the_session_goes_on() -> None:
    with served(Fault("error", code=7, after_records=500, records=10)) as it:
        held, ending = session(it, lambda s: s.state.records > 2_000)
    assert ending.reason is EndReason.STOPPED and "Skipped" in held.state.skipped


def test_a_log_that_fails_ends_the_session_as_our_own_fault() -> None:
    def full(frame: Frame) -> None:
        raise LogFailed("the disk is full")

    with served() as it:
        _, ending = session(it, record=full)
    assert (ending.reason, ending.text) == (EndReason.FAILED, "the disk is full")


def test_a_fault_of_the_recorder_is_not_a_lost_connection() -> None:
    def broken(frame: Frame) -> None:
        raise ZeroDivisionError

    with served() as it, pytest.raises(ZeroDivisionError):
        session(it, record=broken)
