"""The raw archive: exact bytes back, the newest answer of a question, damage noticed."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nq_pipeline.errors import LakeError
from nq_pipeline.lake.archive import RawArchive
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.archive_samples import BODY, raw_entry
from nq_pipeline_tests.testing.lake_samples import DAY, NOON


@pytest.fixture
def archive(tmp_path: Path) -> RawArchive:
    return Workspace(tmp_path).archive


@settings(max_examples=25)
@given(body=st.binary(max_size=2_000))
def test_the_exact_bytes_come_back(tmp_path_factory: pytest.TempPathFactory, body: bytes) -> None:
    archive = Workspace(tmp_path_factory.mktemp("data")).archive
    stored = archive.put(raw_entry(body), body)
    assert archive.get(stored) == body
    assert archive.entry("barchart", DAY, "r1") == stored


def test_the_newest_answer_of_a_question_is_found(archive: RawArchive) -> None:
    assert archive.find("barchart", "d" * 64) is None
    archive.put(raw_entry(), BODY)
    newer = archive.put(raw_entry(request_id="r2", snapshot_ts=NOON + 1), BODY)
    archive.put(raw_entry(request_id="r3", digest="e" * 64), BODY)
    assert archive.find("barchart", "d" * 64) == newer
    assert archive.find("polygon", "d" * 64) is None


def test_an_expired_answer_stays_archived(archive: RawArchive) -> None:
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
