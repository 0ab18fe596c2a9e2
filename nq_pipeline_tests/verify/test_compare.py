"""Comparing two tellings of the same trades."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from nq_pipeline.verify import compare
from nq_pipeline_tests.testing.dbn_streams import empty

TRADE = st.tuples(st.integers(1, 4), st.integers(0, 3), st.sampled_from([b"A", b"B"]))


def trades(rows: list[tuple[int, int, bytes]]) -> np.ndarray[Any, Any]:
    array = empty(0, len(rows))
    for at, (instrument, size, side) in enumerate(rows):
        array[at]["instrument_id"], array[at]["size"], array[at]["side"] = instrument, size, side
    return array


@given(st.lists(TRADE, max_size=40), st.lists(TRADE, max_size=40))
def test_records_are_compared_as_often_as_they_occur_and_in_any_order(mine: Any, right: Any) -> None:
    difference = compare.compare_records(trades(mine), trades(right))
    own, theirs = Counter(mine), Counter(right)
    assert difference.missing == (theirs - own).total()
    assert difference.extra == (own - theirs).total()
    assert difference.records == len(right)
    assert bool(difference) == (own != theirs)


@given(st.lists(TRADE, max_size=40), st.lists(TRADE, max_size=40))
def test_instruments_are_compared_by_how_many_trades_they_have(mine: Any, right: Any) -> None:
    rows = pl.DataFrame({"instrument_id": [one[0] for one in mine]}, schema={"instrument_id": pl.UInt32})
    difference = compare.compare_instruments(rows, trades(right))
    own, theirs = (Counter(one[0] for one in rows) for rows in (mine, right))
    assert (difference.missing, difference.extra) == ((theirs - own).total(), (own - theirs).total())


def test_a_difference_has_examples() -> None:
    mine, right = trades([(1, 1, b"A"), (2, 1, b"A")]), trades([(1, 1, b"A"), (1, 1, b"A"), (3, 2, b"B")])
    difference = compare.compare_records(mine, right)
    assert str(difference) == "2 missing and 1 too many of 3"
    examples = [(one["instrument_id"], one["missing"], one["extra"]) for one in difference.examples]
    assert examples == [(1, 1, 0), (2, 0, 1), (3, 1, 0)]


def test_a_span_holds_its_start_and_not_its_end() -> None:
    array = empty(0, 4)
    array["ts_event"] = [1, 2, 3, 4]
    chosen = compare.select_span(array, "ts_event", np.uint64(2), np.uint64(4))
    assert chosen["ts_event"].tolist() == [2, 3]


def test_a_time_far_from_its_receipt_is_no_time_of_a_trade() -> None:
    received = np.array([100, 200, 300], np.uint64) * np.uint64(10**9)
    records = empty(0, 3)
    records["ts_event"], records["ts_recv"] = received, received
    records["ts_event"][1] += np.uint64(83 * 86_400 * 10**9)
    assert compare.trade_times(records).tolist() == received[[0, 2]].tolist()
    assert compare.trade_times(records[1:2]).tolist() == received[1:2].tolist()
