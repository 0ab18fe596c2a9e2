"""The raw archive: exact bytes back, the newest answer of a question, damage noticed."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nq_pipeline.configuration import load
from nq_pipeline.errors import LakeError, StoreError
from nq_pipeline.lake.archive import RawArchive
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.archive_samples import BODY, raw_entry
from nq_pipeline_tests.testing.lake_samples import DAY, NOON
from nq_pipeline_tests.testing.s3 import Bucket, Fault, FaultProxy


@pytest.fixture
def archive(tmp_path: Path) -> RawArchive:
    return Workspace(tmp_path).archive


@pytest.fixture(params=["folder", "object store"])
def any_archive(request: pytest.FixtureRequest, tmp_path: Path) -> RawArchive:
    url = request.getfixturevalue("bucket").url if request.param == "object store" else ""
    return Workspace.of(load(data_dir=tmp_path, **({"lake_url": url} if url else {}))).archive


@given(body=st.binary(max_size=2_000))
def test_the_exact_bytes_come_back(tmp_path_factory: pytest.TempPathFactory, body: bytes) -> None:
    archive = Workspace(tmp_path_factory.mktemp("data")).archive
    stored = archive.put(raw_entry(body), body)
    assert archive.get(stored) == body
    assert archive.entry("barchart", DAY, "r1") == stored


def test_the_newest_answer_of_a_question_is_found(any_archive: RawArchive) -> None:
    archive = any_archive
    assert archive.find("barchart", "d" * 64) is None
    archive.put(raw_entry(), BODY)
    newer = archive.put(raw_entry(request_id="r2", snapshot_ts=NOON + 1), BODY)
    archive.put(raw_entry(request_id="r3", digest="e" * 64), BODY)
    assert archive.find("barchart", "d" * 64) == newer
    assert archive.find("polygon", "d" * 64) is None


def test_an_expired_answer_stays_archived(any_archive: RawArchive) -> None:
    archive = any_archive
    stored = archive.put(raw_entry(), BODY)
    archive.expire(stored)
    found = archive.find("barchart", "d" * 64)
    assert found == replace(stored, expires=0)
    assert archive.get(found) == BODY


def test_a_damaged_body_is_one_clear_error(archive: RawArchive, tmp_path: Path) -> None:
    stored = archive.put(raw_entry(), BODY)
    (path,) = tmp_path.rglob("*.zst")
    archive.put(raw_entry(request_id="r1", sha256="0" * 64), b"another answer")
    with pytest.raises(LakeError, match="is not what was stored"):
        archive.get(stored)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(LakeError, match="cannot be read"):
        archive.get(stored)
    path.unlink()
    with pytest.raises(LakeError, match="cannot be read"):
        archive.get(stored)


def test_a_run_s_record_is_found_by_name_and_as_the_latest(archive: RawArchive, tmp_path: Path) -> None:
    archive.write_run("run-1", {"asked": 1})
    os.utime(tmp_path / "raw" / "runs" / "run-1.json", (0, 0))
    archive.write_run("run-2", {"asked": 2})
    assert archive.read_run("run-1") == {"asked": 1}
    assert archive.read_run("latest") == {"asked": 2}
    with pytest.raises(LakeError, match="no run 'run-9'"):
        archive.read_run("run-9")
    with pytest.raises(LakeError, match="no run"):
        archive.read_run("../runs/../../outside")


def test_a_note_that_a_power_cut_left_torn_costs_only_itself(archive: RawArchive, tmp_path: Path) -> None:
    for run_id in ("first", "torn", "last"):
        archive.write_run(run_id, {"request": {"trade_date": DAY.isoformat()}})
        archive.note_removed(f"runs/{run_id}.json")
        archive.objects.delete([f"runs/{run_id}.json"])
        if run_id == "torn":
            notes = tmp_path / "raw" / "removed.jsonl"
            notes.write_bytes(notes.read_bytes()[:-20])
    for run_id in ("first", "last"):
        with pytest.raises(LakeError, match=f"the answers of run {run_id}, .* were removed"):
            archive.read_run(run_id)
    with pytest.raises(LakeError, match="no run 'torn'"):
        archive.read_run("torn")


def test_an_unfinished_run_is_claimed_by_one_and_only_when_it_died(any_archive: RawArchive) -> None:
    record = {"request": {"trade_date": DAY.isoformat()}, "sources": {}}
    with any_archive.begin_run("finished", record) as update:
        update({**record, "more": 1})
        with any_archive.claim_unfinished() as runs:
            assert runs == [], "it still runs"
        assert any_archive.read_unfinished("finished")["more"] == 1
    with pytest.raises(RuntimeError), any_archive.begin_run("died", record):
        raise RuntimeError
    assert any_archive.unfinished_dates() == {DAY}
    with any_archive.claim_unfinished() as runs, any_archive.claim_unfinished() as others:
        assert (runs, others) == (["died"], [])
    any_archive.forget_unfinished("died")
    assert any_archive.unfinished_dates() == set()


def test_another_machine_s_unfinished_run_is_not_claimed(tmp_path: Path, bucket: Bucket) -> None:
    here, there = (Workspace.of(load(data_dir=tmp_path / name, lake_url=bucket.url)).archive for name in "ab")
    with pytest.raises(RuntimeError), there.begin_run("there", {"request": {}}):
        raise RuntimeError
    with here.claim_unfinished() as runs:
        assert runs == []
    with there.claim_unfinished() as runs:
        assert runs == ["there"]


def test_machines_with_one_store_see_one_archive(tmp_path: Path, bucket: Bucket) -> None:
    here, there = (Workspace.of(load(data_dir=tmp_path / name, lake_url=bucket.url)).archive for name in "ab")
    stored = here.put(raw_entry(), BODY)
    here.write_run("run-1", {"request": {"trade_date": DAY.isoformat()}})
    assert there.get(stored) == BODY and there.find("barchart", "d" * 64) == stored
    assert there.read_run("latest") == there.read_run("run-1")
    assert there.run_answers("run", "barchart", DAY) == {"d" * 64: "r1"}
    names = {name.removeprefix("lakes/nq/sandbox/raw/") for name in bucket.names()}
    day = f"barchart/trade_date={DAY}"
    assert names == {f"{day}/r1.zst", f"{day}/r1.json", f"barchart/newest/{'d' * 64}.json", "runs/run-1.json"}
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_answer_is_sent_when_the_store_is_back(
    tmp_path: Path, flaky_bucket: Bucket, s3_faults: FaultProxy
) -> None:
    archive = Workspace.of(load(data_dir=tmp_path, lake_url=flaky_bucket.url, store_timeout_s=2)).archive
    with archive.begin_run("run", {"request": {"trade_date": DAY.isoformat()}}):
        s3_faults.show(Fault(status=503, times=1000))
        archive.put(raw_entry(), BODY)
        s3_faults.clear()
        assert archive.run_answers("run", "barchart", DAY) == {}
    sent = archive.entry("barchart", DAY, "r1")
    assert sent and archive.get(sent) == BODY and sent.expires == 0
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_store_that_is_away_is_not_a_missing_answer(
    tmp_path: Path, flaky_bucket: Bucket, s3_faults: FaultProxy
) -> None:
    archive = Workspace.of(load(data_dir=tmp_path, lake_url=flaky_bucket.url, store_timeout_s=1)).archive
    archive.put(raw_entry(), BODY)
    s3_faults.show(Fault(status=503, times=1000))
    for operation in (lambda: archive.find("barchart", "d" * 64), lambda: archive.get(raw_entry())):
        with pytest.raises(StoreError):
            operation()
