"""The only place that calls Databento's historical API, through its official client.

Free requests may be sent at any time. A paid one takes a reservation of the spend ledger and is sent exactly
once: a refusal releases the money at once, any other failure leaves it reserved, since the vendor may have
billed what it sent. Whoever retries reserves again (`purchases.py`). Before it is sent, the disk must have
room for its answer.

`databento.Historical` is used unmodified, within bounds in time and size (`transport.py`). It forces https,
so for plain http on loopback its private base address is set, after checking the layout this relies on. Its
calls block without an overall time limit, so each runs on a thread of its own that is abandoned when the time
is up. Importing databento takes a second, so nothing of it is imported before the first request.
"""

from __future__ import annotations

import math
import queue
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from functools import cached_property
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import tenacity
from pydantic import SecretStr

from nq_pipeline.clock import real_now
from nq_pipeline.dbn.layout import ZSTD_MAGIC
from nq_pipeline.disk import is_full, reserve_room
from nq_pipeline.errors import (
    BadPayload,
    DeadlineReached,
    LedgerError,
    NotConfigured,
    SourceError,
    Unavailable,
)
from nq_pipeline.redaction import redact_data, secret_spellings
from nq_pipeline.sources.databento.query import Price, Query
from nq_pipeline.sources.databento.spec import DatabentoSettings, check_databento_key
from nq_pipeline.sources.databento.transport import Redirected, RefusedAnswer, Transport, use_transport
from nq_pipeline.sources.databento.vendor_errors import (
    as_source_error,
    brought_no_data,
    instant_ns,
    is_transient,
    was_cut_off,
)
from nq_pipeline.spend.money import is_amount
from nq_pipeline.transport.policy import Policy, retry_wait

if TYPE_CHECKING:
    from nq_pipeline.settings import Settings
    from nq_pipeline.spend.ledger import Mode, Spending

T = TypeVar("T")

GROUPS = ("metadata", "timeseries", "symbology", "batch")
PIECE, MAX_PIECES = 2**20, 512
"""An answer is decompressed in pieces of so many bytes, and in at most so many of them."""
LONGEST_RECORD = 528
"""Bytes of the longest record, a definition with `ts_out`."""
GIB = 2**30
FILENAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")
JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,60}")


@dataclass(frozen=True, slots=True)
class BatchJob:
    """A batch job: billed when it was submitted, then free to download until it expires."""

    id: str
    state: str
    query: Query | None
    received_at: int


@dataclass(frozen=True, slots=True)
class BatchFile:
    """A file of a batch job; `sha256` in hex."""

    name: str
    size: int
    sha256: str


class HistoricalClient:
    """The historical API. Methods raise only `SourceError`, and `LedgerError` for a reservation that is for
    another query. `remaining` returns the seconds left for this vendor.
    """

    def __init__(self, key: SecretStr, url: str, policy: Policy, remaining: Callable[[], float]) -> None:
        self._key = key
        self._url = url
        self._policy = policy
        self._remaining = remaining
        self._prices: dict[str, dict[str, dict[str, Decimal]]] = {}
        self._transport = Transport(policy, remaining, secret_spellings({key.get_secret_value()}))

    def available_end(self, dataset: str, schemas: tuple[str, ...]) -> int:
        """Return the end of the data that all the schemas have: exclusive, nanoseconds UTC. Free."""
        found = self._call_free(lambda client: client.metadata.get_dataset_range(dataset))
        with _parsing("the range of the dataset"):
            by_schema = found.get("schema", {})
            return min(instant_ns(by_schema.get(schema, found)["end"]) for schema in schemas)

    def cost(self, query: Query) -> Decimal:
        """Return what the query would cost, USD. Free. `BadPayload` for anything that is not an amount."""
        cost = self._call_free(lambda client: client.metadata.get_cost(**query.arguments))
        return _parse_usd(cost, query.schema)

    def size(self, query: Query) -> int:
        """Return the bytes the query would be billed for. Free."""
        size = self._call_free(lambda client: client.metadata.get_billable_size(**query.arguments))
        return _parse_count(size, query.schema)

    def count(self, query: Query) -> int:
        """Return how many records the query has. Free."""
        count = self._call_free(lambda client: client.metadata.get_record_count(**query.arguments))
        return _parse_count(count, query.schema)

    def unit_prices(self, dataset: str) -> dict[str, dict[str, Decimal]]:
        """Return USD per GiB by mode and schema; requested once in the life of the client. Free."""
        if dataset not in self._prices:
            answer = self._call_free(lambda client: client.metadata.list_unit_prices(dataset))
            with _parsing("the list of prices"):
                self._prices[dataset] = {
                    str(one["mode"]): {
                        schema: _parse_usd(usd, schema) for schema, usd in one["unit_prices"].items()
                    }
                    for one in answer
                }
        return self._prices[dataset]

    def price(self, query: Query, mode: Mode = "historical-streaming") -> Price:
        """Return what the query costs, for how many bytes and at which unit price. Free."""
        at, usd = real_now(), self.cost(query)
        if usd == 0:
            return Price(usd, None, None, at)
        size = self.size(query)
        unit = self.unit_prices(query.dataset).get(mode, {}).get(query.schema)
        # Where the plan includes a part, the price is below size times unit price.
        if unit is None or abs(size * unit / GIB - usd) > usd / 100:
            return Price(usd, size, None, at)
        return Price(max(usd, size * unit / GIB), size, unit, at)  # at least what is committed later

    def conditions(self, dataset: str, first: date, last: date) -> dict[date, str]:
        """Return the condition of each UTC day with data: available, degraded, pending or missing. Free."""
        answer = self._call_free(
            lambda client: client.metadata.get_dataset_condition(
                dataset, start_date=first.isoformat(), end_date=last.isoformat()
            )
        )
        with _parsing("the condition of the dataset"):
            return {date.fromisoformat(one["date"]): str(one["condition"]) for one in answer}

    def jobs(self, since: datetime) -> list[BatchJob]:
        """Return the account's batch jobs since an instant that have not expired. Free."""
        answer = self._call_free(lambda client: client.batch.list_jobs(since=since.isoformat()))
        if not isinstance(answer, list):
            raise BadPayload("the list of batch jobs has an unknown format")
        return [_parse_job(one) for one in answer]

    def job(self, job_id: str) -> BatchJob:
        """Return one batch job. Free."""
        return _parse_job(self._call_free(lambda client: client.batch.get_job_details(job_id)))

    def files(self, job_id: str) -> list[BatchFile]:
        """Return the DBN files of a job that is done. Free.

        Raises `BadPayload` when a file's name or address is not one of the vendor's: a download sends the key
        to the address and writes below the name.
        """
        answer = self._call_free(lambda client: client.batch.list_files(job_id))
        with _parsing("the list of the job's files"):
            found = [
                BatchFile(
                    str(one["filename"]),
                    _parse_count(int(one["size"]), "a job's file"),
                    str(one["hash"]).removeprefix("sha256:"),
                )
                for one in answer
                if self._is_vendor_url(str(one["urls"]["https"])) and FILENAME.fullmatch(str(one["filename"]))
            ]
        if len(found) < len(answer):
            raise BadPayload("a file of the job has a name or an address that is not the vendor's")
        return [file for file in found if file.name.endswith(".dbn.zst")]

    def download_file(self, job_id: str, file: BatchFile, folder: Path) -> Path:
        """Download a file of a job below `folder`, resuming an earlier attempt. Free."""

        def get(client: Any) -> Path:
            found: list[Path] = client.batch.download(job_id, folder, filename_to_download=file.name)
            return found[0]

        with self._transport.limit_bytes(file.size):
            return self._call_free(get)

    # ── paid ────────────────────────────────────────────────────────────────────────────────────

    def download(self, query: Query, spending: Spending) -> bytes:
        """Return the exact body of an answer of moderate size. Paid, whether or not it can be read.

        A body that was cut off is a `BadPayload`. A whole one is returned as received, so that it can be
        archived before it is parsed; one that repeats the key is returned decompressed, with the key struck
        out.
        """

        def get(client: Any) -> bytes:
            with TemporaryDirectory(prefix="nq-databento-") as folder:
                path = Path(folder) / "answer.dbn.zst"
                _stream_to_file(client, query, path)
                return _without_key(path.read_bytes(), self._transport.secrets)

        return self._call_metered(get, query, spending, "historical-streaming", Path(gettempdir()))

    def download_to(self, query: Query, spending: Spending, path: Path, records: int) -> None:
        """Write the exact body of an answer to `path`, which must not exist yet. Paid.

        `records` is the vendor's count; a body that is much larger than these records is refused.
        """
        with self._transport.limit_bytes(self._policy.max_data_bytes + records * LONGEST_RECORD):
            self._call_metered(
                lambda client: _stream_to_file(client, query, path),
                query,
                spending,
                "historical-streaming",
                path.parent,
            )

    def submit(self, query: Query, spending: Spending) -> BatchJob:
        """Submit a batch job for the query, as DBN split by UTC day. Paid when it is accepted."""
        form = {"encoding": "dbn", "compression": "zstd", "split_duration": "day"}
        job = self._call_metered(
            lambda client: client.batch.submit_job(**query.arguments, **form), query, spending, "historical"
        )
        return _parse_job(job)

    @cached_property
    def _client(self) -> Any:
        return official_client(
            self._key, self._url, timeout_s=self._policy.timeout_s, transport=self._transport
        )

    def _is_vendor_url(self, url: str) -> bool:
        """Whether an address is on the configured server or one of the vendor's."""
        parts, ours = urlsplit(url), urlsplit(self._url)
        if parts.username is not None:
            return False
        if (parts.scheme, parts.netloc) == (ours.scheme, ours.netloc):
            return True
        return parts.scheme == "https" and (parts.hostname or "").endswith(".databento.com")

    def _call_metered(
        self,
        request: Callable[[Any], T],
        query: Query,
        spending: Spending,
        mode: Mode,
        folder: Path | None = None,
    ) -> T:
        """Send a paid request once; its reservation is released when the vendor provably sent nothing.

        `folder` is where its answer will be written.
        """
        charge = spending.reservation.charge
        if (charge.vendor, charge.dataset, charge.schema, charge.mode) != (
            "databento", query.dataset, query.schema, mode,
        ):  # fmt: skip
            raise LedgerError(f"the reservation is for {charge}, not for {query.schema} ({mode})")
        with ExitStack() as held:
            try:
                client = self._client
                if folder is not None:
                    self._transport.room = held.enter_context(
                        reserve_room(folder, charge.billable_bytes or 0)
                    )
                if self._remaining() <= 0:
                    raise DeadlineReached("the time allowed ran out before the request was sent")
            except SourceError as error:
                spending.release(f"not sent: {error}")
                raise
            return self._send_metered(lambda: request(client), spending)

    def _send_metered(self, request: Callable[[], T], spending: Spending) -> T:
        try:
            return _call_within(self._remaining(), request)
        except Redirected as error:
            spending.release(f"refused before any data: {error}")
            raise
        except SourceError:
            raise
        except Exception as error:
            meant = as_source_error(error)
            if brought_no_data(error):
                spending.release(f"refused before any data: {meant}")
            raise meant from None

    def _call_free(self, request: Callable[[Any], T]) -> T:
        """Send a free request, and again after transient failures until the time is up."""

        def once() -> T:
            return _call_within(self._remaining(), lambda: request(self._client))

        backoff = tenacity.wait_random_exponential(multiplier=0.2, max=5)

        def wait_s(error: BaseException | None, remaining_s: float) -> float | None:
            status, headers = getattr(error, "http_status", None), getattr(error, "headers", None)
            return retry_wait(status, headers or {}, self._policy, remaining_s)

        def pause(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            return (wait_s(error, math.inf) or 0.0) + backoff(state)

        def may_retry(error: BaseException) -> bool:
            return is_transient(error) and wait_s(error, self._remaining()) is not None

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(may_retry),
            wait=pause,
            stop=lambda s: s.attempt_number >= self._policy.attempts or s.upcoming_sleep >= self._remaining(),
            reraise=True,
        )
        try:
            return retrying(once)
        except SourceError:
            raise
        except Exception as error:
            # A body can make the client raise anything, for example an error that is a JSON list.
            raise as_source_error(error) from None


def official_client(key: SecretStr, url: str, *, timeout_s: float, transport: Transport | None = None) -> Any:
    """Return the official client for `url`, using this transport if one is given.

    Raises `NotConfigured` for an unusable key, and for a version of the client with another internal layout.
    """
    import databento

    parts = urlsplit(url)
    check_databento_key(key, parts.hostname or "")
    client = databento.Historical(key=key.get_secret_value(), gateway=url)
    for group in GROUPS:
        api: Any = getattr(client, group, None)
        if getattr(api, "_base_url", None) != f"{client.gateway}/v0/{group}" or not hasattr(api, "TIMEOUT"):
            raise NotConfigured(
                f"databento {version('databento')} keeps its settings elsewhere; install version 0.88"
            )
        api.TIMEOUT = timeout_s
        if transport is not None and not use_transport(api, transport):
            raise NotConfigured(
                f"databento {version('databento')} sends requests in another way; install version 0.88"
            )
        if parts.scheme == "http":
            api._base_url = f"{url.rstrip('/')}/v0/{group}"
    return client


def _stream_to_file(client: Any, query: Query, path: Path) -> None:
    """Write an answer as it arrives; a partial file stays when it breaks off."""
    import requests
    from databento.common.error import BentoHttpError

    try:
        client.timeseries.get_range(**query.arguments, path=path)
    except (BentoHttpError, requests.RequestException):
        raise
    except Exception as error:
        if is_full(error):
            raise Unavailable(
                f"{path.parent} has no room for the rest of a paid answer; its cost stays reserved"
            ) from None
        # The client also reads the header of the file; here only the download counts.
        if not path.exists() or was_cut_off(error):
            raise


def _without_key(body: bytes, secrets: Sequence[str]) -> bytes:
    """The body as it is; decompressed and without the key where it repeats it."""
    import zstandard

    if not body.startswith(ZSTD_MAGIC):
        return redact_data(body, secrets)

    def pieces() -> Iterator[bytes]:
        with suppress(zstandard.ZstdError):  # cut off or damaged: reported by whoever parses it
            reader = zstandard.ZstdDecompressor().stream_reader(body, read_across_frames=True)
            while piece := reader.read(PIECE):
                yield piece

    before, longest = b"", max(map(len, secrets), default=0)
    for piece in pieces():
        seen = before + piece
        if redact_data(seen, secrets) != seen:
            return redact_data(b"".join(islice(pieces(), MAX_PIECES)), secrets)
        before = seen[-longest:]
    return body


def _parse_usd(price: Any, schema: str) -> Decimal:
    try:
        usd = Decimal(str(price))
    except InvalidOperation:
        usd = Decimal("NaN")
    if isinstance(price, bool) or not is_amount(usd):
        raise BadPayload(f"{schema}: the price has an unknown format")
    return usd


def _parse_count(value: Any, schema: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise BadPayload(f"{schema}: the number of records or bytes has an unknown format")
    return value


def _parse_job(answer: Any) -> BatchJob:
    with _parsing("a batch job"):
        job_id = str(answer["id"])
        if not JOB_ID.fullmatch(job_id):
            raise ValueError
        query = None
        ours = {"stype_in": "parent", "encoding": "dbn", "compression": "zstd"}
        if all(answer.get(name) == ours[name] for name in ours) and not answer.get("limit"):
            query = Query(
                str(answer["dataset"]),
                str(answer["schema"]),
                tuple(sorted(str(answer["symbols"]).split(","))),
                instant_ns(answer["start"]),
                instant_ns(answer["end"]),
            )
        return BatchJob(job_id, str(answer["state"]), query, instant_ns(answer["ts_received"]))


@contextmanager
def _parsing(what: str) -> Iterator[None]:
    """Turn the errors of reading parsed JSON into a `BadPayload` about `what`."""
    try:
        yield
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        raise BadPayload(f"{what} has an unknown format") from None


def _call_within(seconds: float, work: Callable[[], T]) -> T:
    """The result of `work`; `DeadlineReached` when it takes longer than so many seconds."""
    done: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            done.put((work(), None))
        except BaseException as error:  # a panic in the client's compiled part is no Exception
            done.put((None, error))

    threading.Thread(target=run, daemon=True, name="databento").start()
    try:
        result, error = done.get(timeout=max(0.0, seconds))
    except queue.Empty:
        raise DeadlineReached("the time allowed ran out while waiting for an answer") from None
    if isinstance(error, RefusedAnswer):
        raise error.reason
    if error is not None and not isinstance(error, Exception):
        raise BadPayload(f"the client could not read the answer ({type(error).__name__})")
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def open_client(settings: Settings, remaining: Callable[[], float] | None = None) -> HistoricalClient:
    """Return the historical API for these settings; raises `NotConfigured` without a key.

    A call may take `remaining()` seconds; by default the longer of NQ_BACKFILL_WAIT_S and NQ_HTTP_TIMEOUT_S.
    """
    key = settings.vendor(DatabentoSettings).api_key
    if key is None or not key.get_secret_value().strip():
        raise NotConfigured("DATABENTO_API_KEY is not set; copy the key from the vendor's portal")
    url, policy = settings.vendor(DatabentoSettings).url, Policy.of(settings.http)
    allowed_s = max(settings.backfill.wait_s, settings.http.timeout_s)
    return HistoricalClient(key, url, policy, remaining or (lambda: allowed_s))
