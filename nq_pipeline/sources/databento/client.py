"""The official client of Databento's historical API, with what it leaves to its caller.

This is the only place that has one. What costs nothing (`FREE`) may be asked at any time. What is
metered (`METERED`) takes a reservation of the spend ledger and is asked exactly once for it: a
refusal gives the money back at once, anything else that fails leaves it reserved, since the vendor
may have billed what it sent. Whoever wants to try again reserves again (`databento_purchase`).

`databento.Historical` itself is used unmodified. Around it: an address of plain http on
loopback, bounds in time and size (`databento_transport`), a few retries, and one kind of error.
The client forces https and has no parameter for it, so its private base address is set for a
plain-http URL; the layout this relies on is checked before it is touched. Its calls block without
an overall time limit, so each runs on a thread of its own that is left behind when the time allowed
is over; a thread left behind ends with the next bytes, or after `Policy.timeout_s` without any.

Nothing of databento is imported before the first question: the import takes a second.
"""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from functools import cached_property
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
import tenacity
from pydantic import SecretStr

from nq_pipeline.dbn.stream import ZSTD_MAGIC
from nq_pipeline.errors import (
    BadPayload,
    Blocked,
    DeadlineReached,
    LedgerError,
    NotConfigured,
    NotEntitled,
    RateLimited,
    SourceError,
    Unavailable,
)
from nq_pipeline.outcome import Outcome
from nq_pipeline.redaction import spellings, strike_data
from nq_pipeline.settings import check_databento_key
from nq_pipeline.sources.databento.transport import (
    Redirected,
    RefusedAnswer,
    Transport,
    travel,
)
from nq_pipeline.spend.money import is_amount
from nq_pipeline.transport.vendor_session import Policy

if TYPE_CHECKING:
    from nq_pipeline.spend.ledger import Mode, Spending

T = TypeVar("T")

FREE = (
    "available_end", "conditions", "cost", "count", "files", "job", "jobs", "price", "size", "unit_prices",
    "take",
)  # fmt: skip
"""Methods of `HistoricalClient` that cost nothing, downloads of a job that is paid among them."""
METERED = ("download", "download_to", "submit")
"""Those that cost money; there are no others."""

GROUPS = ("metadata", "timeseries", "symbology", "batch")
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
PIECE, MOST_PIECES = 2**20, 512
"""How an answer is unpacked, in bytes and pieces: no more than that is read of one."""
LONGEST_RECORD = 528
"""Bytes of the longest record, a definition with `ts_out`."""
WORDS_KEPT = 200
"""Characters of a vendor's own message that go into ours."""
GIB = 2**30
YEARS = range(1970, 2200)
"""A timestamp outside is no timestamp."""
FILENAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")
JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,60}")


class NothingThere(SourceError):
    """None of the symbols exists in the time asked about, as on a weekend: no fault of anyone."""

    outcome = Outcome.EMPTY


class Passing(Unavailable):
    """A fault of the kind that passes by itself: of the vendor's server, or of the way there."""


class EndsTooLate(Unavailable):
    """The question reaches beyond what is available; `available_end` in nanoseconds UTC."""

    def __init__(self, message: str, available_end: int) -> None:
        super().__init__(message)
        self.available_end = available_end


@dataclass(frozen=True, slots=True)
class Query:
    """One metered question: nanoseconds UTC, `start` included, `end` not; symbols are parents."""

    dataset: str
    schema: str
    symbols: tuple[str, ...]
    start: int
    end: int

    @property
    def arguments(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset,
            "schema": self.schema,
            "symbols": list(self.symbols),
            "stype_in": "parent",
            "start": self.start,
            "end": self.end,
        }


@dataclass(frozen=True, slots=True)
class Price:
    """What the vendor says a query costs.

    Attributes
    ----------
    usd
        0 where the plan includes it.
    size
        Bytes it would bill; None where it costs nothing.
    unit_usd
        The list's price per GiB; None where the price is not simply size times that.
    at
        When it said so.
    """

    usd: Decimal
    size: int | None
    unit_usd: Decimal | None
    at: datetime


@dataclass(frozen=True, slots=True)
class BatchJob:
    """A batch job: billed when it was submitted, then free to download until it expires."""

    id: str
    state: str
    query: Query | None
    received_at: int

    @property
    def done(self) -> bool:
        return self.state == "done"


@dataclass(frozen=True, slots=True)
class BatchFile:
    """A file of a batch job; `sha256` in hex."""

    name: str
    size: int
    sha256: str


class HistoricalClient:
    """Asks the historical API; every method raises nothing but `SourceError`, and `LedgerError` where
    a reservation is for something else.

    Parameters
    ----------
    url
        Base address; `https://hist.databento.com`, or any other that speaks its protocol.
    remaining
        Seconds left for this vendor.
    """

    def __init__(self, key: SecretStr, url: str, policy: Policy, remaining: Callable[[], float]) -> None:
        self._key = key
        self._url = url
        self._policy = policy
        self._remaining = remaining
        self._prices: dict[str, dict[str, dict[str, Decimal]]] = {}
        self._transport = Transport(policy, remaining, spellings({key.get_secret_value()}))

    def available_end(self, dataset: str, schemas: tuple[str, ...]) -> int:
        """Until when all the schemas have data, exclusive, nanoseconds UTC. Free."""
        found = self._ask(lambda client: client.metadata.get_dataset_range(dataset))
        try:
            by_schema = found.get("schema", {})
            return min(instant_ns(by_schema.get(schema, found)["end"]) for schema in schemas)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise BadPayload("the range of the dataset came in an unknown form") from None

    def cost(self, query: Query) -> Decimal:
        """What the query would cost in USD. Free. A price that is no price is a `BadPayload`."""
        return _usd(self._ask(lambda client: client.metadata.get_cost(**query.arguments)), query.schema)

    def size(self, query: Query) -> int:
        """The bytes the query would be billed for. Free."""
        return _number(
            self._ask(lambda client: client.metadata.get_billable_size(**query.arguments)), query.schema
        )

    def count(self, query: Query) -> int:
        """How many records the query has. Free."""
        return _number(
            self._ask(lambda client: client.metadata.get_record_count(**query.arguments)), query.schema
        )

    def unit_prices(self, dataset: str) -> dict[str, dict[str, Decimal]]:
        """USD per GiB, by mode and schema; the same for the life of the client. Free."""
        if dataset not in self._prices:
            told = self._ask(lambda client: client.metadata.list_unit_prices(dataset))
            try:
                self._prices[dataset] = {
                    str(one["mode"]): {name: _usd(usd, name) for name, usd in one["unit_prices"].items()}
                    for one in told
                }
            except (AttributeError, KeyError, TypeError):
                raise BadPayload("the list of prices came in an unknown form") from None
        return self._prices[dataset]

    def price(self, query: Query, mode: Mode = "historical-streaming") -> Price:
        """What the query costs, how many bytes that is, and at which price. Free."""
        at, usd = datetime.now(UTC), self.cost(query)
        if usd == 0:
            return Price(usd, None, None, at)
        size = self.size(query)
        unit = self.unit_prices(query.dataset).get(mode, {}).get(query.schema)
        # A part that the plan includes makes it cheaper than its bytes: then only the price itself holds.
        if unit is None or abs(size * unit / GIB - usd) > usd / 100:
            return Price(usd, size, None, at)
        return Price(max(usd, size * unit / GIB), size, unit, at)  # no less than what is committed later

    def conditions(self, dataset: str, first: date, last: date) -> dict[date, str]:
        """Condition of each UTC day that has data: available, degraded, pending or missing. Free."""
        told = self._ask(
            lambda client: client.metadata.get_dataset_condition(
                dataset, start_date=first.isoformat(), end_date=last.isoformat()
            )
        )
        try:
            return {date.fromisoformat(one["date"]): str(one["condition"]) for one in told}
        except (KeyError, TypeError, ValueError):
            raise BadPayload("the condition of the dataset came in an unknown form") from None

    def jobs(self, since: datetime) -> list[BatchJob]:
        """The batch jobs of the account since then that have not expired. Free."""
        told = self._ask(lambda client: client.batch.list_jobs(since=since.isoformat()))
        if not isinstance(told, list):
            raise BadPayload("the list of batch jobs came in an unknown form")
        return [_job(one) for one in told]

    def job(self, job_id: str) -> BatchJob:
        """One batch job. Free."""
        return _job(self._ask(lambda client: client.batch.get_job_details(job_id)))

    def files(self, job_id: str) -> list[BatchFile]:
        """The DBN files of a job that is done. Free.

        Raises `BadPayload` for a file that would be written, or fetched from, where it does not belong:
        the key goes along with the download.
        """
        told = self._ask(lambda client: client.batch.list_files(job_id))
        try:
            found = [
                BatchFile(
                    str(one["filename"]),
                    _number(int(one["size"]), "a job's file"),
                    str(one["hash"]).removeprefix("sha256:"),
                )
                for one in told
                if self._is_ours(str(one["urls"]["https"])) and FILENAME.fullmatch(str(one["filename"]))
            ]
        except (KeyError, OverflowError, TypeError, ValueError):
            raise BadPayload("the list of a job's files came in an unknown form") from None
        if len(found) < len(told):
            raise BadPayload("a job's file is named, or lies, where none of the vendor's should")
        return [file for file in found if file.name.endswith(".dbn.zst")]

    def take(self, job_id: str, file: BatchFile, folder: Path) -> Path:
        """Download a file of a job below `folder`; goes on where an attempt before stopped. Free."""

        def get(client: Any) -> Path:
            found: list[Path] = client.batch.download(job_id, folder, filename_to_download=file.name)
            return found[0]

        with self._transport.at_most(file.size):
            return self._ask(get)

    # ── metered ─────────────────────────────────────────────────────────────────────────────────

    def download(self, query: Query, spending: Spending) -> bytes:
        """The exact body of an answer of moderate size. Metered, whether or not it can be read.

        A body that was cut off on its way is a `BadPayload`; one that arrived whole is returned
        as it is, so that it can be archived before anybody judges it; only one that repeats the key is
        returned unpacked, with the key struck out.
        """

        def get(client: Any) -> bytes:
            with TemporaryDirectory(prefix="nq-databento-") as folder:
                path = Path(folder) / "answer.dbn.zst"
                _stream(client, query, path)
                return _without_key(path.read_bytes(), self._transport.secrets)

        return self._buy(get, query, spending, "historical-streaming")

    def download_to(self, query: Query, spending: Spending, path: Path, records: int) -> None:
        """Write the exact body of an answer to `path`, which must not be there yet. Metered.

        `records` is how many there are by the vendor's count; a body that has room for more is refused.
        """
        with self._transport.at_most(self._policy.max_data_bytes + records * LONGEST_RECORD):
            self._buy(lambda client: _stream(client, query, path), query, spending, "historical-streaming")

    def submit(self, query: Query, spending: Spending) -> BatchJob:
        """Submit a batch job for the query, as DBN split by UTC day. Metered: billed when it is accepted."""
        return _job(
            self._buy(
                lambda client: client.batch.submit_job(
                    **query.arguments, encoding="dbn", compression="zstd", split_duration="day"
                ),
                query,
                spending,
                "historical",
            )
        )

    @cached_property
    def _client(self) -> Any:
        return historical(self._key, self._url, timeout_s=self._policy.timeout_s, transport=self._transport)

    def _is_ours(self, url: str) -> bool:
        """Whether an address is of the server we ask, or one of the vendor's own."""
        parts, ours = urlsplit(url), urlsplit(self._url)
        if parts.username is not None:
            return False
        if (parts.scheme, parts.netloc) == (ours.scheme, ours.netloc):
            return True
        return parts.scheme == "https" and (parts.hostname or "").endswith(".databento.com")

    def _buy(self, question: Callable[[Any], T], query: Query, spending: Spending, mode: Mode) -> T:
        """Ask once, for the reservation; it is released when the vendor provably sent nothing."""
        charge = spending.reservation.charge
        if (charge.vendor, charge.dataset, charge.schema, charge.mode) != (
            "databento", query.dataset, query.schema, mode,
        ):  # fmt: skip
            raise LedgerError(f"the reservation is for {charge}, and {query.schema} ({mode}) was to be asked")
        try:
            client = self._client
            if self._remaining() <= 0:
                raise DeadlineReached("the time allowed ran out before it was asked")
        except SourceError as error:
            spending.release(f"not asked: {error}")
            raise
        try:
            return _within(self._remaining(), lambda: question(client))
        except Redirected as error:
            spending.release(f"refused before any data: {error}")
            raise
        except SourceError:
            raise
        except Exception as error:
            meant = _meaning(error)
            if _sent_nothing(error):
                spending.release(f"refused before any data: {meant}")
            raise meant from None

    def _ask(self, question: Callable[[Any], T]) -> T:
        """Ask, again after what passes by itself, until the time is over."""

        def once() -> T:
            return _within(self._remaining(), lambda: question(self._client))

        def pause(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            return (_retry_after(error) or 0.0) + tenacity.wait_random_exponential(multiplier=0.2, max=5)(
                state
            )

        def again(error: BaseException) -> bool:
            asked = _retry_after(error)
            longest = min(self._policy.retry_after_cap_s, self._remaining())
            return _passes(error) and (asked is None or asked <= longest)

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(again),
            wait=pause,
            stop=lambda s: s.attempt_number >= self._policy.attempts or s.upcoming_sleep >= self._remaining(),
            reraise=True,
        )
        try:
            return retrying(once)
        except SourceError:
            raise
        except Exception as error:
            # A vendor's body can make the client raise anything; an error that is a JSON list does.
            raise _meaning(error) from None


def historical(key: SecretStr, url: str, *, timeout_s: float, transport: Transport | None = None) -> Any:
    """The official client, asking `url`, by this transport if one is given.

    Raises
    ------
    NotConfigured
        The address is unusable, the key is empty or none, or this version of the client keeps its
        address in an unknown way.
    """
    import databento

    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise NotConfigured("NQ_DATABENTO_URL is no address; write it as https://hist.databento.com")
    if parts.scheme == "http" and parts.hostname not in LOOPBACK:
        raise NotConfigured(
            "NQ_DATABENTO_URL is plain http to another machine, which would send the key readably; use https"
        )
    check_databento_key(key, parts.hostname)
    try:
        client = databento.Historical(key=key.get_secret_value(), gateway=url)
    except ValueError:
        raise NotConfigured("DATABENTO_API_KEY is empty; copy the key from the vendor's portal") from None
    for group in GROUPS:
        api: Any = getattr(client, group, None)
        if getattr(api, "_base_url", None) != f"{client.gateway}/v0/{group}" or not hasattr(api, "TIMEOUT"):
            raise NotConfigured(
                f"databento {version('databento')} keeps its address in a way this program does not know; "
                "install version 0.88"
            )
        api.TIMEOUT = timeout_s
        if transport is not None and not travel(api, transport):
            raise NotConfigured(
                f"databento {version('databento')} asks in a way this program does not know; install version "
                "0.88"
            )
        if parts.scheme == "http":
            api._base_url = f"{url.rstrip('/')}/v0/{group}"
    return client


def instant_ns(text: str) -> int:
    """Nanoseconds UTC of an ISO 8601 instant with up to nine digits; ValueError when it is none."""
    plain = re.fullmatch(r"(\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d:\d\d(?:\.\d{1,9})?)?)(?:Z|\+00:00)?", text)
    if plain is None or int(plain[1][:4]) not in YEARS:  # others do not fit 64 bits, and wrap around
        raise ValueError(f"{text!r} is no UTC instant")
    return int(np.datetime64(plain[1], "ns").astype(np.int64))


def _stream(client: Any, query: Query, path: Path) -> None:
    """Write an answer as it comes; what of it arrived stays when it breaks off."""
    import requests
    from databento.common.error import BentoHttpError

    try:
        client.timeseries.get_range(**query.arguments, path=path)
    except (BentoHttpError, requests.RequestException):
        raise
    except Exception as error:
        # The client reads the head of what it has downloaded; here only the download counts.
        if not path.exists() or _was_cut(error):
            raise


def _without_key(body: bytes, secrets: Sequence[str]) -> bytes:
    """The body; where it has a key within its compression, unpacked and without it."""
    import zstandard

    if not body.startswith(ZSTD_MAGIC):
        return strike_data(body, secrets)

    def pieces() -> Iterator[bytes]:
        with suppress(zstandard.ZstdError):  # cut off or damaged: whoever reads it will say so
            reader = zstandard.ZstdDecompressor().stream_reader(body, read_across_frames=True)
            while piece := reader.read(PIECE):
                yield piece

    before, longest = b"", max(map(len, secrets), default=0)
    for piece in pieces():
        seen = before + piece
        if strike_data(seen, secrets) != seen:
            return strike_data(b"".join(islice(pieces(), MOST_PIECES)), secrets)
        before = seen[-longest:]
    return body


def _usd(price: Any, schema: str) -> Decimal:
    try:
        usd = Decimal(str(price))
    except InvalidOperation:
        usd = Decimal("NaN")
    if isinstance(price, bool) or not is_amount(usd):
        raise BadPayload(f"{schema}: the price came in an unknown form")
    return usd


def _number(value: Any, schema: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise BadPayload(f"{schema}: the number of records or bytes came in an unknown form")
    return value


def _job(told: Any) -> BatchJob:
    try:
        job_id = str(told["id"])
        if not JOB_ID.fullmatch(job_id):
            raise ValueError
        query = None
        ours = {"stype_in": "parent", "encoding": "dbn", "compression": "zstd"}
        if all(told.get(name) == ours[name] for name in ours) and not told.get("limit"):
            query = Query(
                str(told["dataset"]),
                str(told["schema"]),
                tuple(sorted(str(told["symbols"]).split(","))),
                instant_ns(told["start"]),
                instant_ns(told["end"]),
            )
        return BatchJob(job_id, str(told["state"]), query, instant_ns(told["ts_received"]))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise BadPayload("a batch job came in an unknown form") from None


def _sent_nothing(error: Exception) -> bool:
    """Whether a metered question provably brought no data: it never left, or was refused."""
    import requests
    from databento.common.error import BentoClientError
    from urllib3.exceptions import NewConnectionError

    if isinstance(error, BentoClientError):
        return error.http_status != 408
    reason = getattr(error.args[0] if error.args else None, "reason", None)
    return isinstance(error, requests.ConnectTimeout) or isinstance(reason, NewConnectionError)


def _within(seconds: float, work: Callable[[], T]) -> T:
    """The result of `work`, or `DeadlineReached` when it takes longer."""
    done: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            done.put((work(), None))
        except BaseException as error:  # also a panic in the client's compiled part, which is no Exception
            done.put((None, error))

    threading.Thread(target=run, daemon=True, name="databento").start()
    try:
        result, error = done.get(timeout=max(0.0, seconds))
    except queue.Empty:
        raise DeadlineReached("the time allowed ran out while waiting for an answer") from None
    if isinstance(error, RefusedAnswer):
        raise error.reason
    if error is not None and not isinstance(error, Exception):
        raise BadPayload(f"an answer the client could not read ({type(error).__name__})")
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def _passes(error: BaseException) -> bool:
    """Whether a fault is of the kind that passes by itself and cost nothing."""
    import requests
    from databento.common.error import BentoClientError, BentoServerError

    if isinstance(error, BentoClientError):
        return error.http_status == 408 or (error.http_status == 429 and _retry_after(error) is not None)
    broken = (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)
    return isinstance(error, (BentoServerError, *broken))


def _retry_after(error: BaseException | None) -> float | None:
    headers = getattr(error, "headers", None) or {}
    text = str(headers.get("Retry-After", "")).strip()
    return float(text) if text.isdecimal() else None


def _meaning(error: Exception) -> SourceError:
    """What an error of the client says about the vendor."""
    import requests
    from databento.common.error import BentoHttpError

    if isinstance(error, BentoHttpError):
        return _refusal(error)
    if isinstance(error, requests.exceptions.JSONDecodeError):
        return BadPayload("expected JSON, got something else")
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return BadPayload("the answer was cut off")
    if isinstance(error, requests.Timeout):
        return Passing("no answer in time")
    if isinstance(error, requests.RequestException):
        return Passing(f"no connection or no answer ({type(error).__name__})")
    if _was_cut(error):
        return BadPayload("the answer was cut off")
    return BadPayload(f"an answer the client could not read ({type(error).__name__})")


def _was_cut(error: Exception) -> bool:
    """Whether a download ended before its body did: the client says so in words alone."""
    return str(error).startswith("Error streaming response")


def _refusal(error: Any) -> SourceError:
    """What an HTTP error says, by status and the `case` of its body."""
    body = error.json_body if isinstance(error.json_body, dict) else {}
    detail = body.get("detail")
    detail = detail if isinstance(detail, dict) else {"message": detail if isinstance(detail, str) else ""}
    case, status = str(detail.get("case", "")), int(error.http_status)
    words = " ".join(str(detail.get("message", "")).split())[:WORDS_KEPT]
    said = f"HTTP {status}"
    said += f" {case}" if re.fullmatch(r"\w{1,64}", case) else ""
    said += f": {words}" if words else ""
    if status == 401 or "api_key" in case:
        return NotConfigured(f"DATABENTO_API_KEY was refused ({said}); copy the key from the vendor's portal")
    if status == 402:
        return NotEntitled(f"the account cannot pay ({said}); see its billing page")
    if status == 429:
        return RateLimited(f"too many requests ({said})")
    if "license" in case or "entitlement" in case or case == "dataset_unavailable_range":
        return NotEntitled(f"the plan does not include this ({said})")
    if status == 403:
        return Blocked(f"refused ({said})")
    if case.startswith("symbology_"):
        return NothingThere(f"nothing is listed there ({said})")
    if case == "data_end_after_available_end":
        payload = detail.get("payload")
        try:
            return EndsTooLate(said, instant_ns(str(payload["available_end"])))  # type: ignore[index]
        except (KeyError, TypeError, ValueError):
            return BadPayload(f"refused without saying how far the data reach ({said})")
    return (Passing if status >= 500 else Unavailable)(f"refused or failed ({said})")
