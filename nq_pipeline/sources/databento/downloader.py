"""Buy the history that is not on disk yet: count it, stream it or order a batch job, and check the count.

Nothing is bought twice: a crash may have left a complete download, a batch job is free to download for 30
days, one process on all machines buys a span at a time, and the ledger's database records every purchase.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

from nq_pipeline.clock import real_now, real_ns
from nq_pipeline.dbn.stream import DamagedDbn, TruncatedDbn, UnsupportedDbn, open_dbn
from nq_pipeline.errors import BadPayload, LeaseHeld, LeaseLost, LedgerError, SourceError, Unavailable
from nq_pipeline.files import make_folder, rename_durably
from nq_pipeline.leases.leases import Lease
from nq_pipeline.leases.purchase_records import PurchaseRecord, PurchaseRecords, PurchaseState
from nq_pipeline.sources.databento.client import BatchJob, HistoricalClient
from nq_pipeline.sources.databento.history_store import (
    Download,
    HistoryStore,
    file_sha256,
    span_digest,
    with_sorted_symbols,
)
from nq_pipeline.sources.databento.purchases import Purchases
from nq_pipeline.sources.databento.query import Query
from nq_pipeline.sources.databento.vendor_errors import NoRecords
from nq_pipeline.spend.money import ZERO

FIRST_POLL_S, MAX_POLL_S = 0.05, 2.0
"""Seconds between two looks at the state of a batch job: short at first, doubled up to the longest."""
JOB_LIFETIME = timedelta(days=29)
"""How far back batch jobs are looked up: they can be downloaded for 30 days."""
LISTED_AFTER_S = 600
"""A job whose submission was interrupted is looked for this long before another is submitted."""


@dataclass
class Downloader:
    """Provides the spans that one run needs for one purpose.

    A batch job may take `wait_s` seconds to be prepared. `report` is called with progress messages.
    """

    purchases: Purchases
    store: HistoryStore
    records: PurchaseRecords
    wait_s: float = 3600.0
    report: Callable[[str], None] = lambda message: None

    def ensure(self, query: Query, *, batch: bool = False) -> Download:
        """Return a span, buying it (as a batch job, or streamed) unless it is on disk already.

        Raises `SourceError` for no answer, a refusal, or an answer that is not complete: its cost is spent or
        stays reserved, and its bytes stay in the store as `.unproven`. Raises `LedgerError` when the ledger
        cannot be used, so that no paid request was sent.
        """
        with self._sole_buyer(query) as lease:
            if (proven := self.store.find(query) or self._recorded(query)) is not None:
                return self._recording(query, proven)
            client, before = self.purchases.client, self.purchases.cost_usd
            expected = count_records(client, query)
            if not expected:  # without a proof, since the vendor may have records later
                return Download((), 0, 0, (), (), "historical-streaming", ZERO)
            part = self.store.path(query, "part")
            if batch or self.store.stored_job(query):
                return self._recording(query, self._ensure_by_job(query, expected, lease))
            if (found := self._recover(query, expected)) is not None:
                return self._recording(query, found)
            price = client.price(query)
            request_id, measured = uuid.uuid4().hex, []

            def billed_bytes() -> int:
                try:
                    measured.append(measure(part, query))
                except BadPayload:
                    self._set_aside(part, query)
                    raise
                return measured[-1][1]

            make_folder(part.parent)
            lease.check()
            self._record(query, "sent", request_id=request_id)
            self.purchases.buy_file(query, price, part, billed_bytes, request_id, records=expected)
            records, size = measured[-1]
            if records != expected:
                self._set_aside(part, query)
                self.records.forget(span_digest(query))
                raise BadPayload(
                    f"{query.schema}: received {records:,} records, but the vendor counts {expected:,}; they "
                    "are paid for and kept aside"
                )
            cost_usd = self.purchases.cost_usd - before
            return self._recording(query, self._finish(query, part, records, size, request_id, cost_usd))

    # ── other machines ──────────────────────────────────────────────────────────────────────────

    @contextmanager
    def _sole_buyer(self, query: Query) -> Iterator[Lease]:
        """Keep every other process from buying the span; the lease is to be checked before money is spent."""
        digest, run_id = span_digest(query), self.purchases.run_id
        with self.store.locked(query):
            try:
                with self.records.hold(digest, run_id=run_id, wait_s=self.wait_s) as lease:
                    yield lease
            except LeaseHeld as error:
                raise Unavailable(f"another machine is buying the same records: {error}; try again") from None
            except LeaseLost as error:
                raise Unavailable(f"{error}; nothing more was requested, try again") from None

    def _recorded(self, query: Query) -> Download | None:
        """A span whose proof was lost, but not its files; None for any other.

        Raises `Unavailable` when another machine has paid for the span and has it on its own disk.
        """
        record = self.records.find(span_digest(query))
        if record is None:
            return None
        if record.state == "stored" and record.proof:
            return self.store.restore_proof(query, record.proof)
        here = any(self.store.path(query, suffix).exists() for suffix in ("part", "dbn.zst"))
        elsewhere = self.records.shared and not here and record.state == "sent"
        if elsewhere and record.request_id and self.records.is_paid(record.request_id):
            raise Unavailable(
                f"{record.host} has paid for these records and died before it stored them; run this again "
                f"there. If that disk is lost, delete the row {record.digest} of nq_purchases to pay again"
            )
        return None

    def _recording(self, query: Query, download: Download) -> Download:
        """The download, recorded as stored for all machines; also one from before there were records."""
        if download.files:
            try:
                known = self.records.find(span_digest(query))
                if known is None or known.state != "stored":
                    ids = ",".join(download.request_ids)
                    self._record(query, "stored", request_id=ids, proof=self.store.proof_of(query))
            except LedgerError as error:  # the proof beside the files counts, and the next call records it
                self.report(f"the purchase is not recorded for other machines yet: {error}")
        return download

    def _record(
        self, query: Query, state: PurchaseState, *, request_id: str, proof: str | None = None
    ) -> None:
        self.records.write(
            PurchaseRecord(
                digest=span_digest(query),
                dataset=query.dataset,
                schema=query.schema,
                first_ns=query.start,
                last_ns=query.end,
                state=state,
                run_id=self.purchases.run_id,
                request_id=request_id or None,
                proof=proof,
            )
        )

    def _recover(self, query: Query, expected: int) -> Download | None:
        """A complete file or part without its proof; an incomplete file is set aside."""
        path = self.store.path(query, "dbn.zst")
        for found in (path, self.store.path(query, "part")):
            if not found.exists():
                continue
            records, size = _measure_or_none(found, query)
            if records == expected:
                self.report("an interrupted download is complete; it is not bought again")
                return self._finish(query, found, records, size, "", ZERO)
            if found == path:
                self._set_aside(path, query)
        return None

    def _set_aside(self, path: Path, query: Query) -> None:
        """Keep bytes that are paid for and prove nothing."""
        path.rename(self.store.path(query, f"{uuid.uuid4().hex[:8]}.unproven"))

    def _finish(
        self, query: Query, found: Path, records: int, size: int, request_id: str, cost_usd: Decimal
    ) -> Download:
        path, ids = self.store.path(query, "dbn.zst"), (request_id,) if request_id else ()
        sha256 = (file_sha256(found),)
        download = Download((path,), records, size, sha256, ids, "historical-streaming", cost_usd)
        # The proof first: a file in its place without one would be bought again.
        self.store.write_proof(query, download, part=found)
        if found != path:
            rename_durably(found, path)
        return download

    # ── batch jobs ──────────────────────────────────────────────────────────────────────────────

    def _ensure_by_job(self, query: Query, expected: int, lease: Lease) -> Download:
        before = self.purchases.cost_usd
        job = self._wait_for(self._find_or_submit_job(query, lease), query)
        folder = self.store.path(query, "files")
        paths, size, records, digests = [], 0, 0, []
        for file in sorted(self.purchases.client.files(job.id), key=lambda file: file.name):
            self.report(f"downloading {file.name}, {file.size:,} bytes")
            path = self.purchases.client.download_file(job.id, file, folder)
            digest = file_sha256(path)
            if path.stat().st_size != file.size or digest != file.sha256:
                path.unlink()  # free to download again
                raise BadPayload(
                    f"{file.name} of job {job.id} differs from the vendor's size or checksum; try again"
                )
            more, length = measure(path, query)
            paths.append(path)
            digests.append(digest)
            records, size = records + more, size + length
        if records != expected:
            raise BadPayload(
                f"{query.schema}: job {job.id} has {records:,} records, but the vendor counts {expected:,}; "
                "it is paid for and free to download again for 30 days"
            )
        cost = self.purchases.cost_usd - before
        download = Download(tuple(paths), records, size, tuple(digests), (job.id,), "historical", cost)
        self.store.write_proof(query, download)
        self.store.delete_job(query)
        return download

    def _find_or_submit_job(self, query: Query, lease: Lease) -> BatchJob:
        client = self.purchases.client
        stored = self.store.stored_job(query)
        if "id" in stored:
            return client.job(stored["id"])
        wanted = with_sorted_symbols(query)
        known = [job for job in client.jobs(real_now() - JOB_LIFETIME) if job.query == wanted]
        if known:
            job = max(known, key=lambda job: job.received_at)
            self.report(f"job {job.id} is paid for this already")
        else:
            waited = (real_ns() - stored.get("submitted_at", 0)) / 1e9
            if waited < LISTED_AFTER_S:
                raise Unavailable(
                    "a batch job may have been submitted just now and is not listed yet; try again in "
                    f"{LISTED_AFTER_S // 60} minutes, so that it is not paid twice"
                )
            price, before = client.price(query, "historical"), self.purchases.cost_usd
            lease.check()
            self.store.write_job(query, {"submitted_at": real_ns()})
            try:
                job = self.purchases.buy_job(query, price)
            except (SourceError, LedgerError):
                if self.purchases.cost_usd == before:  # refused; otherwise it may have been accepted
                    self.store.delete_job(query)
                raise
            self.report(f"job {job.id} is submitted")
        self.store.write_job(query, {"id": job.id})
        self._record(query, "ordered", request_id=job.id)
        return job

    def _wait_for(self, job: BatchJob, query: Query) -> BatchJob:
        """The job, once it is done."""
        end, pause = time.monotonic() + self.wait_s, FIRST_POLL_S
        while job.state != "done":
            if job.state == "expired":
                raise Unavailable(
                    f"job {job.id} was paid for and expired before all its files were downloaded; delete "
                    f"{self.store.job_uri(query)} to submit and pay for it again"
                )
            if time.monotonic() > end:
                raise Unavailable(
                    f"job {job.id} is {job.state} after {self.wait_s:.0f} s; it is paid for: run this again"
                )
            time.sleep(min(pause, max(0.0, end - time.monotonic())))
            pause = min(2 * pause, MAX_POLL_S)
            job = self.purchases.client.job(job.id)
        return job


def count_records(client: HistoricalClient, query: Query) -> int:
    """Return how many records a span has by the vendor's count; 0 where nothing is listed. Free."""
    try:
        return client.count(query)
    except NoRecords:
        return 0


def measure(path: Path, query: Query) -> tuple[int, int]:
    """Count the records of a file and their bytes; `BadPayload` unless it is complete DBN of the schema."""
    records = size = 0
    try:
        with open_dbn(path) as stream:
            if stream.schema != query.schema:
                raise BadPayload(f"{query.schema}: the answer is of schema {stream.schema}")
            for layout, batch in stream.batches():
                records += len(batch)
                size += len(batch) * layout.dtype.itemsize
    except TruncatedDbn as error:
        raise BadPayload(f"{query.schema}: the answer is cut off: {error}") from None
    except (DamagedDbn, UnsupportedDbn) as error:
        raise BadPayload(f"{query.schema}: {error}") from None
    return records, size


def _measure_or_none(path: Path, query: Query) -> tuple[int, int]:
    """As `measure`; -1 records for a file that is not complete."""
    try:
        return measure(path, query)
    except BadPayload:
        return -1, 0
