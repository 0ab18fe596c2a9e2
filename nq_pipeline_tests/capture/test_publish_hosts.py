"""Two hosts, each with its own log of the same feed, publish into one lake in an object store."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from nq_pipeline.capture.publisher import newest_token
from nq_pipeline.configuration import load
from nq_pipeline.errors import StaleToken
from nq_pipeline.lake import catalog
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import TRADES
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.feeds import Feed, dbn_records, lake_records, market, publisher
from nq_pipeline_tests.testing.s3 import SECRET_KEY, Bucket


@pytest.fixture
def workspace(tmp_path: Path, bucket: Bucket) -> Callable[[str], Workspace]:
    def host(name: str) -> Workspace:
        return Workspace.of(load(data_dir=tmp_path / name, lake_url=bucket.url))

    return host


def trades(lake: Lake) -> pl.DataFrame:
    return lake.scan(TRADES).sort(TRADES.key).collect()


def test_two_hosts_that_race_double_nothing(workspace: Callable[[str], Workspace]) -> None:
    records = market(400)
    failures = list[BaseException]()

    def run(name: str, steps: int) -> None:
        try:
            own = workspace(name)
            published = publisher(own.capture, lake=own.lake, run_id=name)
            with Feed(own.capture) as feed:
                feed.session()
                for part in np.array_split(records, steps):
                    feed.send(part)
                    published.publish()
            assert published.position == feed.log.written
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(name, steps)) for name, steps in (("a", 12), ("b", 17))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    found = trades(workspace("c").lake)
    assert lake_records(found) == dbn_records(records)


def test_a_successor_publishes_and_the_old_capture_is_refused(
    workspace: Callable[[str], Workspace],
) -> None:
    records = market(300)
    one, two = workspace("a"), workspace("b")
    with Feed(one.capture) as feed, Feed(two.capture) as other:
        old = publisher(one.capture, lake=one.lake, run_id="old", token=4)
        feed.session(records[:100])
        old.publish()
        assert newest_token(two.lake) == 4
        new = publisher(two.capture, lake=two.lake, run_id="new", token=5)
        other.session(records[50:200])
        assert new.publish().rows == {"trades": 100}
        feed.send(records[100:300])
        with pytest.raises(StaleToken):
            old.publish()
        assert lake_records(trades(two.lake)) == dbn_records(records[:200])
        other.send(records[200:])
        new.publish()
    assert lake_records(trades(one.lake)) == dbn_records(records)
    assert newest_token(one.lake) == 5


def test_a_cursor_belongs_to_a_log(workspace: Callable[[str], Workspace]) -> None:
    records = market(60)
    for name in ("a", "b"):
        own = workspace(name)
        with Feed(own.capture) as feed:
            feed.session(records)
        published = publisher(own.capture, lake=own.lake)
        assert published.publish().rows == {"trades": len(records) if name == "a" else 0}
        assert publisher(own.capture, lake=own.lake).position == feed.log.written
        assert publisher(own.capture, lake=own.lake).publish().rows == {}


def test_sql_reads_the_shared_lake_and_nothing_else(
    workspace: Callable[[str], Workspace], bucket: Bucket
) -> None:
    records = market(60)
    own = workspace("a")
    with Feed(own.capture) as feed:
        feed.session(records)
    publisher(own.capture, lake=own.lake).publish()
    own.objects.put("raw/other", b"secret")
    path = catalog.publish(own.lake)
    assert path == own.root / "nq.duckdb"
    assert f"s3://{bucket.name}/".encode() in path.read_bytes()
    assert SECRET_KEY.encode() not in path.read_bytes()
    with catalog.connect(workspace("b").lake, guarded=True) as connection:
        assert connection.sql("SELECT count(*) FROM trades").fetchall() == [(len(records),)]
        refused = (
            f"SELECT * FROM read_text('{own.objects.uri('raw/other')}')",
            f"SELECT * FROM glob('s3://{bucket.name}/**')",
            f"COPY (SELECT 1) TO 's3://{bucket.name}/stolen.csv'",
            "SELECT * FROM read_text('/etc/passwd')",
            "SET s3_secret_access_key = 'x'",
            "SELECT * FROM duckdb_secrets()",
        )
        for sql in refused:
            with pytest.raises(Exception, match=r"(?i)disabled|permission|locked|unrecognized|not a query"):
                connection.sql(sql).fetchall()
        shown = connection.sql("SELECT * FROM duckdb_settings()").fetchall()
        assert SECRET_KEY not in str(shown)
