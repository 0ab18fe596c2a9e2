"""Retention: removes old files that are no longer needed.

    raw/<source>/trade_date=…/   answers whose rows are in the lake, after NQ_KEEP_RAW_DAYS
    capture/<dataset>/…/*.dbn    segments that are published, compacted and without an open gap, after
                                 NQ_KEEP_CAPTURE_DAYS; with NQ_LAKE_URL only those with a proven copy there
    reports/*.html               after NQ_KEEP_REPORT_DAYS; `nq report --snapshot` writes them again
    cache/answers/*              expired parsed answers, after a day
    cache/*-http.sqlite          HTTP caches of versions before 0.2, which nothing reads any more, at once

Retention never touches the tables, the spend ledger, purchased history (`raw/databento/history`), the
evidence of `nq verify` or the log of alerts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path, PurePosixPath

import polars as pl

from nq_pipeline.capture.log.copies import copy_sealed_segments, copy_segment, has_proven_copy
from nq_pipeline.capture.log.reader import tail
from nq_pipeline.capture.log.segments import Position, Segment, list_segments
from nq_pipeline.capture.publisher import TABLES as PUBLISHED
from nq_pipeline.capture.publisher import Publisher
from nq_pipeline.capture.rows import TABLE_OF
from nq_pipeline.chains.answer_cache import AnswerCache
from nq_pipeline.clock import real_ns
from nq_pipeline.errors import LakeError, LeaseHeld, LedgerError
from nq_pipeline.files import GRACE_NS, locked, stale_temporaries
from nq_pipeline.lake import compaction
from nq_pipeline.lake.objects import LocalObjects, Objects, StoredObject
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import FETCHES, GAPS, Table
from nq_pipeline.leases.leases import Leases, hold_if_shared
from nq_pipeline.settings import Settings
from nq_pipeline.workspace import Workspace

LONGEST_SWEEP_S = 600.0
"""How long to wait for another machine that removes old files."""
SETTLED = ("verified", "unfillable")
"""States of a gap that no longer needs the log."""


@dataclass
class SweepResult:
    """The result for one kind of files: `raw`, `capture`, `reports` or `cache`.

    Files from `before` an earlier trade date are old; None if age does not matter. `files` and `bytes` count
    those removed, or in a dry run those to remove. `kept` says which old files stay and why.
    """

    what: str
    before: date | None
    files: int = 0
    bytes: int = 0
    kept: str = ""

    @property
    def sentence(self) -> str:
        """The result for a person."""
        age = "past their lifetime" if self.what == "cache" else f"from before {self.before}"
        stays = f"; stays: {self.kept}" if self.kept else ""
        if self.before is None and self.what != "cache":
            return f"{self.what}: kept for ever"
        return f"{self.what} {age}: {self.files:,} files, {self.bytes / 2**20:,.1f} MiB{stays}"


def sweep(settings: Settings, now: datetime, *, dry_run: bool = False) -> list[SweepResult]:
    """Remove old files; a dry run only counts them.

    The next call completes one that was killed; concurrent calls take turns. It is safe while others write:
    nothing writes to an old trade date of the archive, and the newest capture segment always stays.
    """
    root, ages = Workspace.of(settings).root, settings.retention
    with (
        locked(root / ".retention.lock"),
        hold_if_shared(settings, "retention", wait_s=LONGEST_SWEEP_S) as ours,
    ):
        if not ours:
            raise LeaseHeld("another machine removes old files; try again when it is done")
        if not dry_run:
            with suppress(LedgerError):
                Leases.of(settings).prune()
        leftovers = stale_temporaries(root, real_ns() - GRACE_NS)
        _remove(SweepResult("temporary", None), leftovers, dry_run)
        return [
            _sweep_raw(settings, _before(now, ages.raw_days), dry_run),
            _sweep_capture(settings, now, _before(now, ages.capture_days), dry_run),
            _sweep_reports(settings, _before(now, ages.report_days), dry_run),
            _sweep_cache(settings, dry_run),
        ]


def _before(now: datetime, days: int) -> date | None:
    return now.date() - timedelta(days=days) if days else None


def _sweep_raw(settings: Settings, before: date | None, dry_run: bool) -> SweepResult:
    """Remove answers whose request is in `fetches`; the others are needed to finish runs that died."""
    swept = SweepResult("raw", before)
    if before is None:
        return swept
    archive, lake = Workspace.of(settings).archive, Workspace.of(settings).lake
    unwritten, unwritten_days, unfinished = 0, set[date](), archive.unfinished_dates()
    for day, folder, answers in archive.old_answers(before):
        written = set(lake.scan(FETCHES, {day}).select("request_id").collect()["request_id"])
        if day in unfinished:
            written.clear()
        bodies = {PurePosixPath(one.name).stem: one for one in answers if one.name.endswith(".zst")}
        entries = {PurePosixPath(one.name).stem: one for one in answers if one.name.endswith(".json")}
        old = sorted(bodies.keys() & written)
        # The bodies last, because the next call finds the leftovers of a killed call by them.
        _delete(swept, archive.objects, [entries[name] for name in old if name in entries], dry_run)
        _delete(swept, archive.objects, [bodies[name] for name in old], dry_run)
        if kept := len(bodies) - len(old):
            unwritten += kept
            unwritten_days.add(day)
        if isinstance(archive.objects, LocalObjects) and not dry_run:
            with suppress(OSError):  # it is not empty
                archive.objects.path(folder).rmdir()
    if unwritten:
        swept.kept = f"{unwritten:,} answers whose run never wrote its rows"
    for record in archive.old_runs(before):
        if archive.run_date(record.name) not in unwritten_days:
            if not dry_run:
                try:
                    archive.note_removed(record.name)
                except OSError as error:
                    swept.kept = f"records of runs that cannot be noted as removed: {error.strerror}"
                    break
            _delete(swept, archive.objects, [record], dry_run)
    _delete(swept, archive.objects, archive.old_pointers(before), dry_run)
    return swept


def _sweep_capture(settings: Settings, now: datetime, before: date | None, dry_run: bool) -> SweepResult:
    """Remove the oldest segments up to the first that is needed; segment numbers must stay consecutive."""
    swept, workspace = SweepResult("capture", before), Workspace.of(settings)
    lake, copies = workspace.lake, workspace.segment_copies
    if copies and not dry_run:
        copy_sealed_segments(workspace.capture, copies)
    if before is None:
        return swept
    unsettled = _unsettled(lake)
    for folder in sorted(workspace.capture.glob("[!.]*/")):
        published = Publisher(folder, lake, run_id="retention").position.segment
        for segment in list_segments(folder)[:-1]:
            if segment.trade_date >= before:
                break
            reason = _needed(lake, segment, published, unsettled, now)
            if not reason and copies and not has_proven_copy(segment, copies):
                if dry_run:
                    reason = "it is not copied to the object store"
                else:  # an earlier version copied it before its torn tail was cut
                    copy_segment(segment, copies)
            if reason:
                swept.kept = f"from segment {segment.number} of {segment.trade_date} on: {reason}"
                break
            _remove(swept, [segment.path], dry_run)
    return swept


def _needed(lake: Lake, segment: Segment, published: int, unsettled: date | None, now: datetime) -> str:
    """Why a segment must stay; empty if all of it is in the lake."""
    day = segment.trade_date
    if segment.number >= published:
        return "it is not published"
    try:
        for table in PUBLISHED:
            lake.files(table, {day})
        lost = sorted(table.name for table in _tables_in(segment) if not lake.manifest(table).files)
    except LakeError as error:
        return str(error)
    if lost:
        return f"the table {lost[0]} is empty, and the segment holds records of it"
    if unsettled is not None and day >= unsettled:
        return f"a gap of {unsettled} is neither verified nor unfillable"
    loose = any(len(lake.manifest(table).of({day})) > 1 for table in PUBLISHED)
    if loose or not compaction.is_over(day, now):
        return "its trade date is not compacted"
    return ""


def _tables_in(segment: Segment) -> set[Table]:
    """The tables that the records of a segment belong to."""
    folder, number = segment.path.parents[1], segment.number
    end = Position(number, segment.path.stat().st_size)
    blocks = tail(folder, Position(number, 0), end)
    return {TABLE_OF[rtype] for block in blocks for rtype in block.frame.tallies if rtype in TABLE_OF}


def _unsettled(lake: Lake) -> date | None:
    """The earliest trade date with an unsettled gap, or None."""
    return (  # type: ignore[no-any-return]
        lake.scan(GAPS)
        .sort("revision")
        .group_by("gap_id")
        .agg(pl.col("state", "trade_date").last())
        .filter(~pl.col("state").is_in(SETTLED))
        .select(pl.col("trade_date").min())
        .collect()
        .item()
    )


def _sweep_reports(settings: Settings, before: date | None, dry_run: bool) -> SweepResult:
    swept = SweepResult("reports", before)
    if before is not None:
        reports = Workspace.of(settings).reports
        pages = (one for one in reports.list() if re.fullmatch(r"\d{4}-\d\d-\d\dT[^/]*\.html", one.name))
        _delete(swept, reports, [one for one in pages if one.name[:10] < before.isoformat()], dry_run)
    return swept


def _sweep_cache(settings: Settings, dry_run: bool) -> SweepResult:
    swept, cache = SweepResult("cache", None), Workspace.of(settings).cache
    _remove(swept, [*cache.glob("*-http.sqlite*"), *AnswerCache(cache / "answers").old_files()], dry_run)
    return swept


def _delete(swept: SweepResult, objects: Objects, old: Sequence[StoredObject], dry_run: bool) -> None:
    swept.files += len(old)
    swept.bytes += sum(one.size for one in old)
    if not dry_run:
        objects.delete(one.name for one in old)


def _remove(swept: SweepResult, paths: Iterable[Path], dry_run: bool) -> None:
    for path in paths:
        if path.exists():
            swept.files += 1
            swept.bytes += path.stat().st_size
            if not dry_run:
                path.unlink()
