"""Runs whose archive machines share: a live one is left alone, a dead one is finished by one of them."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from nq_pipeline.chains.replay import finish_killed_runs
from nq_pipeline.chains.run_record import hold_run, run_claims
from nq_pipeline.configuration import build_settings, load
from nq_pipeline.errors import LeaseHeld, StoreError
from nq_pipeline.leases.leases import Leases
from nq_pipeline.retention import sweep
from nq_pipeline.settings import Settings
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.postgres import PostgresServer
from nq_pipeline_tests.testing.s3 import Bucket, Fault, FaultProxy
from nq_pipeline_tests.testing.vendors import NOW, Desk, Vendor

RECORD: dict[str, Any] = {"request": {"trade_date": date(2025, 6, 10).isoformat()}, "sources": {}}


@pytest.fixture
def machines(postgres: PostgresServer, bucket: Bucket, tmp_path: Path) -> tuple[Settings, Settings]:
    """Two machines with one object store and one ledger."""
    url = postgres.new_database()
    a, b = (load(data_dir=tmp_path / n, lake_url=bucket.url, ledger_url=url) for n in "ab")
    return a, b


def claimed(settings: Settings) -> list[str]:
    archive = Workspace.of(settings).archive
    with archive.claim_unfinished(run_claims(settings, archive)) as runs:
        return runs


def test_a_run_of_another_machine_is_finished_when_it_is_dead(machines: tuple[Settings, Settings]) -> None:
    a, b = machines
    here, there = Workspace.of(a).archive, Workspace.of(b).archive
    with pytest.raises(KeyboardInterrupt), hold_run(a, "r1", here), here.begin_run("r1", RECORD):
        assert claimed(b) == []
        raise KeyboardInterrupt
    with there.claim_unfinished(run_claims(b, there)) as runs:
        assert runs == ["r1"]
        assert claimed(a) == []
    assert claimed(a) == ["r1"]


def test_answers_that_a_store_does_not_take_become_rows(
    tmp_path: Path, flaky_bucket: Bucket, s3_faults: FaultProxy
) -> None:
    keys = {f"store_{k.lower().removeprefix('aws_')}": v for k, v in flaky_bucket.environment.items()}
    store: dict[str, object] = {"lake_url": flaky_bucket.url, **keys}
    away = Fault(status=503, times=100_000)
    vendor = Vendor("databento", metered=True, perform=lambda: s3_faults.show(away))
    desk = Desk(tmp_path / "here", vendor, store_timeout_s=2, **store)
    with pytest.raises(StoreError):
        desk.snap()
    s3_faults.clear()

    elsewhere = Desk(tmp_path / "there", vendor, **store)
    archive = Workspace.of(elsewhere.settings).archive
    (begun,) = (name for name in flaky_bucket.names() if "/begun/" in name)
    archive.forget_unfinished(PurePosixPath(begun).stem)  # without an answer, there is nothing to finish

    later = NOW + timedelta(minutes=1)
    (finished,) = finish_killed_runs(desk.settings, before=later, opener=desk.open)
    assert finished.winners == {"databento": 84} and vendor.answered == 1
    assert archive.read_run("latest")["sources"]["databento"]["used"]
    assert not [path for path in (tmp_path / "here").rglob("unsent/**/*") if path.is_file()]
    assert finish_killed_runs(desk.settings, before=later, opener=desk.open) == []


def test_one_machine_knows_its_runs_by_their_locks(tmp_path: Path) -> None:
    settings = build_settings(data_dir=tmp_path)
    archive = Workspace.of(settings).archive
    assert run_claims(settings, archive) is None
    with hold_run(settings, "r1", archive) as held:
        assert held
    assert not Workspace.of(settings).ledger.exists()


def test_machines_take_turns_to_remove_old_files(
    machines: tuple[Settings, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = machines
    now = datetime(2025, 6, 10, tzinfo=UTC)
    monkeypatch.setattr("nq_pipeline.retention.LONGEST_SWEEP_S", 0.2)
    with Leases.of(a).acquire("retention"), pytest.raises(LeaseHeld, match="another machine"):
        sweep(b, now)
    assert sweep(b, now)
