"""Spans of Databento's history as files: priced, bought once, proven whole, kept.

    raw/databento/history/<schema>/<digest>.dbn.zst    the bytes as they came (a folder for a batch job)
    raw/databento/history/<schema>/<digest>.json       the proof: what was asked, how many records, their cost
    raw/databento/history/<schema>/<digest>.job        the batch job that is paid for it

A span is proven when all its records can be read and are as many as `metadata.get_record_count`
says. A cut body, a zstd frame without an end and a body that is merely short all fail that. What is
proven is never asked for again. A download that a crash left behind is counted before anything is
bought, and so are the account's batch jobs, which are free to download for 30 days.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson

from nq_pipeline.clock import from_ns, to_ns
from nq_pipeline.dbn import stream as dbn
from nq_pipeline.errors import BadPayload, LedgerError, NotConfigured, NotEntitled, SourceError, Unavailable
from nq_pipeline.files import (
    locked,
    make_folder,
    put_in_place,
    write_atomically,
)
from nq_pipeline.market import sessions
from nq_pipeline.settings import Settings
from nq_pipeline.sources.databento.client import (
    BatchJob,
    HistoricalClient,
    NothingThere,
    Query,
)
from nq_pipeline.sources.databento.purchases import Purchases
from nq_pipeline.spend import entitlements
from nq_pipeline.spend.entitlements import Entitlement
from nq_pipeline.spend.export import publish_spend
from nq_pipeline.spend.ledger import Mode, open_ledger
from nq_pipeline.spend.money import ZERO
from nq_pipeline.transport.vendor_session import Policy
from nq_pipeline.workspace import Workspace

FIRST_POLL_S, POLL_S = 0.05, 2.0
"""Seconds between two looks at the state of a batch job: short at first, doubled up to the longest."""
JOBS_KEPT = timedelta(days=29)
"""How far back batch jobs are looked for: they can be downloaded for 30 days."""
LISTED_AFTER_S = 600
"""A job whose submission was interrupted is looked for this long before another is submitted."""


@dataclass(frozen=True, slots=True)
class Download:
    """A span that is proven.

    Attributes
    ----------
    files
        DBN, compressed as it came, in the order of their records; none where there are no records.
    size
        Bytes of the records, uncompressed: what is billed.
    sha256
        Of each file, in hex.
    request_ids
        Of the ledger's commit, or the batch job.
    cost_usd
        What this call paid for it, and what it left reserved; 0 where it was proven before.
    """

    files: tuple[Path, ...]
    records: int
    size: int
    sha256: tuple[str, ...]
    request_ids: tuple[str, ...]
    mode: Mode
    cost_usd: Decimal


class HistoryStore:
    """The proven spans below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, query: Query) -> Download | None:
        """A span that is proven; None when it is not.

        Raises
        ------
        Unavailable
            The proof is damaged, or its files are gone: buying them again is for a person to decide.
        """
        proof = self.path(query, "json")
        try:
            told = orjson.loads(proof.read_bytes())
            files = tuple(self.folder / name for name in told["files"])
            own = {name: tuple(told[name]) for name in ("sha256", "request_ids")}
            part = Download(
                files, int(told["records"]), int(told["size"]), mode=told["mode"], cost_usd=ZERO, **own
            )
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError):
            raise Unavailable(
                f"the proof {proof} of a purchase is damaged; restore it from a backup or delete it: its "
                "file is then counted again, and not bought again"
            ) from None
        gone = next((file for file in files if not file.is_file()), None)
        if gone is None:
            return part
        if self.path(query, "part").exists():
            return None  # it died between the proof and the file's name
        raise Unavailable(
            f"the purchased file {gone} is missing; restore it from a backup, or delete {proof} to buy it "
            "again"
        )

    def paid(self, query: Query) -> bool:
        """Whether the span is proven, or a batch job that is paid will bring it."""
        return self.find(query) is not None or "id" in self.job(query)

    def job(self, query: Query) -> dict[str, Any]:
        """What is remembered of its batch job: its `id`, or when one was about to be submitted."""
        path = self.path(query, "job")
        try:
            return dict(orjson.loads(path.read_bytes())) if path.exists() else {}
        except (ValueError, TypeError):
            raise Unavailable(
                f"{path} does not name a batch job any more; delete it: the job is then looked for in the "
                "account"
            ) from None

    def keep(self, query: Query, part: Download) -> Download:
        """Write the proof of a span; it proves nothing until its files are in place."""
        told: dict[str, Any] = {
            "query": asdict(query),
            "files": [file.relative_to(self.folder).as_posix() for file in part.files],
            "cost_usd": str(part.cost_usd),
            "proven_at": datetime.now(UTC).isoformat(),
        }
        told |= {name: getattr(part, name) for name in ("records", "size", "sha256", "request_ids", "mode")}
        write_atomically(self.path(query, "json"), orjson.dumps(told, option=orjson.OPT_INDENT_2))
        return part

    def path(self, query: Query, suffix: str) -> Path:
        return self.folder / query.schema / f"{_digest(query)}.{suffix}"

    @contextmanager
    def locked(self, query: Query) -> Iterator[None]:
        """One process at a time buys a span."""
        with locked(self.path(query, "lock")):
            yield


@dataclass
class Downloader:
    """The spans one run wants for one purpose.

    Parameters
    ----------
    wait_s
        How long a batch job may take to be made.
    tell
        Is told what goes on, in words.
    """

    purchases: Purchases
    shelf: HistoryStore
    wait_s: float = 3600.0
    tell: Callable[[str], None] = lambda line: None

    def had(self, query: Query, *, batch: bool = False) -> Download:
        """The span, bought unless it is there already; as a batch job, or streamed.

        Raises
        ------
        SourceError
            There is no answer, or a refusal, or what came is not proven: then what it cost is spent
            or stays reserved, and its bytes stay beside the shelf.
        LedgerError
            The ledger cannot be used, so nothing was asked.
        """
        with self.shelf.locked(query):
            if (kept := self.shelf.find(query)) is not None:
                return kept
            client, before = self.purchases.client, self.purchases.cost_usd
            counted = count_of(client, query)
            if not counted:
                return Download(
                    (), 0, 0, (), (), "historical-streaming", ZERO
                )  # and no proof that it stays so
            streamed = self.shelf.path(query, "part")
            if batch or self.shelf.path(query, "job").exists():
                return self._by_job(query, counted)
            if (found := self._without_proof(query, counted)) is not None:
                return found
            if streamed.exists() and (left := self._left_behind(query, counted)) is not None:
                return left
            price = client.price(query)
            request_id, measured = uuid.uuid4().hex, []

            def size() -> int:
                measured.append(_measured(streamed, query))
                return measured[-1][1]

            make_folder(streamed.parent)
            self.purchases.file(query, price, streamed, size, request_id, records=counted)
            records, bytes_ = measured[-1]
            if records != counted:
                streamed.replace(self.shelf.path(query, f"{request_id[:8]}.unproven"))
                raise BadPayload(
                    f"{query.schema}: {records:,} records came and the vendor counts {counted:,}; "
                    "they are paid and kept aside"
                )
            return self._shelved(query, records, bytes_, request_id, self.purchases.cost_usd - before)

    def _without_proof(self, query: Query, counted: int) -> Download | None:
        """A span whose file is there and whose proof was lost; one that is not whole is kept aside."""
        path = self.shelf.path(query, "dbn.zst")
        if not path.exists():
            return None
        try:
            records, size = _measured(path, query)
        except BadPayload:
            records = size = -1
        if records != counted:
            path.rename(self.shelf.path(query, f"{uuid.uuid4().hex[:8]}.unproven"))
            return None
        self.tell("the file is there and whole, and only its proof was lost; it is not bought again")
        part = Download((path,), records, size, (_sha256(path),), (), "historical-streaming", ZERO)
        return self.shelf.keep(query, part)

    def _left_behind(self, query: Query, counted: int) -> Download | None:
        """The span of a download that was interrupted after its last byte; None when it is not whole."""
        try:
            records, size = _measured(self.shelf.path(query, "part"), query)
        except BadPayload:
            return None
        if records != counted:
            return None
        self.tell("a download that was left behind is whole; it is not bought again")
        return self._shelved(query, records, size, "", ZERO)

    def _shelved(self, query: Query, records: int, size: int, request_id: str, cost_usd: Decimal) -> Download:
        came, path = self.shelf.path(query, "part"), self.shelf.path(query, "dbn.zst")
        ids = (request_id,) if request_id else ()
        part = Download((path,), records, size, (_sha256(came),), ids, "historical-streaming", cost_usd)
        # The proof first: a file in its place without one would be bought again.
        self.shelf.keep(query, part)
        put_in_place(came, path)
        return part

    # ── batch jobs ──────────────────────────────────────────────────────────────────────────────

    def _by_job(self, query: Query, counted: int) -> Download:
        before = self.purchases.cost_usd
        job = self._made(self._job(query))
        folder = self.shelf.path(query, "files")
        paths, size, records, digests = [], 0, 0, []
        for file in sorted(self.purchases.client.files(job.id), key=lambda file: file.name):
            self.tell(f"downloading {file.name}, {file.size:,} bytes")
            path = self.purchases.client.take(job.id, file, folder)
            digest = _sha256(path)
            if path.stat().st_size != file.size or digest != file.sha256:
                path.unlink()  # free to download again
                raise BadPayload(f"{file.name} of job {job.id} is not what the vendor lists; try again")
            more, length = _measured(path, query)
            paths.append(path)
            digests.append(digest)
            records, size = records + more, size + length
        if records != counted:
            raise BadPayload(
                f"{query.schema}: job {job.id} has {records:,} records and the vendor counts {counted:,}; "
                "it is paid and free to download again for 30 days"
            )
        cost = self.purchases.cost_usd - before
        part = Download(tuple(paths), records, size, tuple(digests), (job.id,), "historical", cost)
        self.shelf.keep(query, part)
        self.shelf.path(query, "job").unlink(missing_ok=True)
        return part

    def _job(self, query: Query) -> BatchJob:
        """The job of a query: remembered, found among the account's, or submitted."""
        path, client = self.shelf.path(query, "job"), self.purchases.client
        told = self.shelf.job(query)
        if "id" in told:
            return client.job(told["id"])
        known = [job for job in client.jobs(datetime.now(UTC) - JOBS_KEPT) if job.query == _ordered(query)]
        if known:
            job = max(known, key=lambda job: job.received_at)
            self.tell(f"job {job.id} is paid for this already")
        else:
            waited = (to_ns(datetime.now(UTC)) - told.get("submitted_at", 0)) / 1e9
            if waited < LISTED_AFTER_S:
                raise Unavailable(
                    "a batch job may have been submitted just now and is not listed yet; try again in "
                    f"{LISTED_AFTER_S // 60} minutes, so that it is not paid twice"
                )
            price, before = client.price(query, "historical"), self.purchases.cost_usd
            write_atomically(path, orjson.dumps({"submitted_at": to_ns(datetime.now(UTC))}))
            try:
                job = self.purchases.job(query, price)
            except (SourceError, LedgerError):
                if self.purchases.cost_usd == before:  # refused; or else it may have been accepted
                    path.unlink()
                raise
            self.tell(f"job {job.id} is submitted")
        write_atomically(path, orjson.dumps({"id": job.id}))
        return job

    def _made(self, job: BatchJob) -> BatchJob:
        """The job, once it is done."""
        end, pause = time.monotonic() + self.wait_s, FIRST_POLL_S
        while not job.done:
            if job.state == "expired":
                raise Unavailable(f"job {job.id} has expired; delete its .job file to have it made again")
            if time.monotonic() > end:
                raise Unavailable(
                    f"job {job.id} is {job.state} after {self.wait_s:.0f} s; it is paid, so run this again"
                )
            time.sleep(min(pause, max(0.0, end - time.monotonic())))
            pause = min(2 * pause, POLL_S)
            job = self.purchases.client.job(job.id)
        return job


class DatabentoHistory:
    """What the capture asks of the historical API, as `live.history.History` has it.

    Purchases have the purpose `gap_repair`.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client = open_client(settings)

    def price(self, schema: str, parents: tuple[str, ...], start_ns: int, end_ns: int) -> Decimal:
        """What the records of a span cost now, USD. Free."""
        try:
            return self._client.cost(self._query(schema, parents, start_ns, end_ns))
        except NothingThere:
            return ZERO

    def count(self, schema: str, parents: tuple[str, ...], start_ns: int, end_ns: int) -> int:
        """How many records the vendor says a span has. Free."""
        return count_of(self._client, self._query(schema, parents, start_ns, end_ns))

    def fetch(
        self, schema: str, parents: tuple[str, ...], start_ns: int, end_ns: int, *, run_id: str
    ) -> tuple[Path, Decimal]:
        """Buy the records of a span, once; a span without records raises `NothingThere`."""
        trade_date = sessions.trade_date(from_ns(start_ns))
        if (refusal := refused(self._settings, schema, trade_date)) is not None:
            raise NotEntitled(f"{refusal.text} (not asked again before {refusal.ask_again})")
        ledger, attempts = open_ledger(self._settings), self._settings.http_attempts
        purchases = Purchases(self._client, ledger, "gap_repair", run_id, attempts=attempts)
        spans = Downloader(purchases, open_shelf(self._settings))
        try:
            part = spans.had(self._query(schema, parents, start_ns, end_ns))
        except NotEntitled as error:
            note_refused(self._settings, schema, trade_date, str(error))
            raise
        finally:  # a refusal, and what a failure left reserved, are to be seen as well
            publish_spend(self._settings, run_id=run_id)
        if not part.files:
            raise NothingThere(f"{schema}: there are no records in that span")
        return part.files[0], part.cost_usd

    def _query(self, schema: str, parents: tuple[str, ...], start_ns: int, end_ns: int) -> Query:
        return Query(self._settings.databento_dataset, schema, parents, start_ns, end_ns)


def open_client(settings: Settings) -> HistoricalClient:
    """The historical API of these settings; a call may take as long as NQ_BACKFILL_WAIT_S, or as
    NQ_HTTP_TIMEOUT_S where that is longer.

    Raises
    ------
    NotConfigured
        There is no key.
    """
    key = settings.databento_api_key
    if key is None or not key.get_secret_value().strip():
        raise NotConfigured("DATABENTO_API_KEY is not set; copy the key from the vendor's portal")
    policy = Policy(
        timeout_s=settings.http_timeout_s,
        attempts=settings.http_attempts,
        retry_after_cap_s=settings.retry_after_cap_s,
    )
    # However short a wait for a batch job is allowed, a question needs the time of one.
    allowed_s = max(settings.backfill_wait_s, settings.http_timeout_s)
    return HistoricalClient(key, settings.databento_url, policy, lambda: allowed_s)


def open_shelf(settings: Settings) -> HistoryStore:
    return HistoryStore(Workspace.of(settings).history)


def refused(settings: Settings, schema: str, data_of: date | None = None) -> Entitlement | None:
    """What the vendor said when it refused a schema's history, while it need not be asked again.

    `data_of` is the trade date that is wanted: older days may be had where newer ones are not.
    """
    lake, today = Workspace.of(settings).lake, sessions.trade_date(settings.clock.now())
    dataset = settings.databento_dataset
    return entitlements.active_refusal(
        lake, "databento", dataset, schema, "historical", today, data_of=data_of
    )


def note_refused(settings: Settings, schema: str, trade_date: date, text: str) -> None:
    """Keep that a schema's history was refused, of a trade date and so of later ones."""
    step = "nothing of that trade date or later is asked for"
    _note(settings, schema, entitled=False, text=text, step=step, data_from=trade_date)


def note_granted(settings: Settings, schema: str) -> None:
    """Keep that a schema's history was given."""
    _note(settings, schema, entitled=True)


def _note(settings: Settings, schema: str, *, entitled: bool, **more: Any) -> None:
    entitlements.record_entitlement(
        Workspace.of(settings).lake,
        Entitlement(
            vendor="databento",
            dataset=settings.databento_dataset,
            schema=schema,
            mode="historical",
            environment=settings.environment,
            trade_date=sessions.trade_date(settings.clock.now()),
            entitled=entitled,
            **more,
        ),
    )


def count_of(client: HistoricalClient, query: Query) -> int:
    """How many records a span has; a span in which nothing is listed has none. Free."""
    try:
        return client.count(query)
    except NothingThere:
        return 0


def _measured(path: Path, query: Query) -> tuple[int, int]:
    """Records and their bytes; `BadPayload` when the file is no whole DBN of the schema."""
    records = size = 0
    try:
        with dbn.opened(path) as stream:
            if stream.schema != query.schema:
                raise BadPayload(f"{query.schema}: what came is of schema {stream.schema}")
            for layout, batch in stream.batches():
                records += len(batch)
                size += len(batch) * layout.dtype.itemsize
    except dbn.TruncatedDbn as error:
        raise BadPayload(f"{query.schema}: what came is cut off: {error}") from None
    except (dbn.DamagedDbn, dbn.UnsupportedDbn) as error:
        raise BadPayload(f"{query.schema}: {error}") from None
    return records, size


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _ordered(query: Query) -> Query:
    return Query(query.dataset, query.schema, tuple(sorted(query.symbols)), query.start, query.end)


def _digest(query: Query) -> str:
    """The identity of a span, whatever the order of its symbols."""
    ordered = _ordered(query)
    whole = [ordered.dataset, ordered.schema, ordered.symbols, ordered.start, ordered.end]
    return hashlib.sha256(orjson.dumps(whole)).hexdigest()[:24]
