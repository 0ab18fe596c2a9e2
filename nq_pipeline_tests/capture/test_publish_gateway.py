"""Publishing what the stand-in's gateway and real files say, beside independent readings of the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import databento
import numpy as np
import pytest

from nq_pipeline.capture.log.writer import CaptureLog
from nq_pipeline.clock import to_ns
from nq_pipeline.lake.tables import MBO, MBP_1, TRADES
from nq_pipeline.sandbox.gateway.fault_script import Fault, FaultScript
from nq_pipeline_tests.testing.dbn_streams import Clock, mapping
from nq_pipeline_tests.testing.feeds import DATASET, Feed, dbn_records, lake_records, publisher, rows
from nq_pipeline_tests.testing.gateway_client import NOON, gateway, log_session, unlimited


def test_the_lake_equals_the_market_after_cuts_and_replays(root: Path) -> None:
    """mbp-1 is closed, then comes again and is cut within a record; trades go on from there."""
    published, opening = publisher(root), to_ns(NOON) - 2 * 10**9
    script = FaultScript(Fault("fin", after_records=1_000), Fault("cut", after_records=1_700))
    with (
        gateway(limits=unlimited(), script=script).serve_in_thread() as served,
        CaptureLog(root, DATASET, clock=Clock(), sync_every_s=0) as log,
    ):
        last = opening
        for schema, most in (("mbp-1", None), ("mbp-1", None), ("trades", 3_000)):
            last = log_session(log, served, schema, opening if schema == "mbp-1" else last, most)
            published.publish()
        truth = served.records("trades", opening, last)
        book = served.records("mbp-1", opening, last)
    assert not script.pending
    complete = truth[(truth["ts_event"] >= opening) & (truth["ts_event"] < last)]
    assert len(complete) > 3_000
    found = rows(root)
    assert lake_records(found.filter(found["ts_event"].to_physical() < last)) == dbn_records(complete)
    assert found["raw_symbol"].null_count() == 0
    assert set(found["source_schema"]) == {"mbp-1", "trades"}
    books = rows(root, MBP_1)
    assert lake_records(books) == dbn_records(book[(book["ts_event"] >= opening)][: books.height])


def from_file(folder: Path, name: str) -> np.ndarray[Any, Any]:
    """The records of one of Databento's files, as the official client reads them."""
    (path,) = (folder / "databento").glob(f"{name}*.dbn.zst")
    return databento.DBNStore.from_file(path).to_ndarray()


def test_real_trades_are_those_of_the_same_minutes_of_real_mbp_1(root: Path, shared: Path) -> None:
    trades = from_file(shared, "historical_bars_catalog__futures_trades")
    book = from_file(shared, "historical_bars_catalog__futures_mbp-1")
    events = book[book["flags"] & 32 == 0]
    assert len(events) == len(book) - 1  # midnight UTC repeats the record before it, key and all
    symbols = b"".join(mapping(int(i), "NQU4") for i in np.unique(trades["instrument_id"]))
    published = publisher(root)
    with Feed(root) as feed:
        feed.session(book, symbols=symbols)
        assert published.publish().rows == {"mbp_1": len(events), "trades": len(trades)}
        feed.session(trades, symbols=symbols)
        done = published.publish()
    assert (done.rows, done.known) == ({"trades": 0}, len(trades))
    assert lake_records(rows(root)) == dbn_records(trades)
    assert lake_records(rows(root, MBP_1)) == dbn_records(events)


def test_real_orders_become_rows_and_trades_without_the_snapshot(root: Path, shared: Path) -> None:
    orders = from_file(shared, "order_book_deltas_catalog__orderbooks_mbo")
    with Feed(root) as feed:
        feed.session(orders)
    done = publisher(root).publish()
    events = orders[orders["flags"] & 32 == 0]
    assert done.counts.left == {"snapshot of the book": len(orders) - len(events)}
    assert lake_records(rows(root, MBO)) == dbn_records(events)
    assert lake_records(rows(root)) == dbn_records(events[events["action"] == b"T"])
    assert rows(root).height > 0


@pytest.mark.parametrize("schema", ["trades", "mbp-1"])
def test_prices_are_those_of_the_official_client(root: Path, shared: Path, schema: str) -> None:
    store = databento.DBNStore.from_file(shared / "databento" / f"test_data.{schema}.dbn.zst")
    with Feed(root) as feed:
        feed.session(store.to_ndarray())
    publisher(root).publish()
    found = rows(root, MBP_1 if schema == "mbp-1" else TRADES).sort("sequence", "ordinal")
    frame = store.to_df().sort_values("sequence", kind="stable")
    names = ["price", "bid_px_00", "ask_px_00"] if schema == "mbp-1" else ["price"]
    for name in names:
        assert found[name].to_list() == frame[name].tolist()
