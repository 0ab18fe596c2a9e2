"""Publishing: every trade of the log is in the lake, once, with its symbol and its trade date."""

from __future__ import annotations

import errno
import random
from dataclasses import replace
from datetime import date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nq_pipeline.capture.log.segments import BEGINNING, Position, list_segments
from nq_pipeline.errors import CaptureError, LakeError
from nq_pipeline.files import locked
from nq_pipeline.lake import catalog
from nq_pipeline.lake.store import AppendResult, Lake
from nq_pipeline.lake.tables import MBO, MBP_1, TRADES
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.dbn_streams import (
    NOON,
    UNDEF_TIMESTAMP,
    empty,
    head,
    mapping,
    official,
    record,
)
from nq_pipeline_tests.testing.feeds import (
    DATASET,
    START,
    Feed,
    dbn_records,
    lake_records,
    market,
    publisher,
    replayed,
    rows,
)

UNDEF_PRICE = 2**63 - 1


def test_a_row_has_the_values_that_the_official_decoder_reads(root: Path) -> None:
    records = market(200)
    records["depth"], records["flags"] = 3, 130
    with Feed(root) as feed:
        feed.session(records)
    done = publisher(root).publish()
    assert (done.rows, done.known, done.counts.records) == ({"trades": len(records)}, 0, len(records))
    found = Workspace(root.parent).lake.scan(TRADES).sort("sequence", "ordinal").collect()
    for row, trade in zip(
        found.with_columns(pl.col("ts_event", "ts_recv").cast(pl.Int64)).to_dicts(),
        official(head() + records.tobytes()),
        strict=True,
    ):
        for name in ("publisher_id", "instrument_id", "ts_event", "ts_recv", "sequence", "size", "depth",
                     "ts_in_delta"):  # fmt: skip
            assert row[name] == getattr(trade, name), name
        assert (row["price"], row["flags"]) == (trade.price / 1e9, int(trade.flags))
        assert (row["action"], row["side"]) == (str(trade.action), str(trade.side))
    assert set(found["receive_latency_ns"]) == {40_000}
    expected = START - records["ts_recv"].astype(np.int64)
    assert found["publish_latency_ns"].to_list() == expected.tolist()
    constant = found.select("environment", "source_schema", "run_id", "log_session", "trade_date").unique()
    assert constant.rows() == [("sandbox", "trades", "run", 1, date(2025, 6, 10))]


def test_a_price_is_the_nearest_double_or_null(root: Path) -> None:
    prices = [UNDEF_PRICE, 43_000_000, 50_000_000, 21_000_050_000_000, -2_350_000_000, 3, 1_100_000_000]
    records = empty(0, len(prices))
    records["ts_event"] = records["ts_recv"] = START
    records["sequence"], records["price"] = np.arange(len(prices)), prices
    with Feed(root) as feed:
        feed.session(records)
    publisher(root).publish()
    assert rows(root)["price"].to_list() == [None, 0.043, 0.05, 21_000.05, -2.35, 3e-9, 1.1]


def test_symbols_become_series_contracts_and_kinds(root: Path) -> None:
    symbols = {
        1: "NQM5",
        2: "Q2CM5 C21800",
        3: "NQM5 P21800.5",
        4: "UD:1V: GN 0123",
        5: "NQM5-NQU5",
        6: "CLM5",
        7: "",
    }
    records = empty(0, 8)
    records["instrument_id"] = np.arange(1, 9)
    records["ts_event"] = records["ts_recv"] = START
    with Feed(root) as feed:
        feed.session(records, symbols=b"".join(mapping(i, s) for i, s in symbols.items()))
    publisher(root).publish()
    names = ("raw_symbol", "instrument_kind", "underlying_class", "root", "underlying", "series",
             "contract_key", "option_type", "strike")  # fmt: skip
    weekly, quarterly = "Q2C-2025-06-11", "NQ-2025-06-20"
    option, nothing = ("option", "future"), (None,) * 5
    assert rows(root).select(names).rows() == [
        ("NQM5", "future", "future", "NQ", *nothing),
        ("Q2CM5 C21800", *option, "Q2C", "NQM5", weekly, f"{weekly}-C-21800", "C", 21_800.0),
        ("NQM5 P21800.5", *option, "NQ", "NQM5", quarterly, f"{quarterly}-P-21800.5", "P", 21_800.5),
        ("UD:1V: GN 0123", "spread", None, None, *nothing),
        ("NQM5-NQU5", "spread", None, None, *nothing),
        ("CLM5", "other", None, None, *nothing),
        ("", "other", None, None, *nothing),
        (None, None, None, None, *nothing),
    ]


@pytest.mark.parametrize("at_once", [True, False], ids=["one frame", "one record at a time"])
def test_a_mapping_holds_from_where_it_stands_in_the_stream(root: Path, at_once: bool) -> None:
    records = market(9)
    records["instrument_id"] = 2
    one, two, three = (records[i : i + 3] for i in (0, 3, 6))
    pieces = [one.tobytes(), mapping(2, "NQM5"), two.tobytes(), mapping(2, "NQU5"), three.tobytes()]
    with Feed(root) as feed:
        feed.session(*([b"".join(pieces)] if at_once else pieces), symbols=b"")
        publisher(root).publish()
    expected = {(r["sequence"], i): name for name, part in ((None, one), ("NQM5", two), ("NQU5", three))
                for i, r in enumerate(part)}  # fmt: skip
    found = rows(root).sort("sequence", "ordinal")["raw_symbol"].to_list()
    assert found == list(expected.values())


def test_the_trade_date_is_that_of_the_session_not_of_the_calendar(root: Path) -> None:
    evening = datetime.fromisoformat("2025-06-10T22:00:00+00:00")  # 17:00 in Chicago
    records = market(2)[:2]
    records["ts_event"] = START + int((evening - NOON).total_seconds()) * 10**9 + np.array([-1, 0])
    records["ts_recv"] = records["ts_event"]
    records["sequence"] = [1, 2]
    with Feed(root) as feed:
        feed.session(records)
    publisher(root).publish()
    assert rows(root).sort("sequence")["trade_date"].to_list() == [date(2025, 6, 10), date(2025, 6, 11)]


def test_records_without_a_row_are_counted_and_stay_in_the_log(root: Path) -> None:
    trades = market(3)[:3]
    trades["sequence"] = [1, 2, 3]
    trades["ts_event"][0] = UNDEF_TIMESTAMP
    trades["ts_recv"][1] = UNDEF_TIMESTAMP
    orders = empty(160, 2)
    orders["ts_event"] = orders["ts_recv"] = START
    orders["flags"], orders["action"] = [32, 0], b"A"
    books = empty(1, 2)
    books["ts_event"] = books["ts_recv"] = START
    books["flags"], books["action"] = [0, 32], b"A"  # a day's file of history repeats the record before it
    bar = record(33, ts_event=START)
    with Feed(root) as feed:
        feed.session(trades, orders, books, bar)
    done = publisher(root).publish()
    assert done.rows == {"trades": 2, "mbo": 1, "mbp_1": 1}
    assert done.counts.left == {
        "no ts_event within the calendar": 1,
        "snapshot of the book": 2,
        "rtype 33": 1,
    }
    assert done.counts.records == sum(done.rows.values()) + done.counts.left.total()
    without = rows(root).sort("sequence").row(0, named=True)
    assert [without[n] for n in ("ts_recv", "receive_latency_ns", "publish_latency_ns")] == [None] * 3


DAY_NS = 86_400 * 10**9


@pytest.mark.parametrize("off", [83 * DAY_NS, -30 * DAY_NS, 200 * 365 * DAY_NS, 61 * 10**9])
def test_a_ts_event_far_from_its_receipt_is_kept_and_marked(root: Path, off: int) -> None:
    records = market(3)[:3]
    records["sequence"] = [1, 2, 3]
    records["ts_event"][1] = int(records["ts_recv"][1]) + off
    with Feed(root) as feed:
        feed.session(records)
    done = publisher(root).publish()
    assert (done.rows, done.counts.left.total()) == ({"trades": 3}, 0)
    found = rows(root).sort("sequence")
    assert set(found["trade_date"]) == {date(2025, 6, 10)}
    assert found["is_misdated"].to_list() == [False, True, False]
    assert found["ts_event"].to_physical().to_list() == records["ts_event"].astype(np.int64).tolist()
    bar = bars(root)
    assert bar["bar_start"].dt.date().unique().to_list() == [date(2025, 6, 10)]


def test_a_receipt_that_databento_doubts_marks_nothing(root: Path) -> None:
    records = market(3)[:3]
    records["sequence"] = [1, 2, 3]
    records["ts_recv"] += np.uint64(83 * DAY_NS)
    records["flags"] = 8
    with Feed(root) as feed:
        feed.session(records)
    publisher(root).publish()
    found = rows(root)
    assert set(found["trade_date"]) == {date(2025, 6, 10)} and not found["is_misdated"].any()


@pytest.mark.parametrize("rtype", [1, 160])
def test_a_trade_of_size_zero_is_no_trade(root: Path, rtype: int) -> None:
    records = market(4, rtype)[:4]
    records["instrument_id"], records["ts_event"], records["sequence"] = 1, START, 7
    records["price"], records["size"] = np.array([5, 1, 7, 9]) * 10**9, [1, 0, 2, 1]
    with Feed(root) as feed:
        feed.session(records)
    publisher(root).publish()
    assert rows(root, MBO if rtype == 160 else MBP_1).height == 4
    assert rows(root).select("ordinal", "size").rows() == [(0, 1), (2, 2), (3, 1)]  # as in `trades`
    (bar,) = bars(root).to_dicts()
    assert (bar["low"], bar["volume"], bar["trades"], bar["vwap"]) == (5.0, 4, 3, 7.0)


def test_bars_leave_out_trades_of_size_zero_in_an_older_lake(root: Path) -> None:
    """Rows of version 2, which knew no `is_misdated` and made trades of size 0."""
    records = market(3)[:3]
    records["instrument_id"], records["ts_event"], records["sequence"] = 1, START, [1, 2, 3]
    records["price"], records["size"] = np.array([5, 1, 7]) * 10**9, [1, 0, 1]
    with Feed(root) as feed:
        feed.session(records)
    older = replace(TRADES, columns=tuple(c for c in TRADES.columns if c.name != "is_misdated"), version=2)
    publisher(root).publish()
    old, lake = rows(root).drop("is_misdated"), Lake(root.parent.parent / "old" / "lake")
    lake.append(older, old, run_id="old")
    (bar,) = bars(root.parent.parent / "old" / "capture").to_dicts()
    assert (bar["low"], bar["volume"], bar["vwap"]) == (5.0, 2, 6.0)
    assert lake.scan(TRADES).collect()["is_misdated"].null_count() == 3


def bars(root: Path) -> pl.DataFrame:
    with catalog.connect(Workspace(root.parent).lake) as connection:
        found: pl.DataFrame = connection.sql("FROM bars(INTERVAL 5 MINUTES)").pl()
    return found


@settings(max_examples=4, deadline=None)
@given(
    rtype=st.sampled_from([0, 1, 160]),
    body=st.binary(min_size=400, max_size=600),
    symbol=st.text(max_size=20),
    within=st.booleans(),
)
def test_whatever_the_fields_hold_every_record_is_a_row_or_is_counted(
    tmp_path_factory: pytest.TempPathFactory, rtype: int, body: bytes, symbol: str, within: bool
) -> None:
    root = tmp_path_factory.mktemp("any") / "sandbox" / "capture"
    size = empty(rtype).dtype.itemsize
    records = np.frombuffer(body[: len(body) // size * size], empty(rtype).dtype).copy()
    records["length"], records["rtype"] = size // 4, rtype
    if within:
        records["ts_event"] = START + records["ts_event"] % np.uint64(10**13)
    with Feed(root) as feed:
        feed.session(records, symbols=mapping(int(records["instrument_id"][0]), symbol))
    done = publisher(root).publish()
    own = {0: "trades", 1: "mbp_1", 160: "mbo"}[rtype]
    known = done.known if own == "trades" else 0
    assert done.counts.records == len(records)
    assert done.rows.get(own, 0) + known + done.counts.left.total() == len(records)
    assert publisher(root).publish().rows == {}


# ── exactly once ────────────────────────────────────────────────────────────────────────────────


def test_a_second_call_continues_where_the_first_stopped(root: Path) -> None:
    records = market(100)
    published = publisher(root)
    assert published.publish().position == BEGINNING
    with Feed(root) as feed:
        feed.session(records[:70])
        assert published.publish().rows == {"trades": 70}
        assert published.publish().rows == {}
        feed.send(records[70:])
        assert published.publish().rows == {"trades": len(records) - 70}
        assert published.position == feed.log.written
    assert lake_records(rows(root)) == dbn_records(records)


def test_a_crash_between_the_rows_and_the_cursor_doubles_nothing(root: Path) -> None:
    records = market(300)
    with Feed(root) as feed:
        feed.session(records[:100], records[100:])
    published = publisher(root)
    first = Position(1, feed.log.written.offset - records[100:].nbytes)
    published.publish(first)
    cursor = root.parent / "lake" / "trades" / f"{DATASET}.published"
    before = cursor.read_text()
    published.publish()
    cursor.write_text(before)
    for again in (published, publisher(root)):
        done = again.publish()
        assert (done.rows, done.known) == ({"trades": 0}, len(records) - 100)
        assert done.position == feed.log.written
        cursor.write_text(before)
    assert lake_records(rows(root)) == dbn_records(records)


def test_an_overlapping_replay_adds_only_missing_rows(root: Path) -> None:
    records = market(400)
    instant = int(records["ts_event"][250])
    cut = 251  # within an instant, perhaps within an event
    published = publisher(root)
    with Feed(root) as feed:
        feed.session(records[:cut])
        published.publish()
        feed.session(replayed(records, instant))
        published.publish()
        feed.session(replayed(records, int(records["ts_event"][10])))
        done = published.publish()
    assert done.rows == {"trades": 0}
    assert lake_records(rows(root)) == dbn_records(records)
    assert set(rows(root)["log_session"]) == {1, 2}


def test_what_a_session_sends_again_after_something_later_is_one_row(root: Path) -> None:
    records = market(60)  # every instrument has had other events in between
    with Feed(root) as feed:
        feed.session(records, records[20:])
    publisher(root).publish()
    assert lake_records(rows(root)) == dbn_records(records)


@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_however_the_log_is_cut_every_trade_is_there_once(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    """Sessions that replay from any instant and end anywhere; segments, batches, calls and restarts."""
    chance = random.Random(seed)
    root = tmp_path_factory.mktemp("cut") / "sandbox" / "capture"
    records = market(24, seed=seed)
    reached, published = 0, publisher(root)
    with Feed(root, segment_bytes=chance.choice([100, 1_000, 100_000])) as feed:
        while reached < len(records):
            coming = replayed(records, int(records["ts_event"][chance.randint(0, reached)]))
            end = chance.randint(1 + len(coming) // 3, len(coming))
            feed.session()
            wire = coming[:end].tobytes()
            cuts = sorted(chance.randrange(len(wire)) for _ in range(4))
            for begin, stop in pairwise([0, *cuts, len(wire)]):
                feed.send(wire[begin:stop])
                match chance.randrange(4):
                    case 0 | 1:
                        published.publish()
                    case 2:
                        published = publisher(root, batch_bytes=chance.choice([1, 200, 1 << 20]))
            reached = max(reached, len(records) - len(coming) + end)
        done = published.publish()
    assert lake_records(rows(root)) == dbn_records(records)
    assert done.position == feed.log.written
    assert rows(root).select(TRADES.key).is_unique().all()


def event_across_segments(feed: Feed) -> np.ndarray:
    """Twelve records of one key, then four of the next, in segments of four."""
    records = empty(0, 16)
    records["instrument_id"], records["ts_event"] = 1, START
    records["ts_recv"], records["sequence"] = START, np.arange(16) // 12
    records["action"], records["side"] = b"T", b"B"
    feed.session(*np.array_split(records, 4), symbols=b"")
    return records


def test_an_event_across_segments_keeps_its_ordinals(root: Path) -> None:
    with Feed(root, segment_bytes=4 * 48) as feed:
        records = event_across_segments(feed)
        end = publisher(root).publish(Position(3, 0)).position
    assert end.segment == 2
    (third,) = (s for s in list_segments(feed.log.folder) if s.number == 3)
    assert publisher(root).publish(Position(3, third.path.stat().st_size - 48)).rows == {"trades": 3}
    publisher(root).publish()
    assert lake_records(rows(root)) == dbn_records(records)
    assert rows(root)["ordinal"].to_list() == [*range(12), *range(4)]


class WithoutRoomOnce(Lake):
    """A lake whose second append finds the disk full."""

    appends = 0

    def append(self, *what: Any, **how: Any) -> AppendResult:
        self.appends += 1
        if self.appends == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().append(*what, **how)


def test_nothing_is_published_past_a_batch_that_found_no_room(root: Path) -> None:
    with Feed(root, segment_bytes=4 * 48) as feed:
        records = event_across_segments(feed)
    published = publisher(root, lake=WithoutRoomOnce(root.parent / "lake"), batch_bytes=1)
    with pytest.raises(LakeError, match="No space left"):
        published.publish()
    assert rows(root).height == 4 and published.position.segment == 1
    assert published.publish().rows == {"trades": 12}
    assert lake_records(rows(root)) == dbn_records(records)
    assert rows(root)["ordinal"].to_list() == [*range(12), *range(4)]


def test_two_publishers_of_one_log_take_turns(root: Path) -> None:
    records = market(200)
    one, other = publisher(root, run_id="one"), publisher(root, run_id="other")
    with Feed(root) as feed:
        feed.session()
        for a in range(0, len(records), 50):
            feed.send(records[a : a + 50])
            (one if a % 100 else other).publish()
            one.publish()
    assert lake_records(rows(root)) == dbn_records(records)
    assert rows(root)["run_id"].n_unique() == 2


# ── higher schemas ──────────────────────────────────────────────────────────────────────────────


def with_quotes(trades: np.ndarray, rtype: int) -> np.ndarray:
    """The stream of a higher schema: every event's trades, their fills, then what became of the book."""
    out = []
    for event in np.unique(trades["sequence"]):
        own = trades[trades["sequence"] == event]
        wide = empty(rtype, len(own))
        for name in set(wide.dtype.names) & set(own.dtype.names) - {"length", "rtype"}:
            wide[name] = own[name]
        fills, book = wide.copy(), wide[-1:].copy()
        fills["action"], book["action"] = b"F", b"M"
        out += [wide, *([fills] if rtype == 160 else []), book]
    return np.concatenate(out)


@pytest.mark.parametrize(("rtype", "table", "schema"), [(1, MBP_1, "mbp-1"), (160, MBO, "mbo")])
def test_trades_come_from_the_higher_schema_too_and_once(root: Path, rtype: int, table, schema: str) -> None:  # type: ignore[no-untyped-def]
    trades = market(80)
    higher = with_quotes(trades, rtype)
    published = publisher(root)
    with Feed(root) as feed:
        feed.session(higher[: len(higher) // 2])
        published.publish()
        assert set(rows(root)["source_schema"]) == {schema}
        # The plan does not have it after all: one step down the ladder, replayed from a while before.
        middle = int(trades["ts_event"][len(trades) // 4])
        feed.session(replayed(trades, middle))
        published.publish()
        # And the higher one again, from the beginning.
        feed.session(higher)
        done = publisher(root).publish()
    assert lake_records(rows(root)) == dbn_records(trades)
    assert done.rows["trades"] == 0
    assert lake_records(rows(root, table)) == dbn_records(higher)
    assert set(rows(root)["action"]) == {"T"}
    assert (rows(root)["depth"].null_count() > 0) == (schema == "mbo")


def test_quotes_without_a_trade_are_resumed_by_a_new_publisher(root: Path) -> None:
    book = with_quotes(market(20), 1)
    quotes, trades = book[book["action"] == b"M"], book[book["action"] == b"T"]
    with Feed(root) as feed:
        feed.session(quotes)
        assert publisher(root).publish().rows == {"mbp_1": len(quotes)}
        feed.send(trades)
        publisher(root).publish()
    assert lake_records(rows(root)) == dbn_records(trades)


def test_books_and_orders_have_the_columns_of_their_schema(root: Path) -> None:
    book, order = empty(1), empty(160)
    for each in (book, order):
        each["ts_event"] = each["ts_recv"] = START
        each["instrument_id"] = 1
    book["bid_px_00"], book["ask_px_00"], book["bid_sz_00"], book["ask_ct_00"] = (
        5_050_000_000,
        UNDEF_PRICE,
        7,
        3,
    )
    order["order_id"], order["channel_id"], order["action"] = 2**64 - 2, 4, b"A"
    with Feed(root) as feed:
        feed.session(book, order)
    publisher(root).publish()
    shown = rows(root, MBP_1).select("bid_px_00", "ask_px_00", "bid_sz_00", "ask_ct_00", "raw_symbol")
    assert shown.row(0) == (5.05, None, 7, 3, "NQM5")
    assert rows(root, MBO).select("order_id", "channel_id", "action").row(0) == (2**64 - 2, 4, "A")
    assert rows(root).is_empty()


# ── replaying, compacting, failing ──────────────────────────────────────────────────────────────


def test_the_same_log_gives_the_same_parquet_however_it_was_published(root: Path, tmp_path: Path) -> None:
    records = market(500)
    contents = []
    for number, steps in enumerate([1, 7, 7]):
        there = tmp_path / str(number) / "sandbox" / "capture"
        published = publisher(there)
        with Feed(there) as feed:
            feed.session()
            for part in np.array_split(records, steps):
                feed.send(part)
                published.publish()
            feed.session(replayed(records, int(records["ts_event"][300])))
            published.publish()
        publisher(there, at=NOON + timedelta(days=1)).tidy()
        (path,) = map(Path, Workspace(there.parent).lake.files(TRADES))
        contents.append(path.read_bytes())
    assert contents[0] == contents[1] == contents[2]


def test_a_closed_trade_date_is_one_sorted_file_in_the_catalog(root: Path) -> None:
    records = market(200)
    published = publisher(root)
    lake = Workspace(root.parent).lake
    with Feed(root) as feed:
        feed.session()
        for part in np.array_split(records, 20):
            feed.send(part)
            published.publish()
        published.tidy()
        assert len(lake.files(TRADES)) == 20, "the trade date is not over"
        publisher(root, at=NOON + timedelta(days=1)).tidy()
    (path,) = lake.files(TRADES)
    frame = pl.read_parquet(path)
    assert frame.equals(frame.sort("instrument_id", "ts_event", "sequence", maintain_order=True))
    with catalog.connect(Workspace(root.parent).lake) as connection:
        answer = connection.execute(
            "SELECT count(*), sum(size), count(DISTINCT series) FROM trades"
        ).fetchone()
    assert answer == (len(records), int(records["size"].sum()), 1)


def test_publishing_does_not_wait_for_a_merge(root: Path) -> None:
    published = publisher(root)
    with Feed(root) as feed:
        feed.session()
        for part in np.array_split(market(20), 2):
            feed.send(part)
            published.publish()
    merging = publisher(root, at=NOON + timedelta(days=1))
    with locked(merging.lake.folder(TRADES) / ".compaction.lock"):
        merging.tidy()
    assert len(merging.lake.files(TRADES)) == 2
    merging.tidy()
    assert len(merging.lake.files(TRADES)) == 1


def test_whole_records_of_a_damaged_log_are_published(root: Path) -> None:
    records = market(100)
    with Feed(root) as feed:
        feed.session(records)
    (segment,) = root.rglob("*.dbn")
    data = bytearray(segment.read_bytes())
    data[-48 * 10 + 1] = 250  # an rtype that is none
    segment.write_bytes(data)
    published = publisher(root)
    for _ in range(2):
        with pytest.raises(CaptureError, match="damaged"):
            published.publish()
        assert rows(root).height == len(records) - 10
    assert published.position.offset == len(data) - 480


def test_a_damaged_cursor_is_one_clear_sentence(root: Path) -> None:
    cursor = root.parent / "lake" / "trades" / f"{DATASET}.published"
    cursor.parent.mkdir(parents=True)
    cursor.write_text("here")
    with pytest.raises(CaptureError, match="delete it"):
        publisher(root).publish()
