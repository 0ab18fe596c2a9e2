"""The raw archive: the bytes of every answer, secrets redacted, so that it can be parsed again.

    raw/<source>/trade_date=YYYY-MM-DD/<request_id>.zst    the body, zstd
    raw/<source>/trade_date=YYYY-MM-DD/<request_id>.json   the request and its times (`RawEntry`)
    raw/<source>/newest/<digest>.json                      the newest entry of a request
    raw/begun/<run_id>.json                                the record of a run whose rows are not written yet
    raw/runs/<run_id>.json                                 the record of a run: its request and its answers
    raw/removed.jsonl                                      runs whose answers retention removed, and when
                                                           (in an object store: raw/removed/<run_id>.json)
    raw/unsent/…                                           on this machine, what an object store did not take

These are files of the data folder, or objects of the same names below NQ_LAKE_URL. The body is written before
its entry, and the entry before the pointer to it, so a crash leaves only complete or unreferenced objects. No
secret is stored: callers pass redacted parameters.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path, PurePosixPath
from typing import Any

import orjson
import zstandard
from pydantic import TypeAdapter, ValidationError

from nq_pipeline.clock import real_now
from nq_pipeline.disk import reserve_room
from nq_pipeline.errors import LakeError, StoreError
from nq_pipeline.files import locked
from nq_pipeline.lake.objects import LocalObjects, Objects, StoredObject
from nq_pipeline.lake.tables import PARTITION

log = logging.getLogger(__name__)


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
    """The archive of one environment.

    Parameters
    ----------
    objects
        The objects below `raw`.
    local
        A folder of this machine for the locks of running runs and for what an object store did not take.
    """

    def __init__(self, objects: Objects, local: Path) -> None:
        self.objects = objects
        self._locks = local / "begun"
        self._unsent = LocalObjects(local / "unsent")

    def reserve_room(self, size: int) -> AbstractContextManager[object]:
        """Reserve room for an answer that costs money, or raise `NoRoom`; an object store has room."""
        if isinstance(self.objects, LocalObjects):
            return reserve_room(self.objects.root, size)
        return nullcontext()

    def put(self, entry: RawEntry, body: bytes) -> RawEntry:
        """Store a body and its entry durably; the entry becomes the newest of its request.

        What an object store does not take stays on this machine until the end of the run, or the next
        `claim_unfinished` here.
        """
        packed = zstandard.compress(body, 3)
        try:
            self.objects.put(_answer(entry, "zst"), packed)
            self._publish(entry)
        except StoreError as error:
            self._unsent.put(_answer(entry, "zst"), packed)
            # It may have been rejected when the store gets it, so the cache must not serve it.
            self._unsent.put(_answer(entry, "json"), orjson.dumps(asdict(replace(entry, expires=0))))
            log.warning("an answer of %s stays in %s: %s", entry.source, self._unsent.root, error)
        return entry

    def get(self, entry: RawEntry) -> bytes:
        """The exact body; `LakeError` when it is missing or differs from what was stored."""
        name = _answer(entry, "zst")
        try:
            body = zstandard.decompress(self.objects.get(name))
        except (OSError, zstandard.ZstdError) as error:
            raise LakeError(
                f"the archived answer {self.objects.uri(name)} cannot be read ({error}); fetch it again with "
                "--refresh"
            ) from None
        if hashlib.sha256(body).hexdigest() != entry.sha256:
            raise LakeError(
                f"the archived answer {self.objects.uri(name)} is not what was stored; fetch it again with "
                "--refresh"
            )
        return body

    def find(self, source: str, digest: str) -> RawEntry | None:
        """The newest entry of a request, or None."""
        return _read(self.objects, f"{source}/newest/{digest}.json")

    def expire(self, entry: RawEntry) -> None:
        """Never serve this answer from the cache again; it stays archived."""
        self._publish(replace(entry, expires=0))

    @contextmanager
    def begin_run(
        self, run_id: str, record: Mapping[str, Any]
    ) -> Iterator[Callable[[Mapping[str, Any]], None]]:
        """Keep a record of the run until its rows are written; yields a function that updates the record.

        If the block raises or the process dies, the record stays and the run counts as unfinished.
        """

        def update(record: Mapping[str, Any]) -> None:
            name, body = f"begun/{run_id}.json", orjson.dumps(record, option=orjson.OPT_INDENT_2)
            self.objects.put(name, body)
            if not self.objects.is_local:
                self._unsent.put(name, body)

        with locked(self._lock(run_id)):
            update(record)
            yield update
            self._send_unsent()
            self.forget_unfinished(run_id)

    @contextmanager
    def claim_unfinished(
        self, claim: Callable[[str], AbstractContextManager[bool]] | None = None
    ) -> Iterator[list[str]]:
        """Lock and list the runs that started, wrote no rows and no longer run.

        With an object store, runs of other machines are among them only if `claim` says of a run's id that it
        no longer runs, and keeps others from claiming it.
        """
        self._send_unsent()
        with ExitStack() as held:
            begun = [PurePosixPath(one.name).stem for one in self._records("begun")]

            def is_free(run_id: str) -> bool:
                if self.objects.is_local or self._lock(run_id).exists():
                    free = held.enter_context(locked(self._lock(run_id), wait=False))
                else:  # of another machine
                    free = claim is not None
                return free and (claim is None or held.enter_context(claim(run_id)))

            yield [r for r in begun if is_free(r) and self.objects.exists(f"begun/{r}.json")]

    def read_unfinished(self, run_id: str) -> dict[str, Any]:
        """The record of an unfinished run, with the answers received so far."""
        if self.objects.exists(f"runs/{run_id}.json"):
            return self.read_run(run_id)
        return self._record(f"begun/{run_id}.json")

    def unfinished_dates(self) -> set[date]:
        """The trade dates of unfinished runs."""
        return {self.run_date(one.name) for one in self._records("begun")}

    def forget_unfinished(self, run_id: str) -> None:
        """Remove the record of a run that is finished or has no archived answer."""
        self._unsent.delete([f"begun/{run_id}.json"])
        self.objects.delete([f"begun/{run_id}.json"])
        self._lock(run_id).unlink(missing_ok=True)

    def run_answers(self, run_id: str, source: str, trade_date: date) -> dict[str, str]:
        """The request ids of a run's archived answers, by digest."""
        entries = (_read(self.objects, one.name) for one in self._records(_day(source, trade_date)))
        return {entry.digest: entry.request_id for entry in entries if entry and entry.run_id == run_id}

    def write_run(self, run_id: str, record: Mapping[str, Any]) -> None:
        """Store the record of a run."""
        self.objects.put(f"runs/{run_id}.json", orjson.dumps(record, option=orjson.OPT_INDENT_2))

    def read_run(self, run_id: str) -> dict[str, Any]:
        """The record of a run (`latest` for the newest); `LakeError` when there is none."""
        if run_id == "latest":
            newest = max(self._records("runs"), key=lambda one: one.modified, default=None)
            name = newest.name if newest else "runs/latest.json"
        else:
            name = f"runs/{run_id}.json"
        try:
            archived = self.objects.exists(name)
        except ValueError:  # no name of an object
            archived = False
        if not archived:
            if gone := self._removed(run_id):
                raise LakeError(
                    f"the answers of run {run_id}, trade date {gone['trade_date']}, were removed on "
                    f"{gone['removed_on']} (NQ_KEEP_RAW_DAYS); its rows are in the lake"
                )
            raise LakeError(
                f"no run {run_id!r} is archived in {self.objects.uri('runs')}; the file names there are the "
                "run ids"
            )
        return self._record(name)

    def old_runs(self, before: date) -> list[StoredObject]:
        """The records of runs of earlier trade dates."""
        return [one for one in self._records("runs") if self.run_date(one.name) < before]

    def run_date(self, name: str) -> date:
        """The trade date of a run, from the name of its record."""
        try:
            return date.fromisoformat(self._record(name)["request"]["trade_date"])
        except (KeyError, TypeError, ValueError):
            raise damaged_record(self.objects.uri(name)) from None

    def old_pointers(self, before: date) -> list[StoredObject]:
        """Pointers to newest entries from before this trade date."""
        pointers = [one for source in self.objects.folders() for one in self._records(f"{source}/newest")]
        entries = ((one, _read(self.objects, one.name)) for one in pointers)
        return [one for one, entry in entries if entry and entry.trade_date < before]

    def old_answers(self, before: date) -> Iterator[tuple[date, str, list[StoredObject]]]:
        """The trade date, the folder and the objects of each source's earlier trade dates."""
        for source in self.objects.folders():
            for folder in self.objects.folders(source):
                if folder.startswith(f"{PARTITION}="):
                    day = date.fromisoformat(folder.removeprefix(f"{PARTITION}="))
                    if day < before:
                        name = f"{source}/{folder}"
                        yield day, name, list(self.objects.list(name))

    def note_removed(self, name: str) -> None:
        """Note durably that a run cannot be parsed again; call it before removing its record."""
        run_id = PurePosixPath(name).stem
        note = {
            "run_id": run_id,
            "trade_date": self.run_date(name),
            "removed_on": real_now().date(),
        }
        line = orjson.dumps(note, option=orjson.OPT_APPEND_NEWLINE)
        if not isinstance(self.objects, LocalObjects):
            self.objects.put(f"removed/{run_id}.json", line)
            return
        with self.objects.path(REMOVED).open("a+b") as file:
            if end := file.seek(0, os.SEEK_END):
                file.seek(end - 1)
                if file.read(1) != b"\n":  # a power cut left the last line torn
                    line = b"\n" + line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def _removed(self, run_id: str) -> dict[str, str] | None:
        name = REMOVED if self.objects.is_local else f"removed/{run_id}.json"
        try:
            notes = self.objects.get(name).splitlines()
        except (FileNotFoundError, ValueError):
            return None
        for line in notes:
            with suppress(ValueError):  # torn
                if (note := orjson.loads(line))["run_id"] == run_id:
                    return dict(note)
        return None

    def entry(self, source: str, trade_date: date, request_id: str) -> RawEntry | None:
        """The entry of one request, or None."""
        return _read(self.objects, f"{_day(source, trade_date)}/{request_id}.json")

    def _send_unsent(self) -> None:
        """Give the object store the answers that it did not take; their runs are then unfinished.

        Another machine may have finished such a run without them, or removed its record.
        """
        for source in self._unsent.folders():
            for stored in list(self._unsent.list(source)):
                if stored.name.endswith(".json") and (entry := _read(self._unsent, stored.name)):
                    self._send(entry)
        for stored in list(self._unsent.list("begun")):  # runs that another machine has finished
            run_id = PurePosixPath(stored.name).stem
            with locked(self._lock(run_id), wait=False) as has_ended:
                if has_ended and not self.objects.exists(stored.name):
                    self.forget_unfinished(run_id)

    def _send(self, entry: RawEntry) -> None:
        names = [_answer(entry, "zst"), _answer(entry, "json"), f"begun/{entry.run_id}.json"]
        for name in names:
            with suppress(FileNotFoundError):  # another process has sent it, or the run has ended
                if not self.objects.exists(name):
                    self.objects.put(name, self._unsent.get(name))
        self._unsent.delete(reversed(names[:2]))

    def _lock(self, run_id: str) -> Path:
        return self._locks / f"{run_id}.lock"

    def _publish(self, entry: RawEntry) -> None:
        text = orjson.dumps(asdict(entry))
        self.objects.put(_answer(entry, "json"), text)
        self.objects.put(f"{entry.source}/newest/{entry.digest}.json", text)

    def _records(self, folder: str) -> list[StoredObject]:
        """The JSON objects directly in a folder."""
        return [one for one in self.objects.list(folder) if re.fullmatch(rf"{folder}/[^/]+\.json", one.name)]

    def _record(self, name: str) -> dict[str, Any]:
        """The record of a run; `LakeError` when it is damaged."""
        try:
            return dict(orjson.loads(self.objects.get(name)))
        except (ValueError, TypeError):
            raise damaged_record(self.objects.uri(name)) from None


def _read(objects: Objects, name: str) -> RawEntry | None:
    """An entry; None if it is missing or unreadable, so that the request is sent again."""
    try:
        return _ENTRY.validate_json(objects.get(name), strict=True)
    except (FileNotFoundError, ValidationError):
        return None


def damaged_record(where: str) -> LakeError:
    """The error of an unusable run record."""
    return LakeError(
        f"the run record {where} is damaged; restore it from a backup or delete it: the run's answers stay "
        "in the archive, and only parsing them again needs the record"
    )


def _day(source: str, trade_date: date) -> str:
    return f"{source}/{PARTITION}={trade_date.isoformat()}"


def _answer(entry: RawEntry, suffix: str) -> str:
    return f"{_day(entry.source, entry.trade_date)}/{entry.request_id}.{suffix}"


REMOVED = "removed.jsonl"
_ENTRY = TypeAdapter(RawEntry)
