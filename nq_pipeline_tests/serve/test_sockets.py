"""The WebSockets, read by a client that was not written for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import duckdb
import polars as pl
import pytest
from websockets.sync.client import connect

from nq_pipeline.configuration import build_settings
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import DECISIONS, GAPS, INSTANT, conform
from nq_pipeline.serve import sockets
from nq_pipeline.stream.batch import Batch
from nq_pipeline.stream.replay import ReplayCursor
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.feeds import Feed, market, publisher
from nq_pipeline_tests.testing.lake_samples import NOON, decision
from nq_pipeline_tests.testing.served import messages, serve
from nq_pipeline_tests.testing.stream_samples import gap_row

KEY = ("ts_event", "instrument_id", "sequence", "ordinal")
LATE = ReplayCursor(10**30)
SPAN = "from=2025-06-10T16:59:00Z&to=2025-06-10T17:30:00Z"


def keys(found: list[dict[str, Any]], kind: str = "trades") -> list[tuple[Any, ...]]:
    return [tuple(row[k] for k in KEY) for each in found if each["type"] == kind for row in each["rows"]]


def until_rows(client: Iterator[dict[str, Any]], number: int) -> list[dict[str, Any]]:
    """The next messages with some number of rows, without `status`."""
    found: list[dict[str, Any]] = []
    while sum(len(each["rows"]) for each in found) < number:
        each = next(client)
        found += [each] if each["type"] != "status" else []
    return found


def test_a_stream_begins_with_its_status(address: str) -> None:
    first = next(messages(f"{address}/stream"))
    assert first["type"] == "status" and first["cursor"]
    (row,) = first["rows"]
    assert row["environment"] == "sandbox" and row["failure"] is None


def test_a_client_follows_a_capture_and_returns(tmp_path: Path) -> None:
    records = market(60)
    Workspace(tmp_path / "sandbox").lake.root.mkdir(parents=True)
    with Feed(tmp_path / "sandbox" / "capture") as feed:
        feed.session(records[:10])
        with serve(build_settings(data_dir=tmp_path)) as address:
            client = messages(f"{address}/stream?types=trades")
            next(client)
            feed.send(records[10:30])
            found = until_rows(client, 20)
            client.close()  # type: ignore[attr-defined]
            feed.send(records[30:])
            back = messages(f"{address}/stream?types=trades&cursor={found[-1]['cursor']}")
            found += until_rows(back, len(records) - 30)
            back.close()  # type: ignore[attr-defined]
    assert len(set(keys(found))) == len(keys(found)) == len(records) - 10
    assert found[0]["rows"][0].keys() >= {"raw_symbol", "side", "price", "size", "contract_key"}


@pytest.mark.parametrize("query", ["cursor=x", "types=everything", "types="])
def test_a_stream_refuses_what_it_does_not_know(address: str, query: str) -> None:
    (said,) = messages(f"{address}/stream?{query}")
    assert said["type"] == "status" and said["rows"][0]["closed"]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Lake]]:
    """A server of a lake with a recorded session of quotes and trades, and a gap."""
    folder = tmp_path_factory.mktemp("recorded")
    root = folder / "sandbox" / "capture"
    with Feed(root) as feed:
        feed.session(market(400, rtype=1))
    publisher(root).publish()
    lake = Workspace(root.parent).lake
    lake.append(GAPS, conform(GAPS, pl.DataFrame([gap_row(1)])), run_id="run")
    won = pl.DataFrame([decision(decided_at=NOON + number, snapshot=NOON + number) for number in range(2)])
    instants = pl.col("decided_at", "snapshot_ts").cast(INSTANT)
    lake.append(DECISIONS, won.with_columns(instants), run_id="run")
    with serve(build_settings(data_dir=folder)) as address:
        yield address, lake


def test_a_replay_sends_the_session_in_order_of_time(recorded: tuple[str, Lake]) -> None:
    address, _ = recorded
    records = market(400, rtype=1)
    *found, last = messages(f"{address}/replay?{SPAN}&speed=0")
    assert last["rows"] == [{"closed": "the span has ended"}]
    for kind in ("trades", "quotes"):
        assert len(set(keys(found, kind))) == len(keys(found, kind)) == len(records)
        assert [key[0] for key in keys(found, kind)] == sorted(key[0] for key in keys(found, kind))
    begins = [each["rows"][0]["ts_event"][:21] for each in found]  # tenths of a second
    assert begins == sorted(begins)
    assert list(messages(f"{address}/replay?{SPAN}&speed=0"))[:-1] == found


def test_a_replay_goes_on_from_any_cursor(recorded: tuple[str, Lake]) -> None:
    address, _ = recorded
    whole = list(messages(f"{address}/replay?{SPAN}&speed=0"))
    for number in (0, 1, 2, len(whole) // 2, len(whole) - 2, len(whole) - 1):
        rest = list(messages(f"{address}/replay?{SPAN}&speed=0&cursor={whole[number]['cursor']}"))
        assert rest == [*whole[number + 1 :], *([whole[-1]] if number == len(whole) - 1 else [])]


def test_a_replay_sends_gaps_and_chosen_types(recorded: tuple[str, Lake]) -> None:
    address, _ = recorded
    span = "from=2025-07-01T00:00:00Z&to=2025-07-02T00:00:00Z"
    gap, _ = messages(f"{address}/replay?{span}&speed=0&types=gaps")
    assert gap["type"] == "gaps" and gap["rows"][0]["gap_id"] == "gap-1"
    snapshots, _ = messages(f"{address}/replay?{span}&speed=0&types=snapshot")
    ends = [row["snapshot_ts"][-11:] for row in snapshots["rows"]]
    assert ends == [".000000000Z", ".000000001Z"]
    found = list(messages(f"{address}/replay?{SPAN}&speed=0&types=trades"))
    assert {each["type"] for each in found[:-1]} == {"trades"}


def test_a_replay_keeps_its_speed(recorded: tuple[str, Lake]) -> None:
    address, _ = recorded
    span = "from=2025-06-10T17:00:00Z&to=2025-06-10T17:00:00.400Z"
    began = monotonic()
    assert keys(list(messages(f"{address}/replay?{span}&speed=0.5&types=trades")))
    assert 0.75 <= monotonic() - began < 10


def wait_forever(connect: Callable[[], duckdb.DuckDBPyConnection], *_: object) -> Iterator[tuple[int, Batch]]:
    """A replay whose query never ends."""
    connect().sql("SELECT count(*) FROM range(1000000000) a, range(1000000000) b").fetchall()
    yield from ()


@pytest.mark.parametrize("how", ["between messages", "in a query"])
def test_replays_are_bounded_and_end_when_their_client_leaves(
    recorded: tuple[str, Lake], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(sockets, "REPLAYS_AT_ONCE", 1)
    address = f"{recorded[0]}/replay?{SPAN}&speed="
    with monkeypatch.context() as patched:
        if how == "in a query":
            patched.setattr(sockets, "replay", wait_forever)
        with connect(f"ws://{address}0.000001"):
            sleep(0.3)
            (said,) = messages(f"{address}0")
            assert "try again" in said["rows"][0]["closed"]
    give_up = monotonic() + 10
    while len(list(messages(f"{address}0"))) < 3:
        assert monotonic() < give_up


@pytest.mark.parametrize(
    "query",
    [
        "",
        "from=2025-06-10T17:00:00Z",
        f"{SPAN}&speed=-1",
        f"{SPAN}&speed=nan",
        f"{SPAN}&cursor=x",
        f"{SPAN}&cursor={LATE}",
    ],
)
def test_a_replay_refuses_what_it_cannot_do(recorded: tuple[str, Lake], query: str) -> None:
    (said,) = messages(f"{recorded[0]}/replay?{query}")
    assert said["rows"][0]["closed"]


def test_a_replay_of_a_damaged_table_says_so(tmp_path: Path) -> None:
    lake = Workspace(tmp_path / "sandbox").lake
    lake.append(GAPS, conform(GAPS, pl.DataFrame([gap_row(1)])), run_id="run")
    for file in lake.root.glob("gaps/**/*.parquet"):
        file.write_bytes(b"damaged")
    with serve(build_settings(data_dir=tmp_path)) as address:
        (said,) = messages(f"{address}/replay?{SPAN}&types=gaps")
    assert "gaps" in said["rows"][0]["closed"]
