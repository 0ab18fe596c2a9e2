"""Orders, definitions and continuous symbols at the gateway, met by the official client."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pytest

from nq_pipeline.clock import to_ns
from nq_pipeline.dbn.layout import UNDEF_PRICE
from nq_pipeline.sandbox.gateway.gateway import Gateway
from nq_pipeline.sandbox.synthetic.instruments import universe
from nq_pipeline.sandbox.synthetic.market import market
from nq_pipeline_tests.testing.gateway_client import NOON, Recorder, bare, gateway, recorder, unlimited

SNAPSHOT = 32 | 8
"""The flags of a snapshot: that it is one, and that its `ts_recv` is of the gateway."""


@pytest.fixture(scope="module")
def entitled() -> Iterator[Gateway]:
    """A gateway with the market's own tape, and a plan that has orders."""
    with gateway(load=None, not_entitled=(), limits=unlimited()).serve_in_thread() as running:
        yield running


def split_orders(client: Recorder) -> tuple[list[Any], list[Any]]:
    """The mbo records of the snapshot, and those after it."""
    mbo = client.of("MBOMsg")
    return [r for r in mbo if int(r.flags) & 32], [r for r in mbo if not int(r.flags) & 32]


def test_a_snapshot_of_orders_is_the_top_of_every_book(entitled: Gateway) -> None:
    with recorder(entitled, start=False) as client:
        client.subscribe("mbo", "NQ.FUT", snapshot=True)
        client.start()
        client.wait(lambda: split_orders(client)[1])
        begin = client.live.metadata.start if client.live.metadata else 0
    snapshot, live = split_orders(client)

    opened = entitled.tape.records("mbp-1", begin - 3600 * 10**9, begin)
    books = {int(book["instrument_id"]): book for book in opened}
    futures = {record.instrument_id for record in snapshot}
    assert futures == {202506, 202509}
    for number in futures:
        mine = [record for record in snapshot if record.instrument_id == number]
        assert (mine[0].action, mine[0].side, mine[0].price) == ("R", "N", UNDEF_PRICE)
        assert [int(r.flags) for r in mine] == [SNAPSHOT] * (len(mine) - 1) + [SNAPSHOT | 128]
        for side, letter in (("bid", "B"), ("ask", "A")):
            resting = [r for r in mine[1:] if r.side == letter]
            assert {r.price for r in resting} == {books[number][f"{side}_px_00"]}
            assert sum(r.size for r in resting) == books[number][f"{side}_sz_00"]
            assert len(resting) == books[number][f"{side}_ct_00"]
    assert len({r.order_id for r in snapshot if r.order_id}) == len(snapshot) - len(futures)
    assert all(r.action == "T" and r.ts_recv >= begin for r in live)


def test_a_snapshot_is_refused_in_the_vendors_words() -> None:
    with gateway(limits=unlimited()).serve_in_thread() as usual:
        with recorder(usual, start=False) as client:
            client.subscribe("mbo", "NQ.FUT", snapshot=True)
            client.start()
            assert client.end() == "Not authorized for mbo schema"
        for line in (
            "schema=trades|stype_in=parent|symbols=NQ.FUT|snapshot=1",
            "schema=mbo|stype_in=parent|symbols=NQ.FUT|snapshot=1|start=0",
        ):
            with bare(usual) as raw:
                raw.authenticate()
                raw.say(f"{line}\nstart_session\n")
                assert b"Snapshots are available for schema mbo only" in raw.rest()


def test_a_continuous_symbol_is_the_leading_future(entitled: Gateway) -> None:
    with recorder(entitled, start=False) as client:
        client.subscribe(symbols=["NQ.c.0", "NQ.v.1", "NQ.c.7"], stype_in="continuous")
        client.start()
        client.wait_for(3)

    mapped = {m.stype_in_symbol: (m.stype_out_symbol, m.instrument_id) for m in client.of("SymbolMappingMsg")}
    assert mapped == {"NQ.c.0": ("NQM5", 202506), "NQ.v.1": ("NQU5", 202509)}
    assert [e.err for e in client.of("ErrorMsg")] == ["Failed to resolve symbol 'NQ.c.7'"]
    assert set(client.array()["instrument_id"].tolist()) <= {202506, 202509}
    assert client.live.symbology_map == {202506: "NQM5", 202509: "NQU5"}


def test_live_definitions_are_new_listings_only() -> None:
    """All there are come with `start=0`; without it nothing does until something is listed."""
    before, after = (set(universe(market(7), date(2025, 6, d))["instrument_id"]) for d in (10, 11))
    opens = datetime(2025, 6, 10, 22, tzinfo=UTC)
    just_before = datetime(2025, 6, 10, 21, 59, 58, tzinfo=UTC)
    with (
        gateway(now=just_before, load=None, limits=unlimited()).serve_in_thread() as served,
        recorder(served, start=False) as client,
    ):
        client.subscribe("definition", "ALL_SYMBOLS", stype_in="raw_symbol")
        client.start()
        client.wait(lambda: len(client.of("InstrumentDefMsg")) >= len(after - before))
        client.live.stop()
        client.end()
    defined = client.of("InstrumentDefMsg")
    assert {record.instrument_id for record in defined} == after - before
    assert {record.ts_recv for record in defined} == {to_ns(opens)}


@pytest.mark.parametrize(("schema", "interval"), [("ohlcv-1h", 3600), ("bbo-1m", 60)])
def test_a_replay_is_what_the_tape_has(schema: str, interval: int, entitled: Gateway) -> None:
    start = to_ns(NOON) - 5 * interval * 10**9 // 2  # within a bar, which is not replayed
    with recorder(entitled, start=False) as client:
        client.subscribe(schema, "NQ.FUT", start=start)
        client.start()
        client.wait(lambda: 3 in client.codes("SystemMsg"))
    kind = "OHLCVMsg" if schema == "ohlcv-1h" else "BBOMsg"
    expected = entitled.records(schema, start, to_ns(NOON) + 1)
    expected = expected[(expected["ts_event"] >= start) | (schema == "bbo-1m")]
    expected = expected[np.isin(expected["instrument_id"], [202506, 202509, 202512, 202603, 202606])]
    got = [bytes(record) for record in client.of(kind)]
    assert got[: len(expected)] == [row.tobytes() for row in expected] and len(expected) > 1
