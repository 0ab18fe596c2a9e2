"""Spans of Databento's history on disk, each bought once and proven complete.

    raw/databento/history/<schema>/<digest>.dbn.zst    the exact bytes (a folder for a batch job)
    raw/databento/history/<schema>/<digest>.json       the proof: the query, count of records, cost
    raw/databento/history/<schema>/<digest>.job        the batch job that is paid for the span

A span is proven when all its records can be read and their number is that of `metadata.get_record_count`. A
body that is cut off, even between two records or zstd frames, fails this test.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson

from nq_pipeline.errors import Unavailable
from nq_pipeline.files import locked, write_atomically
from nq_pipeline.sources.databento.query import Query
from nq_pipeline.spend.ledger import Mode
from nq_pipeline.spend.money import ZERO


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
    """The purchased spans below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, query: Query) -> Download | None:
        """Return a proven span; None for any other.

        Raises `Unavailable` when the proof is damaged or its files are gone; a person decides whether to buy
        them again.
        """
        proof = self.path(query, "json")
        try:
            stored = orjson.loads(proof.read_bytes())
            files = tuple(self.folder / name for name in stored["files"])
            own = {name: tuple(stored[name]) for name in ("sha256", "request_ids")}
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
        gone = next((file for file in files if not file.is_file()), None)
        if gone is None:
            return download
        if self.path(query, "part").exists():
            return None  # the process died between writing the proof and renaming the file
        raise Unavailable(
            f"the purchased file {gone} is missing; restore it from a backup, or delete {proof} to buy it "
            "again"
        )

    def is_paid(self, query: Query) -> bool:
        """Whether the span is proven, or a paid batch job will bring it."""
        return self.find(query) is not None or "id" in self.stored_job(query)

    def stored_job(self, query: Query) -> dict[str, Any]:
        """Return the `id` of the span's batch job, or `submitted_at` (nanoseconds UTC); empty without one."""
        path = self.path(query, "job")
        try:
            return dict(orjson.loads(path.read_bytes())) if path.exists() else {}
        except (ValueError, TypeError):
            raise Unavailable(
                f"{path} names no batch job; delete it to have the job looked up in the account"
            ) from None

    def write_proof(self, query: Query, download: Download) -> Download:
        """Write the proof of a span; it proves nothing until its files are in place."""
        proof: dict[str, Any] = {
            "query": asdict(query),
            "files": [file.relative_to(self.folder).as_posix() for file in download.files],
            "cost_usd": str(download.cost_usd),
            "proven_at": datetime.now(UTC).isoformat(),
        }
        proof |= {
            name: getattr(download, name) for name in ("records", "size", "sha256", "request_ids", "mode")
        }
        write_atomically(self.path(query, "json"), orjson.dumps(proof, option=orjson.OPT_INDENT_2))
        return download

    def path(self, query: Query, suffix: str) -> Path:
        """Return the place of one of a span's files."""
        return self.folder / query.schema / f"{_digest(query)}.{suffix}"

    @contextmanager
    def locked(self, query: Query) -> Iterator[None]:
        """Hold the lock by which one process at a time buys a span."""
        with locked(self.path(query, "lock")):
            yield


def with_sorted_symbols(query: Query) -> Query:
    """Return the query as it identifies a span: the order of its symbols makes no difference."""
    return replace(query, symbols=tuple(sorted(query.symbols)))


def _digest(query: Query) -> str:
    ordered = with_sorted_symbols(query)
    whole = [ordered.dataset, ordered.schema, ordered.symbols, ordered.start, ordered.end]
    return hashlib.sha256(orjson.dumps(whole)).hexdigest()[:24]
