"""Copies of sealed segments: exact, proven by their digest, and never of the segment that grows."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import zstandard

from nq_pipeline.capture.log.copies import copy_after_capture, copy_sealed_segments, has_proven_copy
from nq_pipeline.capture.log.segments import list_segments
from nq_pipeline.configuration import load
from nq_pipeline.errors import StoreError
from nq_pipeline.lake.objects import LocalObjects, Objects
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.feeds import DATASET, Feed, market
from nq_pipeline_tests.testing.s3 import Bucket, Fault, FaultProxy


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    root = tmp_path / "capture"
    with Feed(root, segment_bytes=20_000) as feed:
        feed.session(*np.array_split(market(500), 4))
    assert len(list_segments(root / DATASET)) > 2
    return root


def copies(url: str) -> Objects:
    store = Workspace.of(load(lake_url=url, store_timeout_s=2)).segment_copies
    assert store
    return store


def test_sealed_segments_are_copied_once_and_exactly(capture: Path, bucket: Bucket) -> None:
    segments, store = list_segments(capture / DATASET), copies(bucket.url)
    assert copy_sealed_segments(capture, store) == len(segments)
    assert copy_sealed_segments(capture, store) == 0
    packed = {name.rpartition("/")[2]: bucket.read(name) for name in bucket.names() if name.endswith(".zst")}
    unpack = zstandard.ZstdDecompressor().decompressobj
    copied = {name: unpack().decompress(body) for name, body in packed.items()}
    assert copied == {f"{segment.path.name}.zst": segment.path.read_bytes() for segment in segments}
    assert all(has_proven_copy(segment, store) for segment in segments)
    assert not list(capture.rglob(".*.tmp"))


def test_the_open_segment_is_copied_when_it_is_sealed(capture: Path, tmp_path: Path) -> None:
    store = LocalObjects(tmp_path / "store")
    with Feed(capture) as feed:
        feed.session(market(50, seed=9))
        assert copy_sealed_segments(capture, store) == len(list_segments(capture / DATASET)) - 1
    assert copy_sealed_segments(capture, store) == 1


@pytest.mark.parametrize("tail", [b"\x0e\x00\x01", bytes(200)], ids=["half a record", "zeros"])
def test_a_torn_segment_is_copied_as_the_next_capture_keeps_it(
    capture: Path, tmp_path: Path, tail: bytes
) -> None:
    store, torn = LocalObjects(tmp_path / "store"), list_segments(capture / DATASET)[-1]
    whole = torn.path.read_bytes()
    torn.path.write_bytes(whole + tail)
    copy_sealed_segments(capture, store)
    with Feed(capture) as feed:
        feed.session(market(50, seed=9))
    copy_sealed_segments(capture, store)
    assert torn.path.read_bytes() == whole
    assert all(has_proven_copy(segment, store) for segment in list_segments(capture / DATASET))


def test_a_segment_with_a_damaged_header_is_copied_as_it_is(capture: Path, tmp_path: Path) -> None:
    store, damaged = LocalObjects(tmp_path / "store"), list_segments(capture / DATASET)[-1]
    damaged.path.write_bytes(bytes(100))
    copy_sealed_segments(capture, store)
    assert has_proven_copy(damaged, store) and damaged.path.read_bytes() == bytes(100)


def test_logs_of_two_machines_do_not_mix(tmp_path: Path) -> None:
    store = LocalObjects(tmp_path / "store")
    for host in "ab":
        with Feed(tmp_path / host) as feed:
            feed.session(market(50, seed=ord(host)))
        copy_sealed_segments(tmp_path / host, store)
    assert len(store.folders(DATASET)) == 2


class Forgetful(LocalObjects):
    """A store that keeps only half of every file."""

    def put_file(self, name: str, path: Path) -> None:
        self.put(name, path.read_bytes()[: path.stat().st_size // 2])


def test_a_copy_that_is_not_the_segment_proves_nothing(capture: Path, tmp_path: Path) -> None:
    store = Forgetful(tmp_path / "store")
    with pytest.raises(StoreError, match="is not what was written"):
        copy_sealed_segments(capture, store)
    assert not any(has_proven_copy(segment, store) for segment in list_segments(capture / DATASET))


def test_after_a_capture_a_copy_that_fails_is_a_warning(capture: Path, tmp_path: Path) -> None:
    class Full(LocalObjects):
        def put_file(self, name: str, path: Path) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    said: list[str] = []
    for store in (Full(tmp_path / "full"), Forgetful(tmp_path / "store")):
        copy_after_capture(capture, store, said.append)
    assert ["No space" in said[0], "is not what was written" in said[1]] == [True, True]
    assert all("nq retention" in one for one in said)


def test_a_changed_segment_has_no_proven_copy(capture: Path, tmp_path: Path) -> None:
    store = LocalObjects(tmp_path / "store")
    copy_sealed_segments(capture, store)
    first = list_segments(capture / DATASET)[0]
    first.path.write_bytes(first.path.read_bytes()[:-1])
    assert not has_proven_copy(first, store)


def test_an_upload_that_dies_is_repeated_by_the_next_call(
    capture: Path, tmp_path: Path, flaky_bucket: Bucket, s3_faults: FaultProxy
) -> None:
    large = list_segments(capture / DATASET)[0].path
    with large.open("ab") as file:
        file.write(os.urandom(12_000_000))  # more than one part
    store = copies(flaky_bucket.url)
    s3_faults.show(Fault(dies_mid_upload=True, path="partNumber=2", times=1000))
    with pytest.raises(StoreError):
        copy_sealed_segments(capture, store)
    assert not [name for name in flaky_bucket.names() if name.endswith(".zst")]
    s3_faults.clear()
    assert copy_sealed_segments(capture, store) == len(list_segments(capture / DATASET))
