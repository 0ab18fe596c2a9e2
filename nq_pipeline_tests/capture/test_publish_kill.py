"""kill -9 at random moments of a publisher, and an hour of publishing every second."""

from __future__ import annotations

import multiprocessing
import random
import time
from datetime import timedelta
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from nq_pipeline.capture.log.segments import Position
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import TRADES
from nq_pipeline.market import sessions
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.dbn_streams import NOON
from nq_pipeline_tests.testing.feeds import (
    DATASET,
    Feed,
    dbn_records,
    lake_records,
    market,
    publisher,
    replayed,
    rows,
)

MOST_FILES = 200


sessions.trade_date(NOON)  # loads the calendar once for all processes forked from one that imported this


def publish_in_steps(root: Path, steps: list[Position], says: Connection) -> None:
    """What the killed process does: publish up to one position after the other."""
    published = publisher(root)
    for number, step in enumerate(steps):
        published.publish(step)
        if number % 10 == 9:
            published.tidy()
        says.send_bytes(b".")


def make_delta(root: Path) -> None:
    """Make the table of trades a Delta table, which its writers then find."""
    lake = Workspace(root.parent, delta=True).lake
    lake.append(TRADES, TRADES.empty(), run_id="made", marks={"made": 1})


@pytest.mark.parametrize("delta", [False, True], ids=["manifest", "delta"])
@pytest.mark.parametrize("kills", [10, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_a_publisher_killed_at_any_moment_loses_and_doubles_nothing(
    root: Path, kills: int, delta: bool
) -> None:
    if delta:
        make_delta(root)
    chance = random.Random(kills)
    records = market(250 * kills)
    steps = []
    with Feed(root, segment_bytes=50_000) as feed:
        for begin, end in pairwise(np.linspace(0, len(records), 6).astype(int)):
            # Every session replays a part of the one before, and may end within an event.
            feed.session()
            coming = replayed(records[:end], int(records["ts_event"][max(0, begin - 30)]))
            for part in np.array_split(coming, 8 * kills):
                feed.send(part)
                steps.append(feed.log.written)

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["nq_pipeline_tests.capture.test_publish_kill"])
    cursors = set()
    for _ in range(kills):
        cursor = publisher(root).position
        cursors.add(cursor)
        hears, says = context.Pipe(duplex=False)
        left = [step for step in steps if step > cursor]
        process = context.Process(target=publish_in_steps, args=(root, left, says))
        process.start()
        says.close()
        if chance.random() < 0.8:
            assert hears.poll(60), "the publisher does not publish"
        time.sleep(chance.uniform(0, 0.1))
        process.kill()
        process.join()
        hears.close()
        found = rows(root)
        assert found.select(TRADES.key).is_unique().all(), "a trade is there twice"
    assert len(cursors) > kills / 2, "the publisher was killed before it did anything"
    publisher(root).publish()
    assert lake_records(rows(root)) == dbn_records(records)
    publisher(root, at=NOON + timedelta(days=1)).tidy()
    assert len(Workspace(root.parent).lake.files(TRADES)) == 1
    assert lake_records(rows(root)) == dbn_records(records)


@pytest.mark.parametrize(
    "publishes", [125, pytest.param(3_600, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
def test_publishing_every_second_stays_cheap_and_leaves_few_files(root: Path, publishes: int) -> None:
    records = market(10 * publishes)
    published, lake = publisher(root), Workspace(root.parent).lake
    most, reads = 0, []
    with Feed(root) as feed:
        feed.session()
        for part in np.array_split(records, publishes):
            feed.send(part)
            published.publish()
            files = lake.files(TRADES)
            most = max(most, len(files))
            reads.append(len(overlapping(lake, part)))
    assert lake_records(rows(root)) == dbn_records(records)
    assert most <= MOST_FILES
    # What a publication costs is what it has to read for known rows: a file or two, early and late.
    assert median(reads[-100:]) <= 2


def overlapping(lake: Lake, part: np.ndarray) -> list[str]:
    """The files whose time meets that of some records."""
    low, high = int(part["ts_event"].min()), int(part["ts_event"].max())
    return [f.path for f in lake.manifest(TRADES).files if f.since_min <= high and low <= f.since_max]


def test_a_table_moved_away_is_published_anew(root: Path) -> None:
    records = market(50)
    with Feed(root) as feed:
        feed.session(records)
    publisher(root).publish()
    folder = root.parent / "lake" / "trades"
    assert (folder / f"{DATASET}.published").exists()
    folder.rename(root.parent / "kept")
    assert publisher(root).publish().rows == {"trades": len(records)}
