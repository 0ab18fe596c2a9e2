"""A disk that is full or read-only: one sentence that names it, and what only reads still works."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from pydantic import SecretStr

from nq_pipeline.chains.request import build_request
from nq_pipeline.chains.snapshot import take_snapshot
from nq_pipeline.cli import main
from nq_pipeline.configuration import build_settings
from nq_pipeline.disk import explain_disk_error, reserve_room
from nq_pipeline.errors import LakeError, NoRoom, SandboxError
from nq_pipeline.lake.tables import FETCHES, OPTION_CHAIN
from nq_pipeline.sources.base import ChainAnswer, ChainRequest
from nq_pipeline.sources.databento.client import HistoricalClient
from nq_pipeline.sources.databento.query import Query
from nq_pipeline.spend.ledger import open_ledger
from nq_pipeline.transport.policy import Policy
from nq_pipeline.transport.vendor_session import VendorSession
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing import dbn_samples
from nq_pipeline_tests.testing.archive_samples import archive_answer
from nq_pipeline_tests.testing.disk_limits import mount, small_disk
from nq_pipeline_tests.testing.fake_vendors import FakeVendor
from nq_pipeline_tests.testing.http_server import Answer, serve
from nq_pipeline_tests.testing.ledger_machine import charge
from nq_pipeline_tests.testing.report_lake import price_and_store, store_snapshot

FILLING = "filling"
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small disk of its own, with a lake, a ledger that somebody left open, and old answers."""
    with small_disk(tmp_path_factory.mktemp("disk"), "24m") as folder:
        settings, snapshot = store_snapshot(folder)
        price_and_store(settings, snapshot)
        open_ledger(settings).reserve(charge("4"))
        for number in range(40):
            archive_answer(settings, f"{number:016x}")
        yield folder


@pytest.fixture
def full(disk: Path) -> Iterator[Path]:
    """The disk without a byte left."""
    with (disk / FILLING).open("ab", buffering=0) as file:
        for size in (65_536, 4_096, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue
    assert shutil.disk_usage(disk).free == 0
    yield disk
    (disk / FILLING).unlink(missing_ok=True)


@pytest.fixture
def read_only(disk: Path, tmp_path: Path) -> Iterator[Path]:
    """The same disk where nothing can be written."""
    mount("--bind", str(disk), str(tmp_path))
    try:
        mount("-o", "remount,bind,ro", str(tmp_path))
        yield tmp_path
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True, timeout=60)


def nq(disk: Path, *words: str, **variables: str) -> Result:
    given = {"NQ_DATA_DIR": str(disk), "NQ_NOW": "2025-06-10T15:00:00Z", **variables}
    return CliRunner().invoke(main, list(words), env=given)


def says_full(done: Result, disk: Path) -> None:
    last = done.output.splitlines()[-1]
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit), done.output
    assert last.startswith(f"nq: the disk with {disk}") and "is full, 0.0 MiB are free" in last, done.output


def test_a_run_on_a_full_disk_ends_in_one_sentence_that_names_it(full: Path) -> None:
    with serve(lambda asked: Answer(b'{"status":"OK","results":[]}')) as server:
        vendor = {"NQ_POLYGON_URL": server.url, "POLYGON_API_KEY": "a-key-of-polygon"}
        done = nq(full, "run", "--source", "polygon", NQ_ENVIRONMENT="live", **vendor)
    says_full(done, full)


def test_a_conversion_names_the_full_disk_of_its_output(full: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.dbn"
    source.write_bytes(dbn_samples.head("trades") + dbn_samples.trades(5).tobytes())
    says_full(nq(tmp_path, "convert", str(source), "-o", str(full / "out.parquet")), full)


def test_a_capture_names_the_full_disk(full: Path) -> None:
    gateway = {"NQ_DATABENTO_GATEWAY": "127.0.0.1:9", "NQ_DATABENTO_URL": "http://127.0.0.1:9"}
    clock = {
        "NQ_NOW": "",
        "NQ_CAPTURE_WINDOW": "always",
        "DATABENTO_API_KEY": "a-key",
        "NQ_ENVIRONMENT": "live",
    }
    says_full(nq(full, "capture", "--minutes", "0.001", **gateway, **clock), full)


def test_stand_ins_that_cannot_start_name_the_full_disk(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nq_pipeline import runtime

    def start(*_: Any, **__: Any) -> Any:
        raise SandboxError("The stand-ins could not be started: no answer")

    monkeypatch.setattr(runtime, "_started", start)
    says_full(nq(full, "doctor"), full)


def sums(done: Result) -> list[str]:
    """The sums of money in a statement that do not move with the clock."""
    assert done.exit_code == 0, done.output
    return [line for line in done.stdout.splitlines() if "_usd" in line and "prorated" not in line]


def test_a_budget_is_shown_on_a_full_disk(disk: Path, request: pytest.FixtureRequest) -> None:
    before = sums(nq(disk, "budget", "--json"))
    request.getfixturevalue("full")
    assert before == sums(nq(disk, "budget", "--json")) and any('"4' in line for line in before)


def test_a_budget_and_a_report_only_read(disk: Path, read_only: Path) -> None:
    assert sums(nq(disk, "budget", "--json")) == sums(nq(read_only, "budget", "--json"))
    page = nq(read_only, "report", "--no-open")
    assert page.exit_code == 0, page.output
    path = Path(page.stdout.partition("Report: ")[2].partition(";")[0].strip())
    assert path.is_file() and read_only not in path.parents


def test_a_read_only_ledger_counts_its_write_ahead_log(disk: Path, request: pytest.FixtureRequest) -> None:
    ledger = disk / "sandbox" / "ledger.sqlite"
    with closing(sqlite3.connect(ledger)) as still_open:  # so that the log is not taken over yet
        still_open.execute("SELECT count(*) FROM nq_spend_lines").fetchone()
        open_ledger(build_settings(data_dir=disk)).reserve(charge("3"))
        assert ledger.with_name("ledger.sqlite-wal").stat().st_size
        read_only = request.getfixturevalue("read_only")
        assert any('"7' in line for line in sums(nq(read_only, "budget", "--json")))


def test_retention_works_on_a_full_disk(full: Path) -> None:
    cache = full / "sandbox" / "cache" / "polygon-http.sqlite"
    cache.parent.mkdir(exist_ok=True)
    kept = sorted((full / "sandbox" / "raw" / "barchart").rglob("*.zst"))
    later = datetime(2026, 1, 5, tzinfo=UTC).isoformat()
    done = nq(full, "retention", NQ_NOW=later)
    assert done.exit_code == 0, done.output
    assert len(kept) == 40 and not any(path.exists() for path in kept)
    assert Decimal(shutil.disk_usage(full).free) > 0


def test_an_old_http_cache_is_removed_on_a_full_disk(disk: Path, request: pytest.FixtureRequest) -> None:
    cache = disk / "sandbox" / "cache" / "polygon-http.sqlite"
    cache.write_bytes(b"answers")
    request.getfixturevalue("full")
    assert nq(disk, "retention").exit_code == 0
    assert not cache.exists() and shutil.disk_usage(disk).free > 0


def test_room_that_is_reserved_takes_what_arrives(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "8m") as folder, reserve_room(folder, 6 * MIB) as room:
        with pytest.raises(NoRoom, match=r"7\.0 MiB was not requested"), reserve_room(folder, 7 * MIB):
            pass
        (folder / "another").write_bytes(bytes(MIB))
        with (folder / "answer").open("wb") as answer:
            for _ in range(6):
                room.give_back(MIB)
                answer.write(bytes(MIB))
    assert not list(tmp_path.rglob("tmp*"))


def test_where_nothing_can_be_reserved_the_free_space_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with small_disk(tmp_path / "small", "8m") as folder:
        with reserve_room(folder, 6 * MIB):
            pass
        with pytest.raises(NoRoom, match=r"9\.0 MiB was not requested"), reserve_room(folder, 9 * MIB):
            pass


def test_a_paid_answer_fills_the_room_that_was_reserved_for_it(tmp_path: Path) -> None:
    settings, body = build_settings(data_dir=tmp_path / "data"), bytes(5 * MIB)
    query = Query("GLBX.MDP3", "trades", ("NQ.OPT",), 1, 2)
    priced = replace(
        charge("1"), vendor="databento", dataset=query.dataset, schema=query.schema, billable_bytes=len(body)
    )
    with (
        serve(lambda asked: Answer(body)) as server,
        small_disk(tmp_path / "small", "7m") as folder,  # not for both the room and the answer
        open_ledger(settings).spending(priced) as spending,
    ):
        client = HistoricalClient(SecretStr("a-key"), server.url, Policy(), lambda: 60.0)
        client.download_to(query, spending, folder / "part", 1)
        assert (folder / "part").stat().st_size == len(body)


class Answering(FakeVendor):
    """A vendor whose chain comes with an answer that is to be archived."""

    def ask(self, request: ChainRequest, session: VendorSession) -> ChainAnswer:
        session.call("chain", {}, lambda: os.urandom(100_000))
        return super().ask(request, session)


def test_an_answer_that_cannot_be_archived_is_used_and_reported(tmp_path: Path) -> None:
    settings = build_settings(
        data_dir=tmp_path, now="2025-06-10T15:00:00Z", sources=("barchart",), horizon_days=0
    )
    with small_disk(tmp_path / "sandbox" / "raw" / "barchart", "32k") as folder:
        with pytest.raises(LakeError, match="barchart: an answer could not be archived") as error:
            take_snapshot(settings, build_request(settings), opener=lambda name, _: Answering(name))
        assert "is full" in str(explain_disk_error(error.value, folder))
    lake = Workspace.of(settings).lake
    assert lake.scan(OPTION_CHAIN).collect().height > 0
    fetch = lake.scan(FETCHES).collect().row(0, named=True)
    assert (fetch["outcome"], fetch["raw_sha256"]) == ("ok", None)
    assert "is not in the archive" in fetch["detail"]
