"""Locks that tell who is alive."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from nq_pipeline import files
from nq_pipeline.capture.log import locks


def test_a_run_is_alive_once_it_is_claimed(tmp_path: Path) -> None:
    assert not locks.is_run_alive(tmp_path, "one")
    locks.claim_run(tmp_path, "one")
    assert locks.is_run_alive(tmp_path, "one") and not locks.is_run_alive(tmp_path, "another")


def test_lock_files_of_dead_runs_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".run-dead").touch()
    locks.claim_run(tmp_path, "one")
    locks.claim_run(tmp_path, "another")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".run-another", ".run-one"]


def test_a_claim_survives_the_removal_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / ".run-one"
    with files.locked(path):  # as another claim does that takes it for a left-over one
        claiming = threading.Thread(target=locks.claim_run, args=(tmp_path, "one"))
        claiming.start()
        time.sleep(0.3)  # by now it waits for the lock
        path.unlink()
    claiming.join()
    assert locks.is_run_alive(tmp_path, "one")
