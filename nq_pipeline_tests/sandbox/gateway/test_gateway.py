"""The gateway on a good day, met by the official client over a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import databento
import numpy as np
import pytest
from databento.common.error import BentoError
from databento.live.protocol import DatabentoLiveProtocol

from nq_pipeline.capture.gateway import option_parents
from nq_pipeline.clock import PinnedClock, ShiftedClock, SystemClock, to_ns
from nq_pipeline.dbn.layout import UNDEF_TIMESTAMP, Array
from nq_pipeline.errors import SandboxError
from nq_pipeline.market import sessions
from nq_pipeline.sandbox.gateway.fault_script import Fault, FaultScript
from nq_pipeline.sandbox.gateway.feed import DATASET
from nq_pipeline.sandbox.gateway.gateway import HOST, KEY, Gateway, moving_clock
from nq_pipeline.sandbox.synthetic.instruments import universe
from nq_pipeline.sandbox.synthetic.market import market
from nq_pipeline.sandbox.synthetic.tape import filter_instruments
from nq_pipeline_tests.testing.gateway_client import (
    EVERYTHING,
    LISTED,
    NOON,
    Recorder,
    bare,
    gateway,
    recorder,
    unlimited,
)

IDS = LISTED["instrument_id"].sort()
QUARTERLY = LISTED.filter(LISTED["parent"] == "NQ.OPT")


@pytest.fixture(scope="module")
def served() -> Iterator[Gateway]:
    """A gateway under load for the tests that only listen."""
    with gateway(limits=unlimited()).serve_in_thread() as running:
        yield running


@pytest.fixture(scope="module")
def market_served() -> Iterator[Gateway]:
    """A gateway with the market's own tape."""
    with gateway(load=None, limits=unlimited()).serve_in_thread() as running:
        yield running


def expected_records(served: Gateway, got: Array, start: int, ids: Any = IDS) -> Array:
    """What was published from an instant up to the last received record."""
    return filter_instruments(served.records("trades", start, int(got["ts_recv"][-1]) + 1), ids)


def complete_instants(got: Array) -> Array:
    """The records without those of the last instant, which may be incomplete."""
    return np.asarray(got[got["ts_recv"] < got["ts_recv"][-1]])


def wait_for_replay(client: Recorder) -> None:
    client.wait(lambda: 3 in client.codes("SystemMsg"))


# ── authentication ──────────────────────────────────────────────────────────────────────────────


def test_a_valid_key_gets_a_session_and_its_metadata(served: Gateway) -> None:
    with recorder(served) as client:
        client.wait_for(10)
        metadata = client.live.metadata

    assert metadata is not None
    assert (metadata.version, metadata.dataset, metadata.schema, metadata.stype_in) == (
        3,
        DATASET,
        None,
        None,
    )
    assert (str(metadata.stype_out), metadata.symbols, metadata.mappings) == ("instrument_id", [], {})
    assert abs(metadata.start - served.now_ns()) < 3600 * 10**9


def test_an_unknown_key_is_refused(served: Gateway) -> None:
    with (
        recorder(served, start=False, key="db-" + "x" * 29) as client,
        pytest.raises(BentoError, match=r"^Authentication failed\.$"),
    ):
        client.subscribe()


def test_a_dataset_without_a_licence_is_refused(served: Gateway) -> None:
    with (
        recorder(served, start=False) as client,
        pytest.raises(BentoError, match=r"A live data license is required to access OPRA\.PILLAR"),
    ):
        client.live.subscribe("OPRA.PILLAR", "trades", "SPX.OPT", "parent")


def test_nothing_follows_the_answer_to_authentication(served: Gateway) -> None:
    with bare(served) as client:
        assert client.line() == b"lsg_version=0.8.0\n"
        name, _, challenge = client.line().partition(b"=")
        assert name == b"cram"
        assert len(challenge) == 33

    with bare(served) as client:
        key, _, number = client.authenticate().partition(b"|session_id=")
        assert key == b"success=1"
        assert number.strip().isdigit()
        client.socket.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.read(1)


@pytest.mark.parametrize("line", ["nonsense", "auth=1", "auth=|dataset=|encoding=csv", "=|=", "\xff"])
def test_an_invalid_answer_to_the_challenge_is_refused(served: Gateway, line: str) -> None:
    with bare(served) as client:
        client.line(), client.line()
        client.socket.sendall(line.encode("latin-1") + b"\n")

        assert client.line().startswith(b"success=0|error=")
        assert client.rest() == b""


def test_an_endless_line_ends_only_its_connection(served: Gateway) -> None:
    with bare(served) as client:
        client.line(), client.line()
        with pytest.raises(ConnectionError):
            for _ in range(100):
                client.socket.sendall(b"x" * 100_000)
    with recorder(served) as client:
        client.wait_for(1)


# ── subscriptions ───────────────────────────────────────────────────────────────────────────────


def test_instruments_are_mapped_before_their_first_record(served: Gateway) -> None:
    with recorder(served, start=False) as client:
        client.subscribe(symbols="NQ.OPT")
        client.start().wait_for(10)

    heard = [type(record).__name__ for record in client.heard]
    assert heard[0] == "SystemMsg"
    assert client.of("SystemMsg")[0].msg == "Subscription request 0 for trades data succeeded"
    mapped = client.of("SymbolMappingMsg")
    assert heard.index("TradeMsg") > len(mapped)
    assert {m.instrument_id: m.stype_out_symbol for m in mapped} == dict(
        QUARTERLY.select("instrument_id", "raw_symbol").iter_rows()
    )
    assert {(m.stype_in_symbol, m.publisher_id) for m in mapped} == {("NQ.OPT", 0)}
    assert {r.instrument_id for r in client.of("TradeMsg")} <= {m.instrument_id for m in mapped}
    assert client.live.symbology_map.keys() == {m.instrument_id for m in mapped}


def test_an_unlisted_symbol_is_an_error_and_others_continue(served: Gateway) -> None:
    with recorder(served, start=False) as client:
        client.subscribe(symbols=["QN5.OPT", "NQ.OPT", "Q5D.OPT"])
        client.start().wait_for(10)

    errors = client.of("ErrorMsg")
    assert [int(error.code) for error in errors] == [4, 4]
    assert [error.err for error in errors] == [
        f"Failed to resolve symbol '{name}'" for name in ("QN5.OPT", "Q5D.OPT")
    ]


def test_a_subscription_of_several_lines_has_one_ack(served: Gateway) -> None:
    symbols = LISTED["raw_symbol"].to_list()[:1200]
    with recorder(served, start=False) as client:
        client.subscribe(symbols=symbols, stype_in="raw_symbol")
        client.start()
        client.wait(lambda: len(client.of("SymbolMappingMsg")) == 1200)

    assert client.codes("SystemMsg") == [1]
    assert {m.stype_out_symbol for m in client.of("SymbolMappingMsg")} == set(symbols)


def test_subscriptions_by_id_and_to_all_symbols(served: Gateway) -> None:
    number = int(QUARTERLY["instrument_id"][7])
    with recorder(served, start=False) as client:
        client.subscribe(symbols=[number], stype_in="instrument_id")
        client.subscribe("mbp-1", "ALL_SYMBOLS", stype_in="raw_symbol")
        client.start()
        client.wait(lambda: len(client.of("SymbolMappingMsg")) == LISTED.height + 1)

    first = client.of("SymbolMappingMsg")[0]
    assert (first.stype_in_symbol, first.instrument_id) == (str(number), number)


def test_a_later_subscription_is_served_without_its_start(served: Gateway) -> None:
    with recorder(served) as client:
        client.wait_for(10)
        client.subscribe("mbp-1", "Q2B.OPT", start=to_ns(NOON - timedelta(hours=1)))
        client.wait(lambda: len(client.array("mbp-1")) > 10)
        begin = client.live.metadata.start if client.live.metadata else 0

    assert client.codes("SystemMsg") == [1, 1]
    assert client.array("mbp-1")["ts_recv"].min() >= begin


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ("mbo", "Not authorized for mbo schema"),
        ("mbp-10", "Not authorized for mbp-10 schema"),
        ("status", "Schema status is not available"),
    ],
)
def test_a_refused_schema_is_an_error_in_the_stream(served: Gateway, schema: str, text: str) -> None:
    with recorder(served, start=False) as client:
        client.subscribe(schema)
        client.start()

        assert client.end() == text

    assert client.codes("ErrorMsg") == [5]


def test_an_invalid_line_is_an_invalid_subscription(served: Gateway) -> None:
    for line in (
        "schema=trades|stype_in=smart|symbols=NQ.OPT",
        "schema=trades|stype_in=parent|symbols=",
        "schema=trades|stype_in=parent|symbols=NQ.OPT|start=yesterday",
        "schema=trades|stype_in=parent|symbols=" + ",".join(["NQ.OPT"] * 501),
        "nonsense|",
    ):
        with bare(served) as client:
            client.authenticate()
            client.say(f"{line}\nstart_session\n")
            stream = client.rest()

        assert stream.startswith(b"DBN\x03"), line
        assert stream[-1:] == b"\x01", line  # the error's is_last
        assert stream[-2] == 5, line


# ── data ────────────────────────────────────────────────────────────────────────────────────────


def test_live_records_are_the_tape_byte_for_byte(served: Gateway) -> None:
    with recorder(served) as client:
        client.wait_for(500)
        begin = client.live.metadata.start if client.live.metadata else 0
        got = complete_instants(client.array())

    assert np.array_equal(got, expected_records(served, got, begin))


def test_the_market_of_the_chains_is_what_is_streamed() -> None:
    # Five minutes of market in a second.
    with gateway(load=None, speed=300.0).serve_in_thread() as served, recorder(served, start=False) as client:
        client.subscribe()
        client.start().wait_for(1_000)
        begin = client.live.metadata.start if client.live.metadata else 0
        got = complete_instants(client.array())

    assert np.array_equal(got, expected_records(served, got, begin))
    assert {202506} < set(got["instrument_id"].tolist())


def test_a_replay_is_complete_reported_and_continues_live(market_served: Gateway) -> None:
    start = to_ns(NOON - timedelta(minutes=30))
    with recorder(market_served, start=False) as client:
        client.subscribe(start=start)
        client.start()
        wait_for_replay(client)
        client.wait(lambda: client.heard[-1].rtype == 0 and len(client.array()) > 1_000)
        got = complete_instants(client.array())

    assert client.live.metadata is None or client.live.metadata.start == start
    expected = expected_records(market_served, got, start)
    assert np.array_equal(got, expected[expected["ts_event"] >= start])
    assert [m.msg for m in client.of("SystemMsg")][:2] == [
        "Subscription request 0 for trades data succeeded",
        "Finished trades replay",
    ]


def test_a_replay_includes_all_records_of_its_start(served: Gateway) -> None:
    recent = served.records("trades", served.published - 2 * 10**9, served.published)
    start = int(recent[100]["ts_event"])
    with recorder(served, start=False) as client:
        client.subscribe(start=start)
        client.start().wait_for(100)
        got = client.array()

    assert (got["ts_event"] == start).sum() == (recent["ts_event"] == start).sum() > 1
    assert (got["ts_event"] >= start).all()


def test_replays_from_zero_cover_the_window_or_the_week(
    market_served: Gateway,
) -> None:
    with recorder(market_served, start=False) as client:
        client.subscribe(start=0)
        client.subscribe("definition", "NQ.OPT", start=0)
        client.start()
        client.wait(lambda: client.codes("SystemMsg").count(3) == 2)

    day_before = to_ns(NOON - timedelta(days=1))
    expected = market_served.records("trades", day_before, day_before + 3600 * 10**9)
    assert expected["ts_event"][0] <= client.array()["ts_event"].min() < expected["ts_event"][-1]
    defined = {record.instrument_id: record.raw_symbol for record in client.of("InstrumentDefMsg")}
    assert set(QUARTERLY["instrument_id"]) <= set(defined)


@pytest.mark.parametrize("code", [5, 8])
def test_a_start_before_the_window_ends_the_session(code: int) -> None:
    with (
        gateway(limits=unlimited(too_old_code=code)).serve_in_thread() as served,
        recorder(served, start=False) as client,
    ):
        client.subscribe(start=to_ns(NOON - timedelta(hours=25)))
        client.start()

        assert client.end().startswith("Invalid start time. Must be 2025-06-09T15:00:0")
        assert client.codes("ErrorMsg") == [code]


def test_schemas_of_one_session_come_in_the_order_of_publication(market_served: Gateway) -> None:
    with recorder(market_served, start=False) as client:
        for schema in ("trades", "mbp-1", "ohlcv-1s"):
            client.subscribe(schema, start=to_ns(NOON - timedelta(minutes=5)))
        client.start()
        client.wait(lambda: client.codes("SystemMsg").count(3) == 3)
        replayed = client.heard[
            : [str(getattr(r, "msg", "")) for r in client.heard].index("Finished trades replay")
        ]

    times = [
        int(r.ts_recv) if int(r.rtype) in (0, 1) else int(r.ts_event) + 10**9
        for r in replayed
        if int(r.rtype) in (0, 1, 32)
    ]  # fmt: skip
    assert len({int(r.rtype) for r in replayed} & {0, 1, 32}) == 3
    assert times == sorted(times)
    books = [bytes(r)[16:48] for r in replayed if int(r.rtype) == 1 and str(r.action) == "T"]
    assert books == [bytes(r)[16:48] for r in replayed if int(r.rtype) == 0]


def test_end_of_interval_follows_its_records() -> None:
    with gateway(load=None, speed=60.0).serve_in_thread() as served, recorder(served, start=False) as client:
        client.subscribe("ohlcv-1m")
        client.subscribe("bbo-1s")
        client.start()
        client.wait(lambda: len([m for m in client.of("SystemMsg") if "ohlcv-1m" in m.msg]) >= 4)
        heard = list(client.heard)

    ended = {"ohlcv-1m": 0, "bbo-1s": 0}
    for record in heard:
        if int(record.rtype) == 23 and int(record.code) == 4:
            schema = record.msg.removeprefix("End of interval for ")
            assert record.ts_event > ended[schema]
            ended[schema] = record.ts_event
        elif int(record.rtype) == 33:
            assert record.ts_event == ended["ohlcv-1m"] or ended["ohlcv-1m"] == 0
        elif int(record.rtype) == 195:
            assert record.ts_recv > ended["bbo-1s"]
    assert all(ended.values())
    assert any(r.ts_event == UNDEF_TIMESTAMP for r in heard if int(r.rtype) == 195)


@pytest.mark.parametrize(
    "options",
    [
        {"ts_out": True},
        {"compression": databento.Compression.ZSTD},
        {"ts_out": True, "compression": databento.Compression.ZSTD},
    ],
    ids=["ts_out", "zstd", "both"],
)
def test_ts_out_and_compression_change_nothing_else(served: Gateway, options: Any) -> None:
    with recorder(served, **options) as client:
        client.wait_for(300)
        metadata = client.live.metadata
        got = complete_instants(client.array())

    assert metadata is not None
    assert np.array_equal(
        got[["ts_event", "price", "sequence"]],
        expected_records(served, got, metadata.start)[["ts_event", "price", "sequence"]],
    )
    if options.get("ts_out"):
        assert metadata.ts_out
        assert all(r.ts_out >= r.ts_recv for r in client.of("TradeMsg"))


def test_seven_bytes_at_a_time_are_the_same_records() -> None:
    with (
        gateway(load=200, script=FaultScript(Fault("drip"))).serve_in_thread() as served,
        recorder(served) as client,
    ):
        client.wait_for(100)
        begin = client.live.metadata.start if client.live.metadata else 0
        got = complete_instants(client.array())

    assert served.script.injected[0].fault.kind == "drip"
    assert np.array_equal(got, expected_records(served, got, begin))


def test_a_quiet_market_sends_heartbeats() -> None:
    saturday = datetime(2025, 6, 14, 15, tzinfo=UTC)
    with (
        gateway(now=saturday, load=None).serve_in_thread() as served,
        recorder(served, heartbeat_interval_s=1) as client,
    ):
        client.wait(lambda: 0 in client.codes("SystemMsg"))

    assert [m.msg for m in client.of("SystemMsg")][1] == "Heartbeat"
    assert not client.of("TradeMsg")


def test_a_busy_stream_has_no_heartbeats(served: Gateway) -> None:
    with recorder(served, heartbeat_interval_s=1) as client:
        client.wait_for(4_000)

    assert 0 not in client.codes("SystemMsg")


def test_new_contracts_are_mapped_when_their_session_opens() -> None:
    session = sessions.session(NOON.date() + timedelta(days=2))
    opens, yesterday = to_ns(session.open), session.trade_date - timedelta(days=1)
    before = session.open - timedelta(minutes=70)
    with (
        gateway(now=before, load=None, speed=1200.0).serve_in_thread() as served,
        recorder(served, start=False) as client,
    ):
        client.subscribe(symbols=[*option_parents(), "NQ.FUT"])
        client.start()
        client.wait(lambda: any(r.ts_event > opens for r in client.of("TradeMsg")))
        heard = list(client.heard)

    named: set[int] = set()
    for record in heard:
        if int(record.rtype) == 22:
            assert record.instrument_id not in named
            named.add(record.instrument_id)
        elif int(record.rtype) == 0:
            assert record.instrument_id in named
    old, today = (set(universe(market(7), d)["instrument_id"]) for d in (yesterday, session.trade_date))
    assert today - old
    assert today - old <= named


def test_a_protocol_subclass_receives_100_000_records_a_second() -> None:
    seen: list[bytes] = []

    class Raw(DatabentoLiveProtocol):
        def received_record(self, record: Any) -> None:
            if int(record.rtype) == 0:
                seen.append(bytes(record))

    async def listen(port: int, start: int) -> None:
        loop = asyncio.get_running_loop()
        _, protocol = await loop.create_connection(lambda: Raw(KEY, DATASET), HOST, port)
        await protocol.authenticated
        protocol.subscribe("trades", EVERYTHING, "parent", start=start)
        protocol.start()
        while len(seen) < 150_000:
            await asyncio.sleep(0.01)
        protocol.transport.abort()

    with gateway(load=100_000).serve_in_thread() as served:
        start = served.began - 10**9
        asyncio.run(asyncio.wait_for(listen(served.port, start), 60))

    got = np.frombuffer(b"".join(seen), served.records("trades", start, start).dtype)
    expected = expected_records(served, got, start)
    assert np.array_equal(complete_instants(got), complete_instants(expected[expected["ts_event"] >= start]))


def test_the_truth_file_has_everything_that_was_sent(tmp_path: Path) -> None:
    with gateway(truth=tmp_path / "truth.dbn").serve_in_thread() as served, recorder(served) as client:
        client.wait_for(500)
        got = client.array()

    recorded = databento.DBNStore.from_file(tmp_path / "truth.dbn").to_ndarray()
    last = int(recorded["ts_recv"][-1])
    assert np.array_equal(recorded, served.records("trades", served.began, last + 1))
    assert np.array_equal(
        complete_instants(got), expected_records(served, complete_instants(got), int(got["ts_recv"][0]))
    )
    assert np.isin(got, recorded).all()


# ── limits and clocks ───────────────────────────────────────────────────────────────────────────


def test_the_sixth_connection_within_a_second_is_closed_at_once() -> None:
    with gateway().serve_in_thread() as served:
        greetings = []
        for _ in range(6):
            with bare(served) as client:
                greetings.append(client.line())

    assert greetings == [b"lsg_version=0.8.0\n"] * 5 + [b""]


def test_a_session_beyond_the_limit_is_closed_with_error_3() -> None:
    with gateway(limits=unlimited(sessions=1)).serve_in_thread() as served, recorder(served) as first:
        first.wait_for(1)
        with recorder(served) as second:
            assert second.end() == "User has reached their open connection limit"
            assert second.codes("ErrorMsg") == [3]
        first.wait_for(len(first.array()) + 100)


def test_a_restarted_gateway_replays_the_same_bytes() -> None:
    span = (to_ns(NOON), to_ns(NOON) + 10**9)
    arrays = []
    for _ in range(2):
        with gateway(now=NOON + timedelta(minutes=1)).serve_in_thread() as served:
            with recorder(served, start=False) as client:
                client.subscribe(start=span[0])
                client.start()
                wait_for_replay(client)
            got = client.array()
            arrays.append(got[got["ts_event"] < span[1]])

    assert len(arrays[0]) > 10
    assert np.array_equal(arrays[0], arrays[1])


def test_a_taken_port_and_a_pinned_clock_are_refused(served: Gateway) -> None:
    with (
        pytest.raises(SandboxError, match="cannot listen on port"),
        gateway(port=served.port).serve_in_thread(),
    ):
        pass
    with pytest.raises(SandboxError, match="let it run"):
        Gateway(clock=PinnedClock(NOON))


@pytest.mark.parametrize(
    ("now", "begins"),
    [
        ("2025-06-10T15:20:00Z", None),
        ("2025-06-10T23:20:00Z", "2025-06-10T14:20:00Z"),
        ("2025-06-11T13:29:00Z", "2025-06-10T14:29:00Z"),
        ("2025-06-15T09:40:00Z", "2025-06-13T13:40:00Z"),
        ("2025-12-25T12:00:00Z", "2025-12-24T15:00:00Z"),
    ],
)
def test_outside_regular_hours_the_clock_is_in_the_last_ones(now: str, begins: str | None) -> None:
    clock = moving_clock(datetime.fromisoformat(now))

    if begins is None:
        assert type(clock) is SystemClock
    else:
        assert isinstance(clock, ShiftedClock)
        assert clock.start == datetime.fromisoformat(begins)
        assert sessions.is_open(clock.start, "rth")


def test_a_shifted_clock_runs_forward_from_its_instant() -> None:
    clock = ShiftedClock(NOON, speed=1000.0)
    seen = [clock.now() for _ in range(1000)]

    assert seen[0] >= NOON
    assert seen == sorted(seen)
    assert seen[-1] > seen[0]
    with pytest.raises(ValueError, match="time zone"):
        ShiftedClock(datetime(2025, 6, 10))
    with pytest.raises(ValueError, match="positive speed"):
        ShiftedClock(NOON, speed=0.0)
