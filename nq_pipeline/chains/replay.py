"""Repeat a run from its archived answers: `nq run --from-raw`, and runs that were killed."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from datetime import date, datetime
from typing import Any

from nq_pipeline.chains.ask import Progress, ask_source, fault_result, open_session, raise_faults
from nq_pipeline.chains.result import Snapshot
from nq_pipeline.chains.run_record import (
    MALFORMED,
    recorded_request,
    recorded_settings,
    run_claims,
    source_request,
)
from nq_pipeline.chains.snapshot import select_and_store
from nq_pipeline.clock import from_ns
from nq_pipeline.errors import LakeError, NqError
from nq_pipeline.lake.archive import RawArchive, damaged_record
from nq_pipeline.lake.tables import SOURCE_CHAIN
from nq_pipeline.settings import Settings
from nq_pipeline.sources.base import Source
from nq_pipeline.sources.registry import load_source
from nq_pipeline.workspace import Workspace


def replay_snapshot(
    settings: Settings, run_id: str, *, opener: Callable[[str, Settings], Source] = load_source
) -> Snapshot:
    """Parse the archived answers of a run again (`latest` is the newest run); no vendor is asked.

    The vendors' settings are those of the run, so that the requests are the same. No key and no opt-in is
    needed. The rows have the snapshot_ts of the original, so a lake that has them gains none.

    Raises `LakeError` when the run is not in the archive or an answer there is damaged, and `NqError` for a
    fault of this program in a vendor's code; the other vendors' rows are written.
    """
    archive = Workspace.of(settings).archive
    return _replay(settings, archive.read_run(run_id), uuid.uuid4().hex, opener)


def finish_killed_runs(
    settings: Settings,
    *,
    before: datetime,
    opener: Callable[[str, Settings], Source] = load_source,
    progress: Progress = lambda line: None,
) -> list[Snapshot]:
    """Write the rows of runs that died first, from their archived answers; no vendor is asked.

    A vendor that had not answered yet has no rows. Only runs with a snapshot_ts earlier than `before` are
    finished: with a pinned clock, the run that is about to start has the same one as the killed run, and
    completes it.
    """
    archive, finished = Workspace.of(settings).archive, []
    with archive.claim_unfinished(run_claims(settings, archive)) as runs:
        for run_id in runs:
            try:
                record = _unfinished_record(archive, run_id)
                if from_ns(record["request"]["snapshot_ts"]) >= before:
                    continue
                if not any(part["used"] for part in record["sources"].values()):
                    archive.forget_unfinished(run_id)  # it had no answer yet
                    continue
                snapshot = _replay(settings, record, run_id, opener, original=True)
            except NqError as error:
                progress(f"run {run_id} was killed and cannot be finished yet: {error}")
                continue
            archive.forget_unfinished(run_id)
            finished.append(snapshot)
            new = snapshot.rows[SOURCE_CHAIN.name]
            progress(
                f"run {run_id} of {snapshot.request.snapshot_ts:%Y-%m-%d %H:%M:%S} UTC was killed; finished "
                f"from its archived answers, {new:,} new rows"
            )
    return finished


def _unfinished_record(archive: RawArchive, run_id: str) -> dict[str, Any]:
    """The record of an unfinished run with all its answers that were archived."""
    record = archive.read_unfinished(run_id)
    try:
        from_ns(record["request"]["snapshot_ts"])
        day = date.fromisoformat(record["request"]["trade_date"])
        for name, part in record["sources"].items():
            part["used"] = {**archive.run_answers(run_id, name, day), **part["used"]}
    except MALFORMED:
        raise damaged_record(archive.objects.uri(f"begun/{run_id}.json")) from None
    return record


def _replay(
    settings: Settings,
    record: Mapping[str, Any],
    run_id: str,
    opener: Callable[[str, Settings], Source],
    *,
    original: bool = False,
) -> Snapshot:
    """Repeat a run from the archive; with `original`, write the rows as that run itself, which wrote none."""
    try:
        settings = recorded_settings(record, settings)
        request = recorded_request(record, settings, run_id)
        parts = {name: source_request(request, part) for name, part in record["sources"].items()}
    except MALFORMED:
        raise damaged_record(Workspace.of(settings).archive.objects.uri("runs")) from None
    try:
        sources = [opener(name, settings) for name in parts]
    except KeyError as unknown:
        raise LakeError(f"the run asked {unknown}, which is not a vendor of this version") from None
    results = {}
    for source in sources:
        part, used = parts[source.name], record["sources"][source.name]["used"]
        session = open_session(source, settings, part, answers=used, original=original)
        try:
            results[source.name] = ask_source(source, part, session)
        except NqError:
            raise
        except Exception as fault:
            results[source.name] = fault_result(source.name, part, session, fault)
    choose = record.get("choose", True) or not original
    snapshot = select_and_store(settings, sources, request, results, choose=choose, record_run=original)
    raise_faults(results)
    return snapshot
