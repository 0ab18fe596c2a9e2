"""Retention: what is old and proven to be elsewhere goes, everything else stays."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from nq_pipeline.capture.gap_store import GapStore
from nq_pipeline.capture.gaps import Gap, GapState
from nq_pipeline.capture.log.copies import copy_name, copy_sealed_segments
from nq_pipeline.capture.log.segments import list_segments
from nq_pipeline.chains.replay import replay_snapshot
from nq_pipeline.chains.request import build_request
from nq_pipeline.chains.snapshot import take_snapshot
from nq_pipeline.clock import to_ns
from nq_pipeline.configuration import build_settings, load
from nq_pipeline.errors import LakeError
from nq_pipeline.lake.tables import GAPS, TRADES
from nq_pipeline.retention import SweepResult, sweep
from nq_pipeline.settings import Settings
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.archive_samples import archive_answer
from nq_pipeline_tests.testing.dbn_streams import NOON
from nq_pipeline_tests.testing.fake_vendors import FakeVendor
from nq_pipeline_tests.testing.feeds import DATASET, Feed, market, publisher, rows
from nq_pipeline_tests.testing.s3 import Bucket

GAP = Gap("g", "trades", to_ns(NOON), to_ns(NOON) + 10**9, cause="reset")
GIVEN: dict[str, Any] = {"now": NOON, "horizon_days": 0, "far_expirations": False, "sources": ("barchart",)}
LATER = NOON + timedelta(days=200)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return build_settings(data_dir=tmp_path, **GIVEN)


def swept(settings: Settings, what: str, *, now: datetime = LATER, dry_run: bool = False) -> SweepResult:
    return next(part for part in sweep(settings, now, dry_run=dry_run) if part.what == what)


# ── the raw archive ─────────────────────────────────────────────────────────────────────────────


def test_an_old_answer_goes_only_when_its_rows_are_written(settings: Settings) -> None:
    written, unwritten = archive_answer(settings, "a"), archive_answer(settings, "b", written=False)
    part = swept(settings, "raw")
    assert not written.exists() and not written.with_suffix(".json").exists()
    assert unwritten.exists() and unwritten.with_suffix(".json").exists()
    assert part.kept == "1 answers whose run never wrote its rows"


def test_a_young_answer_stays_and_zero_days_keep_for_ever(settings: Settings) -> None:
    path = archive_answer(settings, "a")
    assert swept(settings, "raw", now=NOON + timedelta(days=90)).files == 0
    for_ever = settings.with_values(keep_raw_days=0)
    assert swept(for_ever, "raw").sentence == "raw: kept for ever"
    assert path.exists()


def test_a_dry_run_counts_the_same_and_removes_nothing(settings: Settings) -> None:
    path = archive_answer(settings, "a")
    dry = swept(settings, "raw", dry_run=True)
    assert path.exists()
    assert dry == swept(settings, "raw")
    assert not path.exists()
    assert swept(settings, "raw").files == 0


def test_purchased_history_is_never_touched(settings: Settings) -> None:
    bought = settings.environment_dir / "raw/databento/history/trade_date=2025-06-10.dbn.zst"
    bought.parent.mkdir(parents=True)
    bought.write_bytes(b"paid")
    sweep(settings, LATER + timedelta(days=4000))
    assert bought.read_bytes() == b"paid"


def test_a_replay_of_a_run_that_retention_removed_says_so(settings: Settings) -> None:
    def opener(name: str, _: Settings) -> FakeVendor:
        return FakeVendor(name)

    request = build_request(settings)
    take_snapshot(settings, request, opener=opener)
    replay_snapshot(settings, request.run_id, opener=opener)
    sweep(settings, LATER)
    with pytest.raises(LakeError, match=r"2025-06-10, were removed on .* \(NQ_KEEP_RAW_DAYS\)"):
        replay_snapshot(settings, request.run_id, opener=opener)
    with pytest.raises(LakeError, match="no run 'other' is archived"):
        replay_snapshot(settings, "other", opener=opener)


def test_sweeps_at_the_same_time_take_turns(settings: Settings) -> None:
    archive = Workspace.of(settings).archive
    for number in range(100):
        archive.write_run(f"run-{number}", {"request": {"trade_date": NOON.date().isoformat()}})
    with ThreadPoolExecutor(3) as threads:
        parts = list(threads.map(lambda _: swept(settings, "raw").files, range(3)))
    assert sorted(parts) == [0, 0, 100]
    assert len((settings.environment_dir / "raw/removed.jsonl").read_bytes().splitlines()) == 100


def test_the_next_sweep_completes_a_killed_one(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, unlink = archive_answer(settings, "a").parent, Path.unlink

    def killed(path: Path, **_: bool) -> None:
        unlink(path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "unlink", killed)
        sweep(settings, LATER)
    assert len(list(folder.iterdir())) == 1
    sweep(settings, LATER)
    assert not folder.exists()


def test_a_killed_writes_remains_go_with_their_trade_date(settings: Settings) -> None:
    folder = archive_answer(settings, "a").parent
    begun = folder / ".b.zst.0123.tmp"
    begun.write_bytes(b"begun")
    sweep(settings, LATER)
    assert begun.exists(), "somebody may be writing it"
    os.utime(begun, (0, 0))
    sweep(settings, LATER)
    assert not folder.exists()


def test_answers_in_an_object_store_go_as_in_a_folder(settings: Settings, bucket: Bucket) -> None:
    remote = load(**{**GIVEN, "data_dir": settings.data_dir, "lake_url": bucket.url})
    archive_answer(remote, "a")
    archive_answer(remote, "b", written=False)
    Workspace.of(remote).archive.write_run("old", {"request": {"trade_date": NOON.date().isoformat()}})
    assert swept(remote, "raw", dry_run=True).files == swept(remote, "raw").files
    answers = {name.rpartition("/")[2] for name in bucket.names() if "/raw/barchart/trade_date=" in name}
    assert answers == {"b.json", "b.zst"}
    Workspace.of(remote).archive.read_run("old")  # an answer of its trade date is still there


def test_a_removed_run_is_noted_in_an_object_store(settings: Settings, bucket: Bucket) -> None:
    remote = load(**{**GIVEN, "data_dir": settings.data_dir, "lake_url": bucket.url})
    archive = Workspace.of(remote).archive
    archive.write_run("old", {"request": {"trade_date": NOON.date().isoformat()}})
    assert swept(remote, "raw").files == 1
    with pytest.raises(LakeError, match=r"2025-06-10, were removed on .* \(NQ_KEEP_RAW_DAYS\)"):
        archive.read_run("old")
    assert "lakes/nq/sandbox/raw/removed/old.json" in bucket.names()


# ── the capture log ─────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def capture(settings: Settings) -> Path:
    """The log of a capture in several segments, all published."""
    root = Workspace.of(settings).capture
    with Feed(root, segment_bytes=20_000) as feed:
        feed.session(*np.array_split(market(2_000), 8))
    publisher(root).publish()
    assert len(list_segments(root / DATASET)) > 3
    return root


def test_published_and_compacted_segments_go_but_for_the_newest(settings: Settings, capture: Path) -> None:
    segments, before = list_segments(capture / DATASET), rows(capture)
    Workspace.of(settings).lake.compact(TRADES, NOON.date(), now=LATER)
    part = swept(settings, "capture")
    assert (part.files, part.kept) == (len(segments) - 1, "")
    assert list_segments(capture / DATASET) == segments[-1:]
    assert rows(capture).equals(before)


def test_a_capture_goes_on_after_retention(settings: Settings, capture: Path) -> None:
    swept(settings, "capture")
    last = list_segments(capture / DATASET)[-1].number
    before = rows(capture).height
    with Feed(capture) as feed:
        feed.session(market(50, seed=9))
    publisher(capture).publish()
    assert list_segments(capture / DATASET)[-1].number == last + 1
    assert rows(capture).height > before


def test_segments_stay_while_they_are_not_published(settings: Settings, capture: Path) -> None:
    (settings.environment_dir / "lake/trades" / f"{DATASET}.published").unlink()
    part = swept(settings, "capture")
    assert part.files == 0
    assert part.kept.endswith("it is not published")


def test_segments_stay_while_their_trade_date_is_not_compacted(settings: Settings, capture: Path) -> None:
    with Feed(capture) as feed:
        feed.session(market(50, seed=9))
    publisher(capture).publish()
    lake = Workspace.of(settings).lake
    assert len(lake.manifest(TRADES).of({NOON.date()})) > 1
    assert swept(settings, "capture").kept.endswith("its trade date is not compacted")
    lake.compact(TRADES, NOON.date(), now=LATER)
    assert swept(settings, "capture").files > 0


@pytest.mark.parametrize(("state", "stays"), [("open", True), ("replayed", True), ("verified", False)])
def test_segments_stay_while_a_gap_is_unsettled(
    settings: Settings, capture: Path, state: GapState, stays: bool
) -> None:
    lake = Workspace.of(settings).lake
    book = GapStore(lake, dataset=DATASET, run_id="run")
    book.write([replace(GAP, state=state)], NOON)
    part = swept(settings, "capture")
    assert (part.files == 0) == stays
    assert ("neither verified nor unfillable" in part.kept) == stays


def test_segments_stay_while_their_tables_rows_are_missing(settings: Settings, capture: Path) -> None:
    lake = Workspace.of(settings).lake
    lake.compact(TRADES, NOON.date(), now=LATER)
    for path in lake.folder(TRADES).glob("trade_date=*"):
        shutil.rmtree(path)
    assert "nq repair trades" in swept(settings, "capture").kept
    (lake.folder(TRADES) / "manifest.json").unlink()
    assert swept(settings, "capture").kept.endswith(
        "the table trades is empty, and the segment holds records of it"
    )
    assert swept(settings, "capture").files == 0


def test_segments_go_only_with_a_copy_in_the_object_store(settings: Settings, bucket: Bucket) -> None:
    remote = load(**{**GIVEN, "data_dir": settings.data_dir, "lake_url": bucket.url})
    root, lake = Workspace.of(remote).capture, Workspace.of(remote).lake
    with Feed(root, segment_bytes=20_000) as feed:
        feed.session(*np.array_split(market(500), 4))
    publisher(root, lake=lake).publish()
    for table in (TRADES, GAPS):
        lake.compact(table, NOON.date(), now=LATER)
    segments = list_segments(root / DATASET)
    store = Workspace.of(remote).segment_copies
    assert store and swept(remote, "capture", dry_run=True).kept.endswith("not copied to the object store")
    copy_sealed_segments(root, store)
    outdated = copy_name(segments[0])  # as if its torn tail had been cut after that
    store.put(f"{outdated}.zst", b"a torn one")
    store.put(f"{outdated}.sha256", b"its digest")
    assert swept(remote, "capture", dry_run=True).kept.endswith("not copied to the object store")
    exact = segments[0].path.read_bytes()
    part = swept(remote, "capture")
    assert (part.files, part.kept) == (len(segments) - 1, "")
    copies = {name.rpartition("/")[2] for name in bucket.names() if "/sandbox/capture/" in name}
    assert copies >= {f"{segment.path.name}.zst" for segment in segments}
    copy = zstandard.ZstdDecompressor().decompressobj().decompress(store.get(f"{outdated}.zst"))
    assert copy == exact


def test_temporary_files_go_everywhere_after_a_grace_period(settings: Settings) -> None:
    names = [".a.json.1.tmp", "cache/answers/.b.2.tmp", "reports/.c.3.tmp", "raw/runs/.d.4.tmp"]
    paths = [settings.environment_dir / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    sweep(settings, LATER)
    assert all(path.exists() for path in paths)
    for path in paths:
        os.utime(path, (0, 0))
    sweep(settings, LATER)
    assert not any(path.exists() for path in paths)


# ── reports ─────────────────────────────────────────────────────────────────────────────────────


def test_old_reports_go_and_other_files_stay(settings: Settings) -> None:
    folder = settings.environment_dir / "reports"
    folder.mkdir(parents=True)
    for name in ("2025-06-10T15-00-00Z.html", "2025-12-20T15-00-00Z.html", "mine.html"):
        (folder / name).write_text("page")
    part = swept(settings, "reports", now=datetime(2025, 12, 21, tzinfo=UTC))
    assert part.files == 1
    assert sorted(p.name for p in folder.iterdir()) == ["2025-12-20T15-00-00Z.html", "mine.html"]


def test_old_reports_in_an_object_store_go(settings: Settings, bucket: Bucket) -> None:
    remote = load(**{**GIVEN, "data_dir": settings.data_dir, "lake_url": bucket.url})
    reports = Workspace.of(remote).reports
    for name in ("2025-06-10T15-00-00Z.html", "2025-12-20T15-00-00Z.html", "mine.html"):
        reports.put(name, b"page")
    assert swept(remote, "reports", now=datetime(2025, 12, 21, tzinfo=UTC)).files == 1
    assert [one.name for one in reports.list()] == ["2025-12-20T15-00-00Z.html", "mine.html"]
