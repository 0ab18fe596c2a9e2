"""The raw archive: the bytes of every answer, secrets redacted, so that it can be parsed again.

    raw/<source>/trade_date=YYYY-MM-DD/<request_id>.zst    the body, zstd
    raw/<source>/trade_date=YYYY-MM-DD/<request_id>.json   the request and its times (`RawEntry`)
    raw/<source>/newest/<digest>.json                      the newest entry of a request
    raw/begun/<run_id>.json                                the record of a run whose rows are not written yet
    raw/runs/<run_id>.json                                 the record of a run: its request and its answers
    raw/removed.jsonl                                      runs whose answers retention removed, and when

The body is written before its entry, and the entry before the pointer to it, so a crash leaves only
complete or unreferenced files. No secret is stored: callers pass redacted parameters.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import orjson
import zstandard
from pydantic import TypeAdapter, ValidationError

from nq_pipeline.errors import LakeError
from nq_pipeline.files import locked, write_atomically


@dataclass(frozen=True, slots=True)
class RawEntry:
    """One request and its answer; all instants in nanoseconds UTC.

    Attributes
    ----------
    digest
        Identity of the request (source, operation, parameters), independent of the server.
    expires
        When the answer expires from the cache; 0 if it must not be served again.
    pinned
        The instant of a pinned clock (`NQ_NOW`), ISO 8601; None for a running clock.
    received_at
        When the answer was complete, by the run's clock; 0 in entries of older versions.
    """

    request_id: str
    run_id: str
    source: str
    operation: str
    digest: str
    url: str
    base_url: str
    trade_date: date
    snapshot_ts: int
    requested_at: int
    expires: int
    sha256: str
    bytes: int
    status: int | None = None
    pinned: str | None = None
    received_at: int = 0
    parameters: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


class RawArchive:
    """The archive below `root` (`<data>/<environment>/raw`)."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, entry: RawEntry, body: bytes) -> RawEntry:
        """Store a body and its entry durably; the entry becomes the newest of its request."""
        folder = self.root / entry.source / f"trade_date={entry.trade_date.isoformat()}"
        write_atomically(folder / f"{entry.request_id}.zst", zstandard.compress(body, 3))
        self._publish(entry, folder)
        return entry

    def get(self, entry: RawEntry) -> bytes:
        """The exact body; `LakeError` when it is missing or differs from what was stored."""
        path = self._folder(entry) / f"{entry.request_id}.zst"
        try:
            body = zstandard.decompress(path.read_bytes())
        except (OSError, zstandard.ZstdError) as error:
            raise LakeError(
                f"the archived answer {path} cannot be read ({error}); fetch it again with --refresh"
            ) from None
        if hashlib.sha256(body).hexdigest() != entry.sha256:
            raise LakeError(
                f"the archived answer {path} is not what was stored; fetch it again with --refresh"
            )
        return body

    def find(self, source: str, digest: str) -> RawEntry | None:
        """The newest entry of a request, or None."""
        return _read(self.root / source / "newest" / f"{digest}.json")

    def expire(self, entry: RawEntry) -> None:
        """Never serve this answer from the cache again; it stays archived."""
        self._publish(replace(entry, expires=0), self._folder(entry))

    @contextmanager
    def begin_run(
        self, run_id: str, record: Mapping[str, Any]
    ) -> Iterator[Callable[[Mapping[str, Any]], None]]:
        """Keep a record of the run until its rows are written; yields a function that updates the record.

        If the block raises or the process dies, the record stays and the run counts as unfinished.
        """
        path = self.root / "begun" / f"{run_id}.json"

        def update(record: Mapping[str, Any]) -> None:
            write_atomically(path, orjson.dumps(record, option=orjson.OPT_INDENT_2))

        with locked(path.with_suffix(".lock")):
            update(record)
            yield update
            path.unlink(missing_ok=True)
            path.with_suffix(".lock").unlink(missing_ok=True)

    @contextmanager
    def claim_unfinished(self) -> Iterator[list[str]]:
        """Lock and list the runs that started, wrote no rows and no longer run."""
        with ExitStack() as held:
            paths = sorted((self.root / "begun").glob("*.json"))
            locks = (held.enter_context(locked(path.with_suffix(".lock"), wait=False)) for path in paths)
            yield [path.stem for path, free in zip(paths, locks, strict=True) if free and path.exists()]

    def read_unfinished(self, run_id: str) -> dict[str, Any]:
        """The record of an unfinished run, with the answers received so far."""
        if (self.root / "runs" / f"{run_id}.json").exists():
            return self.read_run(run_id)
        return _record(self.root / "begun" / f"{run_id}.json")

    def unfinished_dates(self) -> set[date]:
        """The trade dates of unfinished runs."""
        return {self.run_date(path) for path in (self.root / "begun").glob("*.json")}

    def forget_unfinished(self, run_id: str) -> None:
        """Remove the record of a run that is finished or has no archived answer."""
        for suffix in (".json", ".lock"):
            (self.root / "begun" / f"{run_id}{suffix}").unlink(missing_ok=True)

    def run_answers(self, run_id: str, source: str, trade_date: date) -> dict[str, str]:
        """The request ids of a run's archived answers, by digest."""
        folder = self.root / source / f"trade_date={trade_date.isoformat()}"
        entries = (_read(path) for path in sorted(folder.glob("*.json")))
        return {entry.digest: entry.request_id for entry in entries if entry and entry.run_id == run_id}

    def write_run(self, run_id: str, record: Mapping[str, Any]) -> None:
        """Store the record of a run."""
        write_atomically(
            self.root / "runs" / f"{run_id}.json", orjson.dumps(record, option=orjson.OPT_INDENT_2)
        )

    def read_run(self, run_id: str) -> dict[str, Any]:
        """The record of a run (`latest` for the newest); `LakeError` when there is none."""
        runs = self.root / "runs"
        if run_id == "latest":
            newest = max(runs.glob("*.json"), key=lambda path: path.stat().st_mtime_ns, default=None)
        else:
            newest = runs / f"{run_id}.json"
        if newest is None or newest.parent != runs or not newest.is_file():
            if gone := self._removed(run_id):
                raise LakeError(
                    f"the answers of run {run_id}, trade date {gone['trade_date']}, were removed on "
                    f"{gone['removed_on']} (NQ_KEEP_RAW_DAYS); its rows are in the lake"
                )
            raise LakeError(f"no run {run_id!r} is archived in {runs}; the file names there are the run ids")
        return _record(newest)

    def old_runs(self, before: date) -> list[Path]:
        """The records of runs of earlier trade dates."""
        return [path for path in sorted((self.root / "runs").glob("*.json")) if self.run_date(path) < before]

    def run_date(self, path: Path) -> date:
        """The trade date of a run, from the path of its record."""
        try:
            return date.fromisoformat(_record(path)["request"]["trade_date"])
        except (KeyError, TypeError, ValueError):
            raise damaged_record(path) from None

    def old_pointers(self, before: date) -> list[Path]:
        """Pointers to newest entries from before this trade date."""
        pointers = ((path, _read(path)) for path in sorted(self.root.glob("*/newest/*.json")))
        return [path for path, entry in pointers if entry and entry.trade_date < before]

    def note_removed(self, path: Path) -> None:
        """Note durably that a run cannot be parsed again; call it before removing its record."""
        note = {
            "run_id": path.stem,
            "trade_date": self.run_date(path),
            "removed_on": datetime.now(UTC).date(),
        }
        with (self.root / "removed.jsonl").open("ab") as file:
            file.write(orjson.dumps(note, option=orjson.OPT_APPEND_NEWLINE))
            file.flush()
            os.fsync(file.fileno())

    def _removed(self, run_id: str) -> dict[str, str] | None:
        try:
            notes = (self.root / "removed.jsonl").read_bytes().splitlines()
        except FileNotFoundError:
            return None
        return next((note for note in map(orjson.loads, notes) if note["run_id"] == run_id), None)

    def entry(self, source: str, trade_date: date, request_id: str) -> RawEntry | None:
        """The entry of one request, or None."""
        return _read(self.root / source / f"trade_date={trade_date.isoformat()}" / f"{request_id}.json")

    def _folder(self, entry: RawEntry) -> Path:
        return self.root / entry.source / f"trade_date={entry.trade_date.isoformat()}"

    def _publish(self, entry: RawEntry, folder: Path) -> None:
        text = orjson.dumps(asdict(entry))
        write_atomically(folder / f"{entry.request_id}.json", text)
        write_atomically(self.root / entry.source / "newest" / f"{entry.digest}.json", text)


def _record(path: Path) -> dict[str, Any]:
    """The record of a run; `LakeError` when it is damaged."""
    try:
        return dict(orjson.loads(path.read_bytes()))
    except (ValueError, TypeError):
        raise damaged_record(path) from None


def damaged_record(path: Path) -> LakeError:
    """The error of an unusable run record."""
    return LakeError(
        f"the run record {path} is damaged; restore it from a backup or delete it: the run's answers stay "
        "in the archive, and only parsing them again needs the record"
    )


def _read(path: Path) -> RawEntry | None:
    """An entry; None if it is missing or unreadable, so that the request is sent again."""
    try:
        return _ENTRY.validate_json(path.read_bytes(), strict=True)
    except (FileNotFoundError, ValidationError):
        return None


_ENTRY = TypeAdapter(RawEntry)
