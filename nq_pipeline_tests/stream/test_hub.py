"""Subscribers of the hub: nothing lost, nothing doubled, and nobody waits for the slowest."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, closing
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nq_pipeline.capture.log.segments import Position
from nq_pipeline.errors import BadCursor, TooSlow
from nq_pipeline.lake.tables import GAPS, conform
from nq_pipeline.stream.batch import Batch, Cursor
from nq_pipeline.stream.events import NAME
from nq_pipeline.stream.hub import Hub
from nq_pipeline.stream.log_tail import LogTail
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.dbn_streams import Clock
from nq_pipeline_tests.testing.feeds import DATASET, Feed, market, replayed
from nq_pipeline_tests.testing.stream_samples import gap_row

PATIENCE_S = 30.0
KEY = ["ts_event", "instrument_id", "sequence", "ordinal"]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "sandbox")


def hub_of(workspace: Workspace, **more: int) -> Hub:
    return Hub(workspace, DATASET, clock=Clock(), **more)


def run(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), PATIENCE_S))


async def until_rows(batches: AsyncIterator[Batch], rows: int) -> list[Batch]:
    """The next batches with some number of rows, without `status`."""
    found: list[Batch] = []
    while sum(batch.frame.height for batch in found) < rows:
        batch = await anext(batches)
        if batch.type != "status":
            found.append(batch)
    return found


def keys(batches: list[Batch]) -> list[tuple[object, ...]]:
    return sorted(row for batch in batches for row in batch.frame.select(KEY).rows())


def test_a_subscriber_gets_what_comes_after_it(workspace: Workspace) -> None:
    records = market(50)

    async def work() -> None:
        with Feed(workspace.capture) as feed:
            feed.session(records[:20])
            async with hub_of(workspace).running() as hub, aclosing(hub.subscribe()) as batches:
                first = await anext(batches)
                assert first.type == "status" and first.cursor == hub.head
                feed.send(records[20:])
                found = await until_rows(batches, len(records) - 20)
                assert len(keys(found)) == len(set(keys(found))) == len(records) - 20
                assert found[-1].text.startswith('{"type":"trades","cursor":"')

    run(work)


@settings(max_examples=settings().max_examples // 8, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 150), min_size=1, max_size=4),
    leaves=st.lists(st.integers(1, 60), max_size=6),
    restarts=st.booleans(),
)
def test_a_subscriber_that_returns_misses_nothing(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], leaves: list[int], restarts: bool
) -> None:
    workspace = Workspace(tmp_path_factory.mktemp("data") / "sandbox")
    records = market(120, rtype=1)
    edges = [*sorted(set(cuts)), len(records)]

    async def work() -> None:
        found: list[Batch] = []
        cursor: Cursor | None = None
        hub = hub_of(workspace)
        async with hub.running():
            cursor = hub.head
        done = 0
        for last, leave in zip(edges, [*leaves, *[0] * len(edges)], strict=False):
            with Feed(workspace.capture) as feed:  # a capture that is restarted, and replays
                feed.session(replayed(records[:last], int(records["ts_event"][max(0, done - 30)])))
            done = last
            hub = hub_of(workspace) if restarts else hub
            async with hub.running(), aclosing(hub.subscribe(cursor)) as batches:
                missing = 2 * last - sum(b.frame.height for b in found)
                some = await until_rows(batches, min(leave or missing, missing))
            found += some
            cursor = some[-1].cursor if some else cursor
        async with hub.running(), aclosing(hub.subscribe(cursor)) as batches:
            found += await until_rows(batches, 2 * len(records) - sum(b.frame.height for b in found))
        for kind in ("trades", "quotes"):
            got = keys([b for b in found if b.type == kind])
            assert len(got) == len(set(got)) == len(records)

    run(work)


def test_gaps_are_sent_when_they_are_committed(workspace: Workspace) -> None:
    def commit(number: int) -> None:
        rows = conform(GAPS, pl.DataFrame([gap_row(number)]))
        workspace.lake.append(GAPS, rows, run_id="run")

    async def work() -> None:
        commit(1)
        async with hub_of(workspace).running() as hub:
            async with aclosing(hub.subscribe(types=["gaps"])) as batches:
                asyncio.get_running_loop().call_later(0.1, commit, 2)
                (batch,) = await until_rows(batches, 1)
                assert batch.frame["gap_id"].to_list() == ["gap-2"]
            commit(3)
        async with hub_of(workspace).running() as later, aclosing(later.subscribe(batch.cursor)) as batches:
            (missed,) = await until_rows(batches, 1)
            assert missed.frame["gap_id"].to_list() == ["gap-3"]

    run(work)


def test_a_slow_subscriber_is_dropped_and_can_return(workspace: Workspace) -> None:
    records = market(400)

    async def work() -> None:
        with Feed(workspace.capture) as feed:
            feed.session(records[:10])
            async with hub_of(workspace, queue_bytes=20_000).running() as hub:
                slow, quick = hub.subscribe(), hub.subscribe()
                cursor = (await anext(slow)).cursor
                await anext(quick)
                seen: list[Batch] = []
                for first in range(10, len(records), 20):
                    feed.send(records[first : first + 20])
                    seen += await until_rows(quick, len(records[first : first + 20]))
                assert len(keys(seen)) == len(records) - 10
                got: list[Batch] = []
                with pytest.raises(TooSlow):
                    while True:
                        batch = await anext(slow)
                        got += [batch] if batch.type == "trades" else []
                        cursor = batch.cursor
                assert 0 < len(keys(got)) < len(keys(seen))
                async with aclosing(hub.subscribe(cursor)) as back:
                    got += await until_rows(back, len(keys(seen)) - len(keys(got)))
                assert keys(got) == keys(seen)
                await quick.aclose()

    run(work)


def test_a_cursor_of_another_stream_is_refused(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nq_pipeline.stream.hub.PATIENCE_S", 0.1)

    async def work() -> None:
        async with hub_of(workspace).running() as hub:
            for cursor in (hub.head.move(stream="00000000"), hub.head.move(trades=Position(9, 9))):
                with pytest.raises(BadCursor):
                    await anext(hub.subscribe(cursor))

    run(work)


def test_a_cursor_before_the_log_is_refused(workspace: Workspace) -> None:
    async def work() -> None:
        with Feed(workspace.capture, segment_bytes=2_000) as feed:
            feed.session(market(200))
        hub = hub_of(workspace)
        async with hub.running():
            old = hub.head.move(trades=Position(1, 500), quotes=Position(1, 500))
            next((workspace.capture / DATASET).glob("*/*-00000001-*.dbn")).unlink()
            with pytest.raises(BadCursor, match="no longer"):
                await anext(hub.subscribe(old))

    run(work)


@pytest.mark.parametrize("text", ["", "x", "bm90IGEgY3Vyc29y", "é", "====", "a" * 10_000])
def test_a_damaged_cursor_is_refused(text: str) -> None:
    with pytest.raises(BadCursor):
        Cursor.parse(text)


def test_a_cursor_survives_as_text() -> None:
    cursor = Cursor("0a1b2c3d", 7, Position(3, 400), Position(3, 200))
    assert Cursor.parse(str(cursor)) == cursor


@pytest.mark.parametrize("broken", ["lake", "numbers"])
def test_trades_come_while_gaps_cannot_be_read(workspace: Workspace, broken: str) -> None:
    records = market(50)
    workspace.lake.append(GAPS, conform(GAPS, pl.DataFrame([gap_row(1)])), run_id="run")

    async def work() -> None:
        with Feed(workspace.capture) as feed:
            feed.session(records[:20])
            async with hub_of(workspace).running() as hub, aclosing(hub.subscribe()) as batches:
                if broken == "lake":
                    for file in workspace.lake.root.glob("gaps/**/*"):
                        if file.is_file():
                            file.write_bytes(b"damaged")
                else:
                    with closing(sqlite3.connect(workspace.root / NAME)) as database:
                        database.execute("DROP TABLE events")
                while not hub.failure:
                    await anext(batches)
                feed.send(records[20:])
                assert len(keys(await until_rows(batches, len(records) - 20))) == len(records) - 20
                assert hub.failure

    run(work)


def test_an_unexpected_error_is_shown_and_the_reader_goes_on(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: LogTail) -> None:
        raise ZeroDivisionError

    async def work() -> None:
        with Feed(workspace.capture) as feed:
            async with hub_of(workspace).running() as hub, aclosing(hub.subscribe()) as batches:
                with monkeypatch.context() as patched:
                    patched.setattr(LogTail, "read", fail)
                    feed.session(market(20))
                    while "ZeroDivision" not in str((await anext(batches)).frame["failure"].item()):
                        pass
                assert len(keys(await until_rows(batches, len(market(20))))) == len(market(20))

    run(work)
