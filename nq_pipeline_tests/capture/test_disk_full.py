"""A disk that refuses to hold more: it is said, nothing is lost, and what was left behind follows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nq_pipeline.errors import LakeError
from nq_pipeline.files import TEMPORARY
from nq_pipeline.lake.compaction import FAN_IN
from nq_pipeline.lake.tables import TRADES
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.dbn_streams import NOON
from nq_pipeline_tests.testing.disk_limits import no_file_above
from nq_pipeline_tests.testing.feeds import Feed, dbn_records, lake_records, market, publisher, rows

RECORDS = market(20_000)


def left_over(root: Path) -> list[Path]:
    return list(root.parent.rglob(TEMPORARY))


@pytest.mark.parametrize("size", [0, 10, 10_000, 100_000])
def test_rows_are_published_once_there_is_room(root: Path, size: int) -> None:
    published = publisher(root, batch_bytes=RECORDS.nbytes // 3)
    with Feed(root) as feed:
        feed.session(RECORDS[:-100])
        with no_file_above(size), pytest.raises(LakeError, match=r"File too large"):
            published.publish()
        feed.send(RECORDS[-100:])
    assert not left_over(root)
    published.publish()
    assert lake_records(rows(root)) == dbn_records(RECORDS)


def test_a_merge_without_room_loses_nothing_and_is_repeated(root: Path) -> None:
    parts, lake = np.array_split(RECORDS, FAN_IN), Workspace(root.parent).lake
    published, refused = publisher(root), 0
    with Feed(root) as feed:
        feed.session(parts[0])
        published.publish()
        largest = max(Path(path).stat().st_size for path in lake.files(TRADES))
        for part in parts[1:]:
            feed.send(part)
            try:
                with no_file_above(3 * largest):
                    published.publish()
            except LakeError:
                refused += 1
        assert refused, "there was room"
        published.publish()
    assert lake_records(rows(root)) == dbn_records(RECORDS) and not left_over(root)
    assert len(lake.files(TRADES)) == FAN_IN
    assert lake.compact(TRADES, NOON.date(), now=NOON) == FAN_IN
    assert lake_records(rows(root)) == dbn_records(RECORDS) and len(lake.files(TRADES)) == 1
