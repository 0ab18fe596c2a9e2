"""Spans of Databento's history on disk, each bought once and proven complete.

    raw/databento/history/<schema>/<digest>.dbn.zst    the exact bytes (a folder for a batch job)
    raw/databento/history/<schema>/<digest>.json       the proof: the query, count of records, cost
    raw/databento/history/<schema>/<digest>.job        the batch job that is paid for the span

With an object store, these are objects that all machines share, and the folder of this machine has copies of
the files it used; a download goes to the folder first.

A span is proven when all its records can be read and their number is that of `metadata.get_record_count`. A
body that is cut off, even between two records or zstd frames, fails this test.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson

from nq_pipeline.clock import real_now
from nq_pipeline.errors import Unavailable
from nq_pipeline.files import locked
from nq_pipeline.lake.objects import LocalObjects, Objects
from nq_pipeline.settings import Settings
from nq_pipeline.sources.databento.query import Query
from nq_pipeline.spend.ledger import Mode
from nq_pipeline.spend.money import ZERO
from nq_pipeline.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Download:
    """A span of history on disk, proven complete.

    Attributes
    ----------
    files
        DBN, compressed as received, in the order of their records; empty where there are no records.
    size
        Uncompressed bytes of the records, as they are billed.
    request_ids
        The ledger's request, or the batch job.
    cost_usd
        What this call paid and left reserved; 0 where the span was proven before.
    """

    files: tuple[Path, ...]
    records: int
    size: int
    sha256: tuple[str, ...]
    request_ids: tuple[str, ...]
    mode: Mode
    cost_usd: Decimal


class HistoryStore:
    """The purchased spans.

    Parameters
    ----------
    folder
        The files of this machine.
    shared
        The objects of all machines; None if `folder` has everything.
    """

    def __init__(self, folder: Path, shared: Objects | None = None) -> None:
        self.folder = folder
        self._shared = shared
        self._objects: Objects = shared or LocalObjects(folder)

    @classmethod
    def of(cls, settings: Settings) -> HistoryStore:
        """The store of the environment that the settings name."""
        workspace = Workspace.of(settings)
        return cls(workspace.history, workspace.shared_history)

    def find(self, query: Query) -> Download | None:
        """Return a proven span; None for any other.

        Raises `Unavailable` when the proof is damaged or its files are gone; a person decides whether to buy
        them again.
        """
        name = self._name(query, "json")
        proof = self._objects.uri(name)
        try:
            stored = orjson.loads(self._objects.get(name))
            files = tuple(self.folder / name for name in stored["files"])
            own = {name: tuple(stored[name]) for name in ("sha256", "request_ids")}
            digests = dict(zip(files, own["sha256"], strict=True))
            download = Download(
                files, int(stored["records"]), int(stored["size"]), mode=stored["mode"], cost_usd=ZERO, **own
            )
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError):
            raise Unavailable(
                f"the proof {proof} of a purchase is damaged; restore it from a backup, or delete it to have "
                "its file counted again (it is not bought again)"
            ) from None
        for file, sha256 in digests.items():
            if not file.is_file():
                if self._shared is None and self.path(query, "part").exists():
                    return None  # the process died between writing the proof and renaming the file
                self._fetch(file, sha256, proof)
        return download

    def _fetch(self, file: Path, sha256: str, proof: str) -> None:
        """Copy a purchased file from the object store."""
        name = file.relative_to(self.folder).as_posix()
        gone = Unavailable(
            f"the purchased file {self._objects.uri(name)} is missing or is not what was bought; restore it "
            f"from a backup, or delete {proof} to buy it again"
        )
        if self._shared is None:
            raise gone
        try:
            self._shared.fetch_file(name, file)
        except FileNotFoundError:
            raise gone from None
        if file_sha256(file) != sha256:
            file.unlink()
            raise gone

    def is_paid(self, query: Query) -> bool:
        """Whether the span is proven, or a paid batch job will bring it."""
        return self.find(query) is not None or "id" in self.stored_job(query)

    def stored_job(self, query: Query) -> dict[str, Any]:
        """Return the `id` of the span's batch job, or `submitted_at` (nanoseconds UTC); empty without one."""
        try:
            return dict(orjson.loads(self._objects.get(self._name(query, "job"))))
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError):
            raise Unavailable(
                f"{self.job_uri(query)} names no batch job; delete it to have the job looked up in the "
                "account"
            ) from None

    def job_uri(self, query: Query) -> str:
        """Where `stored_job` is kept."""
        return self._objects.uri(self._name(query, "job"))

    def write_job(self, query: Query, job: Mapping[str, Any]) -> None:
        """Store what `stored_job` returns."""
        self._objects.put(self._name(query, "job"), orjson.dumps(job))

    def delete_job(self, query: Query) -> None:
        """Forget the span's batch job."""
        self._objects.delete([self._name(query, "job")])

    def write_proof(self, query: Query, download: Download, *, part: Path | None = None) -> Download:
        """Write the proof of a span; on this machine it proves nothing until its files are in place.

        Parameters
        ----------
        part
            Where the content of the only file is, if it is not in place yet.
        """
        if self._shared is not None:  # other machines need the files before the proof
            for file in download.files:
                self._shared.put_file(file.relative_to(self.folder).as_posix(), part or file)
        proof: dict[str, Any] = {
            "query": asdict(query),
            "files": [file.relative_to(self.folder).as_posix() for file in download.files],
            "cost_usd": str(download.cost_usd),
            "proven_at": real_now().isoformat(),
        }
        proof |= {
            name: getattr(download, name) for name in ("records", "size", "sha256", "request_ids", "mode")
        }
        self._objects.put(self._name(query, "json"), orjson.dumps(proof, option=orjson.OPT_INDENT_2))
        return download

    def proof_of(self, query: Query) -> str:
        """Return the proof of a proven span, JSON."""
        return self._objects.get(self._name(query, "json")).decode()

    def restore_proof(self, query: Query, proof: str) -> Download | None:
        """Write a lost proof again if its files are there and intact, and return the span; None if not."""
        stored = orjson.loads(proof)
        for name, sha256 in zip(stored["files"], stored["sha256"], strict=True):
            here = self.folder / name
            if file_sha256(here) != sha256 if here.is_file() else not self._objects.exists(name):
                return None
        self._objects.put(self._name(query, "json"), proof.encode())
        return self.find(query)

    def path(self, query: Query, suffix: str) -> Path:
        """Return the place of one of a span's files on this machine."""
        return self.folder / self._name(query, suffix)

    def _name(self, query: Query, suffix: str) -> str:
        return f"{query.schema}/{span_digest(query)}.{suffix}"

    def locked(self, query: Query) -> AbstractContextManager[bool]:
        """Hold the lock by which one process at a time buys a span."""
        return locked(self.path(query, "lock"))


def file_sha256(path: Path) -> str:
    """Return the digest of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def with_sorted_symbols(query: Query) -> Query:
    """Return the query as it identifies a span: the order of its symbols makes no difference."""
    return replace(query, symbols=tuple(sorted(query.symbols)))


def span_digest(query: Query) -> str:
    """Return what identifies a span, whatever the order of its symbols."""
    ordered = with_sorted_symbols(query)
    whole = [ordered.dataset, ordered.schema, ordered.symbols, ordered.start, ordered.end]
    return hashlib.sha256(orjson.dumps(whole)).hexdigest()[:24]
