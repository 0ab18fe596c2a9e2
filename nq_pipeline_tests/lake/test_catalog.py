"""The DuckDB catalog: documented types, exact instants, readers that are in nobody's way, guarded SQL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import duckdb
import polars as pl
import pytest

from nq_pipeline.clock import NS_PER_S
from nq_pipeline.errors import LakeError
from nq_pipeline.lake import catalog
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import DECISIONS, INSTANT, OPTION_CHAIN, SOURCE_CHAIN, TABLES, conform
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.lake_samples import AFTER, DAY, NOON, chain, decision
from nq_pipeline_tests.testing.sql_types import SQL_TYPES

MINUTE = 60 * NS_PER_S


def decide(lake: Lake, *rows: dict[str, object]) -> None:
    lake.append(DECISIONS, conform(DECISIONS, pl.DataFrame(rows)), run_id="run")


def fill(lake: Lake) -> None:
    for table in (SOURCE_CHAIN, OPTION_CHAIN):
        lake.append(table, chain(table, snapshot=NOON), run_id="run")
    decide(lake, decision(decided_at=NOON + 1, snapshot=NOON))


@pytest.mark.parametrize("filled", [False, True], ids=["empty lake", "with rows"])
@pytest.mark.parametrize("published", [False, True], ids=["connect", "nq.duckdb"])
def test_views_have_the_documented_columns_types_and_comments(
    lake: Lake, filled: bool, published: bool
) -> None:
    if filled:
        fill(lake)
    connection = duckdb.connect(catalog.publish(lake), read_only=True) if published else catalog.connect(lake)
    with connection:
        for name, table in TABLES.items():
            expected = [(c.name, SQL_TYPES[c.dtype], c.meaning) for c in table.columns] + [
                (f"{c.name}_ns", "BIGINT", f"{c.name} in nanoseconds since 1970-01-01 UTC")
                for c in table.columns
                if c.dtype == INSTANT
            ]
            described = connection.execute(f"DESCRIBE {name}").fetchall()
            assert [row[:2] for row in described] == [row[:2] for row in expected]
            comments = connection.execute(
                "SELECT column_name, comment FROM duckdb_columns() WHERE table_name = ?", [name]
            ).fetchall()
            assert dict(comments) == {column: meaning for column, _, meaning in expected}
        said = connection.execute("SELECT comment FROM duckdb_views() WHERE view_name = 'fetches'").fetchone()
    assert said == (f"Synthetic data of the sandbox. {TABLES['fetches'].meaning}",)


def test_instants_are_microseconds_with_exact_nanoseconds(lake: Lake) -> None:
    instants = [NOON + 1, NOON + 999, NOON + NS_PER_S - 1]
    for instant in instants:
        lake.append(SOURCE_CHAIN, chain(SOURCE_CHAIN, snapshot=instant, contracts=1), run_id="run")
    with catalog.connect(lake) as connection:
        rows = connection.execute(
            "SELECT snapshot_ts, snapshot_ts_ns, quote_ts, quote_ts_ns FROM source_chain ORDER BY ALL"
        ).fetchall()
        inside = connection.execute(
            "SELECT count(*) FROM source_chain WHERE snapshot_ts < TIMESTAMPTZ '2025-07-01 12:00:01+00'"
        ).fetchone()
    noon = datetime(2025, 7, 1, 12, tzinfo=UTC)
    shown = [noon, noon, noon + timedelta(microseconds=999_999)]
    assert rows == [(at, ns, None, None) for at, ns in zip(shown, instants, strict=True)]
    assert inside == (3,)


def latest(lake: Lake) -> list[tuple[str, str, int]]:
    """Series, source and minute after noon of what `option_chain_latest` shows, each contract once."""
    with catalog.connect(lake) as connection:
        rows = connection.execute(
            "SELECT series, source, snapshot_ts_ns, count(*), count(DISTINCT contract_key) "
            "FROM option_chain_latest GROUP BY ALL ORDER BY ALL"
        ).fetchall()
    assert all(many == 3 and unique == 3 for *_, many, unique in rows)
    return [(series, source, (at - NOON) // MINUTE) for series, source, at, *_ in rows]


def run(
    lake: Lake,
    minute: int,
    won: Sequence[tuple[str, str]],
    *,
    underlying_class: str = "future",
    lost: Sequence[tuple[str, str]] = (),
    day: date = DAY,
) -> None:
    """One run: the chains of (series, source) that won, with their decisions."""
    snapshot = NOON + minute * MINUTE
    for series, source in won:
        rows = chain(
            OPTION_CHAIN,
            snapshot=snapshot,
            series=series,
            source=source,
            day=day,
            underlying_class=underlying_class,
        )
        lake.append(OPTION_CHAIN, rows, run_id=f"run-{minute}")
    decide(
        lake,
        *(
            decision(
                decided_at=snapshot + NS_PER_S,
                snapshot=snapshot,
                series=series,
                source=source,
                won=(series, source) in won,
                day=day,
                run_id=f"run-{minute}",
            )
            for series, source in (*won, *lost)
        ),
    )


A, B, PROXY = "Q1B-2025-07-01", "QN1-2025-07-03", "NDXP-2025-07-01"


def test_the_latest_chain_follows_each_series_newest_winner(lake: Lake) -> None:
    run(lake, 0, [(A, "barchart"), (B, "barchart")])
    run(lake, 5, [(A, "barchart"), (B, "tradovate")], lost=[(B, "barchart")])
    assert latest(lake) == [(A, "barchart", 5), (B, "tradovate", 5)]


def test_a_run_of_one_series_leaves_the_others(lake: Lake) -> None:
    run(lake, 0, [(A, "barchart"), (B, "barchart")])
    run(lake, 5, [(B, "databento")])
    assert latest(lake) == [(A, "barchart", 0), (B, "databento", 5)]


def test_a_later_run_without_a_winner_leaves_the_last_good_rows(lake: Lake) -> None:
    run(lake, 0, [(A, "barchart")])
    run(lake, 5, [], lost=[(A, "barchart")])
    assert latest(lake) == [(A, "barchart", 0)]


def test_the_latest_chain_is_of_the_newest_trade_date_alone(lake: Lake) -> None:
    run(lake, 0, [(A, "barchart"), (B, "barchart")])
    run(lake, 24 * 60, [(B, "barchart")], day=DAY + timedelta(days=1))
    assert latest(lake) == [(B, "barchart", 24 * 60)]


def test_a_native_source_replaces_a_proxy_in_the_latest_chain(lake: Lake) -> None:
    run(lake, 0, [(PROXY, "polygon")], underlying_class="index", lost=[(A, "barchart")])
    assert latest(lake) == [(PROXY, "polygon", 0)]
    run(lake, 5, [(A, "barchart")])
    assert latest(lake) == [(A, "barchart", 5)]
    run(lake, 10, [(PROXY, "polygon")], underlying_class="index", lost=[(A, "barchart")])
    assert latest(lake) == [(PROXY, "polygon", 10), (A, "barchart", 5)]


def count(connection: duckdb.DuckDBPyConnection) -> int:
    row = connection.execute("SELECT count(*) FROM source_chain").fetchone()
    assert row is not None
    return int(row[0])


def test_an_open_reader_does_not_block_publishing(lake: Lake) -> None:
    fill(lake)
    path = catalog.publish(lake)
    with duckdb.connect(path, read_only=True) as reader:
        assert count(reader) == 3
        lake.append(SOURCE_CHAIN, chain(SOURCE_CHAIN, snapshot=NOON + 1), run_id="run")
        lake.compact(SOURCE_CHAIN, DAY, now=AFTER)
        lake.collect_garbage()
        assert catalog.publish(lake) == path
        assert count(reader) == 3
    with duckdb.connect(path, read_only=True) as reader:
        assert count(reader) == 6


def test_publishing_removes_what_a_killed_one_left(lake: Lake) -> None:
    fill(lake)
    for left in (".nq.duckdb.0123.tmp", ".nq.duckdb.0123.tmp.wal"):
        lake.root.with_name(left).write_bytes(b"begun")
    catalog.publish(lake)
    assert not list(lake.root.parent.glob(".*.tmp*"))


def test_a_reader_that_wrote_to_the_catalog_hurts_only_itself(lake: Lake) -> None:
    fill(lake)
    path = catalog.publish(lake)
    script = (
        "import duckdb, os, signal, sys\n"
        "connection = duckdb.connect(sys.argv[1])\n"
        "connection.execute('CREATE TABLE mine AS SELECT 1 AS x')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    careless = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert careless.returncode == -signal.SIGKILL
    assert path.with_name("nq.duckdb.wal").exists()
    catalog.publish(lake)
    assert not path.with_name("nq.duckdb.wal").exists()
    with duckdb.connect(path, read_only=True) as reader:
        assert count(reader) == 3
        assert reader.execute("SELECT count(*) FROM duckdb_tables()").fetchone() == (0,)
    assert not list(lake.root.parent.glob(".*.tmp*"))


def test_views_are_made_once_for_all_processes(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(lake)
    catalog.publish(lake)
    (kept,) = lake.root.with_name("cache").glob("views-*")
    for content in (kept.read_bytes(), b"damaged"):
        kept.write_bytes(content)
        monkeypatch.setattr(catalog, "_made", {})  # as in a new process
        with catalog.connect(lake) as connection:
            assert count(connection) == 3


def test_a_full_disk_does_not_keep_readers_away(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(lake)
    monkeypatch.setattr(catalog, "_made", {})
    monkeypatch.setattr("tempfile.tempdir", "/proc/nothing/can/be/written/here")
    with catalog.connect(lake) as connection:
        assert count(connection) == 3


def test_publishing_reads_one_file_of_a_table(lake: Lake) -> None:
    for i in range(3):
        rows = chain(SOURCE_CHAIN, snapshot=NOON + i, day=DAY + timedelta(days=i))
        lake.append(SOURCE_CHAIN, rows, run_id="run")
    for path in map(Path, lake.files(SOURCE_CHAIN)[1:]):  # of the right size and end, and nothing between
        path.write_bytes(bytes(path.stat().st_size - 4) + b"PAR1")
    with duckdb.connect(catalog.publish(lake), read_only=True) as reader:
        days = "SELECT count(*) FROM source_chain WHERE trade_date {} '2025-07-01'"
        assert reader.sql(days.format("=")).fetchall() == [(3,)]
        with pytest.raises(duckdb.Error):
            reader.sql(days.format(">")).fetchall()


@pytest.mark.parametrize("whose", ["the machine's", "the file system's"])
def test_a_clock_that_was_ahead_hides_no_damage(
    lake: Lake, whose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(lake)
    ahead = time.time_ns() + 3_600 * 10**9
    with monkeypatch.context() as patch:
        patch.setattr(catalog, "real_ns", lambda: ahead)
        catalog.publish(lake)
    if whose == "the file system's":
        (marker,) = lake.root.with_name("cache").glob("whole")
        os.utime(marker, ns=(ahead, ahead))
    path = Path(lake.files(SOURCE_CHAIN)[0])
    path.write_bytes(bytes(path.stat().st_size))
    with catalog.connect(lake) as connection, pytest.raises(duckdb.Error, match="is not a Parquet file"):
        connection.sql("FROM source_chain").fetchall()


def test_an_older_file_shows_null_in_a_newer_column(lake: Lake) -> None:
    older = replace(
        OPTION_CHAIN, version=0, columns=tuple(c for c in OPTION_CHAIN.columns if c.name != "vega")
    )
    old = chain(OPTION_CHAIN, snapshot=NOON).drop("vega")
    lake.append(older, old, run_id="run")
    with catalog.connect(lake) as connection:
        assert connection.execute("SELECT count(*), count(vega) FROM option_chain").fetchone() == (3, 0)
    new = chain(OPTION_CHAIN, snapshot=NOON + 1).with_columns(vega=pl.lit(1.5))
    lake.append(OPTION_CHAIN, new, run_id="run")
    with catalog.connect(lake) as connection:
        assert connection.execute(
            "SELECT snapshot_ts_ns, max(vega), max(trade_date) FROM option_chain GROUP BY 1 ORDER BY 1"
        ).fetchall() == [(NOON, None, DAY), (NOON + 1, 1.5, DAY)]
        assert [row[0] for row in connection.execute("DESCRIBE option_chain").fetchall()][
            : len(OPTION_CHAIN.columns)
        ] == OPTION_CHAIN.schema.names()


def test_a_trade_date_in_the_query_opens_only_its_files(lake: Lake) -> None:
    for i in range(5):
        rows = chain(SOURCE_CHAIN, snapshot=NOON + i, day=DAY + timedelta(days=i))
        lake.append(SOURCE_CHAIN, rows, run_id="run")
    with catalog.connect(lake) as connection:
        plan = connection.execute(
            "EXPLAIN SELECT * FROM source_chain WHERE trade_date = '2025-07-03'"
        ).fetchone()
    assert plan is not None
    assert "Scanning Files: 1/5" in plan[1]


def test_a_path_with_a_quote_is_no_trouble(tmp_path: Path) -> None:
    root = tmp_path / "d'arc" / "live"
    lake = Workspace(root).lake
    lake.append(SOURCE_CHAIN, chain(SOURCE_CHAIN, snapshot=NOON), run_id="run")
    with catalog.connect(Workspace(root).lake, guarded=True) as connection:
        assert count(connection) == 3
    with duckdb.connect(catalog.publish(Workspace(root).lake), read_only=True) as connection:
        assert count(connection) == 3


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(*) FROM source_chain",
        "FROM option_chain_latest",
        "WITH a AS (SELECT 1 AS x) SELECT * FROM a",
        "DESCRIBE decisions",
        "SUMMARIZE fetches",
        "SHOW TABLES",
    ],
)
def test_guarded_sql_may_read_the_views(lake: Lake, sql: str) -> None:
    fill(lake)
    with catalog.connect(lake, guarded=True) as connection:
        assert catalog.query(connection, sql).fetchall()


@pytest.mark.parametrize(
    "sql",
    [
        "COPY (SELECT 1) TO '{file}' (FORMAT parquet, USE_TMP_FILE false)",
        "COPY (SELECT 1) TO '{folder}/out.csv'",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO '{file}' (FORMAT parquet, USE_TMP_FILE false)",
        "ATTACH '{folder}/other.duckdb'",
        "EXPORT DATABASE '{folder}/export'",
        "CREATE TABLE mine (x INTEGER)",
        "SET enable_external_access = true",
        "PRAGMA enable_external_access = true",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SELECT 1; DROP VIEW fetches",
        "",
        "SELECT * FROM read_text('{folder}/secret.txt')",
        "SELECT * FROM '{folder}/secret.csv'",
        "SELECT * FROM glob('{folder}/*')",
        "SELECT * FROM lake",
    ],
)
def test_guarded_sql_neither_writes_nor_reads_any_other_file(lake: Lake, tmp_path: Path, sql: str) -> None:
    fill(lake)
    (file,) = lake.files(SOURCE_CHAIN)
    for name in ("secret.txt", "secret.csv"):
        (tmp_path / name).write_text("password\nhunter2\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with (
        catalog.connect(lake, guarded=True) as connection,
        pytest.raises((LakeError, duckdb.Error)),
    ):
        catalog.query(connection, sql.format(file=file, folder=tmp_path)).fetchall()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
