"""A disk that refuses is loud, for good; one capture at a time."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nq_pipeline.capture.log.locks import lock_pid
from nq_pipeline.capture.log.reader import tail
from nq_pipeline.capture.log.recovery import recover
from nq_pipeline.capture.log.writer import CaptureLog
from nq_pipeline.errors import CaptureBusy, LogFailed
from nq_pipeline_tests.testing.capture_writer import DATASET
from nq_pipeline_tests.testing.dbn_streams import Clock, begun, one_frame, trades

Start = Callable[..., subprocess.Popen[str]]


def refused(process: subprocess.Popen[str], reason: str) -> int:
    """The synced trades; after the first refusal every later call has to say the same."""
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    count, *refusals = output.splitlines()
    assert len(refusals) == 5
    assert len(set(refusals)) == 1
    assert reason in refusals[0]
    assert "must be replayed" in refusals[0]
    return int(count)


def test_a_limit_of_the_file_size_fails_loudly(root: Path, writer: Start) -> None:
    synced = refused(writer("fill", 50_000), "(File too large); raise the limit of the file size")
    assert synced == 1_000  # 48,000 bytes and a head
    recover(root / DATASET)
    found = sum(len(b.frame) for b in tail(root / DATASET))
    assert synced <= found < synced + 100


def test_a_full_disk_fails_loudly(root: Path, writer: Start, tmp_path: Path) -> None:
    root.mkdir(parents=True)
    mount = f'mount -t tmpfs -o size=128k none "{root}" && exec "$@"'
    if (
        shutil.which("unshare") is None
        or subprocess.run(
            ["unshare", "--mount", "sh", "-c", mount, "sh", "true"], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("a file system of a few pages can only be mounted by root")
    process = writer("fill", 0, before=("unshare", "--mount", "sh", "-c", mount, "sh"))
    assert refused(process, "(No space left on device); free some space") >= 1_000


def test_a_read_only_folder_fails_loudly(root: Path, writer: Start) -> None:
    folder = root / DATASET
    folder.mkdir(parents=True)
    folder.chmod(0o555)
    as_owner: tuple[str, ...] = ()
    if os.getuid() == 0:  # permissions mean nothing to root, unless it gives up the right to ignore them
        as_owner = ("setpriv", "--inh-caps=-all", "--bounding-set=-dac_override")
        if shutil.which("setpriv") is None:
            pytest.skip("root ignores permissions here")
    assert refused(writer("fill", 0, before=as_owner), "(Permission denied); make the folder writable") == 0


def test_a_segment_deleted_under_the_capture_fails_loudly(root: Path) -> None:
    log = CaptureLog(root, DATASET, clock=Clock(), sync_every_s=0.01)
    framer = begun()
    log.append(one_frame(trades(0, 1), framer))
    log.sync()
    shutil.rmtree(root / DATASET)
    log.append(one_frame(trades(1, 1), framer))
    deadline = time.monotonic() + 60
    with pytest.raises(LogFailed, match="the open segment was deleted"):
        while time.monotonic() < deadline:
            log.check()
            time.sleep(0.005)
    for call in (lambda: log.append(one_frame(trades(2, 1), framer)), log.sync, log.close):
        with pytest.raises(LogFailed, match="the open segment was deleted"):
            call()
    assert lock_pid(root) is None


def test_a_second_capture_is_refused(root: Path, writer: Start) -> None:
    first = writer("hold")
    assert first.stdout is not None
    assert first.stdout.readline() == "ready\n"
    assert lock_pid(root) == first.pid
    with pytest.raises(CaptureBusy, match=f"process {first.pid}"):
        CaptureLog(root, DATASET, clock=Clock())
    first.kill()
    first.wait()
    assert lock_pid(root) is None
    with CaptureLog(root, DATASET, clock=Clock()):
        assert lock_pid(root) == os.getpid()
    assert lock_pid(root) is None
