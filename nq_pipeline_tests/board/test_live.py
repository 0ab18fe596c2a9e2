"""The board's messages beside a feed: every trade once, and what the lake has."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import polars as pl
import pytest
import requests

from nq_pipeline.board.charts import ChartFiles
from nq_pipeline.capture.log.segments import Position, list_segments
from nq_pipeline.capture.publisher import Publisher
from nq_pipeline.clock import ShiftedClock, to_ns
from nq_pipeline.configuration import build_settings
from nq_pipeline.errors import ServeError
from nq_pipeline.lake import catalog
from nq_pipeline.lake.tables import GAPS, TRADES, conform
from nq_pipeline.sandbox.gateway.fault_script import Fault
from nq_pipeline.sandbox.gateway.feed import DATASET
from nq_pipeline.settings import Settings
from nq_pipeline.stream.log_tail import LogTail
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.boards import board_messages, live_board
from nq_pipeline_tests.testing.capture_runs import OPENS, RunningCapture, capture_settings, serve_gateway
from nq_pipeline_tests.testing.dbn_streams import NOON
from nq_pipeline_tests.testing.feeds import Feed, market, publisher, replayed
from nq_pipeline_tests.testing.lake_samples import DURING
from nq_pipeline_tests.testing.stream_samples import gap_row

pytestmark = pytest.mark.timeout(240)
PATIENCE_S = 60.0


class Reader:
    """Reads a board's messages: the newest sections, and all trades of the tape by their number."""

    def __init__(self, address: str, **headers: str) -> None:
        self.messages = board_messages(address, **headers)
        self.sections: dict[str, Any] = {}
        self.trades: dict[int, tuple[float, int]] = {}

    def until(self, enough: Callable[[], Any], patience_s: float = PATIENCE_S) -> None:
        """Read until something is true."""
        give_up = time.monotonic() + patience_s
        while not enough():
            assert time.monotonic() < give_up, self.sections
            message = next(self.messages)
            for batch in message.pop("tape", []):
                trades = zip(batch["price"], batch["size"], strict=True)
                numbered = dict(enumerate(trades, batch["first"]))
                assert not numbered.keys() & self.trades.keys()
                self.trades |= numbered
            self.sections |= message

    def volume(self, span: str = "session") -> int:
        """Contracts of options in a span, at all strikes."""
        own = self.sections.get("strikes", {}).get("NQ", {}).get(span)
        sides = ("bought", "sold", "undefined")
        return own["beyond"] + sum(sum(own[side]) for side in sides) if own else 0


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "sandbox")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return build_settings(data_dir=tmp_path)


def test_what_was_published_and_what_follows_is_counted_once(
    workspace: Workspace, settings: Settings
) -> None:
    records = market(300)
    rows = records[records["size"] > 0]
    begins = int(records["ts_event"][100])
    with Feed(workspace.capture) as feed:
        feed.session(records[:150])
        publisher(workspace.capture).publish()
        feed.send(records[150:200])
        with live_board(settings, ShiftedClock(NOON)) as address:
            reader = Reader(address)
            feed.send(records[200:220])
            again = replayed(records, begins)  # another session, which repeats much of the first
            feed.session(again[:50])
            feed.send(again[50:])
            reader.until(lambda: len(reader.trades) >= len(rows))
            options = rows[np.isin(rows["instrument_id"], (2, 3))]
            reader.until(lambda: reader.volume() >= int(options["size"].sum()))
    assert reader.volume() == reader.volume("5 minutes") == int(options["size"].sum())
    assert sorted(reader.trades) == list(range(len(rows)))
    expected = zip((rows["price"] / 1e9).tolist(), rows["size"].tolist(), strict=True)
    assert sorted(reader.trades.values()) == sorted(expected)
    future = rows[rows["instrument_id"] == 1]
    (shown,) = reader.sections["future"]
    assert (shown["symbol"], shown["volume"]) == ("NQM5", int(future["size"].sum()))
    assert shown["last"] == future["price"][-1] / 1e9
    assert reader.sections["capture"]["schemas"] == {"option": "trades", "future": "trades"}


def test_gaps_come_when_they_are_committed(workspace: Workspace, settings: Settings) -> None:
    def commit(*rows: dict[str, Any]) -> None:
        workspace.lake.append(GAPS, conform(GAPS, pl.DataFrame(list(rows))), run_id="run")

    with Feed(workspace.capture), live_board(settings, ShiftedClock(DURING)) as address:
        reader = Reader(address)
        reader.until(lambda: "gaps" in reader.sections)
        assert reader.sections["gaps"]["open"] == 0
        commit(gap_row(1))
        reader.until(lambda: reader.sections["gaps"]["open"] == 1)
        assert reader.sections["gaps"]["newest"][0]["cause"] == "reset"
        commit(gap_row(1, revision=1, state="verified"))
        reader.until(lambda: reader.sections["gaps"]["states"] == {"verified": 1})
        reader.until(lambda: reader.sections["capture"]["running"])


def test_trades_come_although_a_table_is_damaged(workspace: Workspace, settings: Settings) -> None:
    workspace.lake.append(GAPS, conform(GAPS, pl.DataFrame([gap_row(1)])), run_id="run")
    for file in workspace.lake.root.glob("gaps/**/*.parquet"):
        file.write_bytes(b"damaged")
    with Feed(workspace.capture) as feed, live_board(settings, ShiftedClock(DURING)) as address:
        feed.session(market(1))
        reader = Reader(address)
        reader.until(lambda: {"spend", "volatility"} <= reader.sections.keys())
        reader.until(lambda: "gaps" in (reader.sections["capture"]["failure"] or ""))
        feed.send(market(10)[1:])
        reader.until(lambda: len(reader.trades) == len(market(10)))


def test_a_log_that_was_lost_does_not_stop_the_board(
    workspace: Workspace, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nq_pipeline.stream.hub.PATIENCE_S", 0.2)
    with Feed(workspace.capture) as feed:
        feed.session(market(300))
    publisher(workspace.capture).publish()
    for segment in workspace.capture.glob("*/*/*.dbn"):
        segment.unlink()
    with live_board(settings, ShiftedClock(NOON)) as address, Feed(workspace.capture) as feed:
        reader = Reader(address)
        reader.until(lambda: reader.trades)
        published = len(reader.trades)
        for number in range(8):
            feed.session(market(1, seed=number))
            time.sleep(0.1)
        reader.until(lambda: len(reader.trades) > published)
        assert len(reader.trades) < published + 100, "published trades come once"
        reader.until(lambda: reader.sections["capture"]["skipped"])


def test_a_missing_segment_costs_only_its_own_trades_and_is_told(
    workspace: Workspace, settings: Settings
) -> None:
    records = market(300)
    log = workspace.capture / DATASET
    with Feed(workspace.capture, segment_bytes=4_000) as feed:
        feed.session(records[:50])
        publisher(workspace.capture).publish()
        feed.send(*np.array_split(records[50:], 8))
        segments = list_segments(log)
        lost = segments[len(segments) // 2]
        ends = Position(lost.number, lost.path.stat().st_size)
        missing = sum(rows.height for _, _, rows in LogTail(log, Position(lost.number, 0)).read(ends))
        lost.path.unlink()
        with live_board(settings, ShiftedClock(NOON)) as address:
            reader = Reader(address)
            reader.until(lambda: "capture" in reader.sections)
            reader.until(lambda: reader.sections["capture"]["trades"] >= len(records) - missing)
            reader.until(lambda: f"segment {lost.number} of" in reader.sections["capture"]["skipped"])
    assert missing and reader.sections["capture"]["trades"] == len(records) - missing


def test_charts_that_failed_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        files = ChartFiles()
        monkeypatch.setattr("sys.executable", "/bin/false")
        with pytest.raises(ServeError):
            await files.library()
        monkeypatch.setattr("sys.executable", "/bin/echo")
        assert await files.specifications() == b"-m nq_pipeline.board.charts"

    asyncio.run(work())


def test_whoever_has_no_token_or_another_name_sees_nothing(tmp_path: Path) -> None:
    settings = build_settings(data_dir=tmp_path, serve_token="a-token-of-tests")
    with live_board(settings, ShiftedClock(NOON), host="0.0.0.0") as address:
        for path in ("/", "/board.js", "/events"):
            assert requests.get(address + path, timeout=10, auth=("", "wrong")).status_code == 401
        assert requests.get(address, timeout=10, auth=("any", "a-token-of-tests")).status_code == 200
        reader = Reader(address, Authorization="Bearer a-token-of-tests")
        reader.until(lambda: "clock" in reader.sections)
        assert "a-token-of-tests" not in str(reader.sections)
    with live_board(build_settings(data_dir=tmp_path), ShiftedClock(NOON)) as address:
        for foreign in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
            assert requests.get(f"{address}/events", headers=foreign, timeout=10).status_code in (403, 421)


def test_a_stop_ends_the_events_of_an_open_page(settings: Settings) -> None:
    with live_board(settings, ShiftedClock(NOON)) as address:
        messages = board_messages(address)
        next(messages)
    list(messages)  # a connection that is cut raises an error


def test_a_board_without_any_data_shows_the_market_and_what_is_missing(settings: Settings) -> None:
    with live_board(settings, ShiftedClock(NOON), note="a note") as address:
        reader = Reader(address)
        reader.until(lambda: {"spend", "chain", "gaps", "volatility"} <= reader.sections.keys())
    shown = reader.sections
    assert shown["board"]["note"] == "a note" and "SANDBOX" in shown["board"]["sandbox"]
    assert (shown["clock"]["state"], shown["clock"]["trade_date"]) == ("regular", "2025-06-10")
    assert not shown["capture"]["running"] and shown["capture"]["lag"] is None
    assert shown["future"] == [] and shown["chain"] == {} and shown["volatility"] == {}
    assert shown["spend"]["left"] <= shown["spend"]["budget"]


def test_a_client_that_does_not_read_costs_nobody_anything(workspace: Workspace, settings: Settings) -> None:
    """Its socket is full; the others get every trade, and it gets the newest ones when it reads on."""
    records = np.tile(market(1)[:1], 2_000)
    with Feed(workspace.capture) as feed, live_board(settings, ShiftedClock(NOON)) as address:
        feed.session(market(1))
        where = urlsplit(address)
        assert where.hostname and where.port
        with socket.socket() as stuck:
            stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
            stuck.connect((where.hostname, where.port))
            stuck.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            reader, sent = Reader(address), 0
            reader.until(lambda: reader.trades)
            for number in range(100):
                records["sequence"] = 10_000 * (number + 1) + np.arange(2_000)
                feed.send(records)
                sent += 2_000
                if number % 5 == 4:  # as many as the board keeps, or fewer
                    reader.until(partial(lambda most: max(reader.trades) >= most, sent))
            assert len(reader.trades) == sent + len(market(1))
            stuck.settimeout(20)
            received, firsts = bytearray(), [0]
            while firsts[-1] < sent - 10_000:  # batches of up to five pieces
                piece = stuck.recv(1 << 20)
                received += piece
                firsts += map(int, re.findall(rb'"first":(\d+),', received[-len(piece) - 40 :]))
            assert sum(b - a > 10_000 for a, b in pairwise(firsts)) == 1, "one hole"


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_memory_is_flat_over_an_hour_of_trades(workspace: Workspace, settings: Settings) -> None:
    """As many trades as 2,000 a second make in an hour, as fast as the board shows them."""
    piece, pieces = 10_000, 720
    records = np.tile(market(1)[:1], piece)
    memory = []
    with (
        Feed(workspace.capture, segment_bytes=1 << 28) as feed,
        live_board(settings, ShiftedClock(NOON)) as at,
    ):
        feed.session(market(1))
        reader = Reader(at)
        for number in range(pieces):
            numbers = number * piece + np.arange(1, piece + 1)
            records["sequence"], records["instrument_id"] = numbers, 1 + numbers % 3
            records["ts_event"] = to_ns(NOON) + numbers * 500_000
            records["ts_recv"] = records["ts_event"] + 40_000
            feed.send(records)
            reader.until(partial(lambda most: max(reader.trades, default=0) >= most, numbers[-1]))
            reader.trades.clear()
            memory.append(resident_mb())
    assert memory[-1] - memory[pieces // 6] < 60, memory[:: pieces // 12]


def resident_mb() -> float:
    """The resident memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


@pytest.mark.slow
def test_the_board_agrees_with_the_lake_after_faults_of_the_gateway(tmp_path: Path) -> None:
    faults = (Fault("rst", after_s=2), Fault("cut", after_s=2), Fault("duplicate", after_s=1, records=50))
    with serve_gateway(*faults, now=OPENS + timedelta(minutes=5), load=None) as served:
        settings = capture_settings(served, tmp_path, capture_schema="mbp-1")
        workspace = Workspace.of(settings)
        log = workspace.capture / DATASET
        publisher = Publisher(log, workspace.lake, clock=served.clock, run_id="test")
        capture = RunningCapture(served, tmp_path, publish=publisher.publish, capture_schema="mbp-1")
        capture.until(lambda: capture.stats.records > 1_000)
        with live_board(settings, served.clock) as address:
            reader = Reader(address)
            reader.until(lambda: capture.stats.reconnects >= 2 and not capture.stats.open_gaps, 200)
            reader.until(lambda: reader.sections.get("capture", {}).get("running"))
            capture.finish()
            with catalog.connect(workspace.lake) as lake:
                (rows,) = lake.sql("SELECT count(*) FROM trades WHERE size > 0").fetchall()[0]
                gaps = dict(lake.sql(_GAP_STATES).fetchall())
                (contracts,) = lake.sql(_OPTIONS).fetchall()[0]

            reader.until(lambda: reader.volume() == contracts)
            reader.until(lambda: reader.sections["gaps"]["states"] == gaps)
            reader.until(lambda: not reader.sections["capture"]["running"])
            assert reader.sections["capture"]["schemas"] == {"option": "mbp-1", "future": "trades"}
    assert sum(gaps.values()) >= 2 and reader.sections["gaps"]["open"] == 0
    # The tape begins with the newest trades of the lake; from there on it has every trade once.
    assert sorted(reader.trades) == list(range(len(reader.trades)))
    newest = (
        workspace.lake.scan(TRADES)
        .filter(pl.col("size") > 0)
        .collect()
        .sort("ts_recv", "sequence", "ordinal")
    )
    assert rows - len(reader.trades) == rows - newest.tail(len(reader.trades)).height
    assert sorted(reader.trades.values()) == sorted(
        newest.tail(len(reader.trades)).select("price", "size").iter_rows()
    )


_GAP_STATES = """
SELECT state, count(*) FROM (
    FROM gaps QUALIFY row_number() OVER (PARTITION BY gap_id ORDER BY revision DESC) = 1
) GROUP BY state
"""
_OPTIONS = "SELECT sum(buy_volume + sell_volume + undefined_volume)::BIGINT FROM pressure"
