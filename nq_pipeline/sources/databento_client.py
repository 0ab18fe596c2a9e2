"""The official client of Databento's historical API, with what it leaves to its caller.

`databento.Historical` itself is used unmodified. Around it: an address of plain http on
loopback, an end in time, a few retries, and one kind of error. The client forces https and has
no parameter for it, so its private base address is set for a plain-http URL; the layout this
relies on is checked before it is touched. Its calls block without an overall time limit, so each
runs on a thread of its own that is left behind when the time allowed is over; a thread left
behind ends when the server closes or says nothing for `Policy.timeout_s`.

Nothing of databento is imported before the first question: the import takes a second.
"""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
import tenacity
from pydantic import SecretStr

from nq_pipeline.errors import (
    BadPayload,
    Blocked,
    DeadlineReached,
    NotConfigured,
    NotEntitled,
    RateLimited,
    SourceError,
    Unavailable,
)
from nq_pipeline.outcome import Outcome
from nq_pipeline.sources.exchange import Policy

T = TypeVar("T")

GROUPS = ("metadata", "timeseries", "symbology", "batch")
MAX_BODY_BYTES = 256 * 1024 * 1024
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
WORDS_KEPT = 200
"""Characters of a vendor's own message that go into ours."""


class NothingThere(SourceError):
    """None of the symbols exists in the time asked about, as on a weekend: no fault of anyone."""

    outcome = Outcome.EMPTY


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


class HistoricalClient:
    """Asks the historical API; every method raises nothing but `SourceError`.

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
        price = self._ask(lambda client: client.metadata.get_cost(**query.arguments))
        try:
            usd = Decimal(str(price))
        except InvalidOperation:
            usd = Decimal("NaN")
        if isinstance(price, bool) or not usd.is_finite() or usd < 0:
            raise BadPayload(f"{query.schema}: the price came in an unknown form")
        return usd

    def download(self, query: Query) -> bytes:
        """The exact body of an answer. Metered, whether or not the body can be read.

        A body that was cut off on its way is a `BadPayload`; one that arrived whole is returned
        as it is, so that it can be archived before anybody judges it.
        """

        def get(client: Any) -> bytes:
            import requests
            from databento.common.error import BentoHttpError

            with TemporaryDirectory(prefix="nq-databento-") as folder:
                path = Path(folder) / "answer.dbn.zst"
                try:
                    client.timeseries.get_range(**query.arguments, path=path)
                except (BentoHttpError, requests.RequestException):
                    raise
                except Exception as error:
                    # The client reads the head of what it has downloaded; here only the download counts.
                    if not path.exists() or _was_cut(error):
                        raise
                if path.stat().st_size > MAX_BODY_BYTES:
                    raise BadPayload(f"an answer larger than {MAX_BODY_BYTES >> 20} MiB was refused")
                return path.read_bytes()

        return self._ask(get)

    @cached_property
    def _client(self) -> Any:
        return historical(self._key, self._url, timeout_s=self._policy.timeout_s)

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
            raise _meaning(error, self._key.get_secret_value()) from None


def historical(key: SecretStr, url: str, *, timeout_s: float) -> Any:
    """The official client, asking `url`.

    Raises
    ------
    NotConfigured
        The address is unusable, the key is empty, or this version of the client keeps its
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
    try:
        client = databento.Historical(key=key.get_secret_value(), gateway=url)
    except ValueError:
        raise NotConfigured("DATABENTO_API_KEY is empty; copy the key from the vendor's portal") from None
    for group in GROUPS:
        api: Any = getattr(client, group, None)
        if getattr(api, "_base_url", None) != f"{client.gateway}/v0/{group}" or not hasattr(api, "TIMEOUT"):
            raise NotConfigured(
                f"databento {version('databento')} keeps its address in a way this program does not know; "
                "install version 0.87"
            )
        api.TIMEOUT = timeout_s
        if parts.scheme == "http":
            api._base_url = f"{url.rstrip('/')}/v0/{group}"
    return client


def instant_ns(text: str) -> int:
    """Nanoseconds UTC of an ISO 8601 instant with up to nine digits; ValueError when it is none."""
    plain = re.fullmatch(r"(\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d:\d\d(?:\.\d{1,9})?)?)(?:Z|\+00:00)?", text)
    if plain is None:
        raise ValueError(f"{text!r} is no UTC instant")
    return int(np.datetime64(plain[1], "ns").astype(np.int64))


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
    return float(text) if text.isdigit() else None


def _meaning(error: Exception, secret: str) -> SourceError:
    """What an error of the client says about the vendor."""
    import requests
    from databento.common.error import BentoHttpError

    if isinstance(error, BentoHttpError):
        return _refusal(error, secret)
    if isinstance(error, requests.exceptions.JSONDecodeError):
        return BadPayload("expected JSON, got something else")
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return BadPayload("the answer was cut off")
    if isinstance(error, requests.Timeout):
        return Unavailable("no answer in time")
    if isinstance(error, requests.RequestException):
        return Unavailable(f"no connection or no answer ({type(error).__name__})")
    if _was_cut(error):
        return BadPayload("the answer was cut off")
    return BadPayload(f"an answer the client could not read ({type(error).__name__})")


def _was_cut(error: Exception) -> bool:
    """Whether a download ended before its body did: the client says so in words alone."""
    return str(error).startswith("Error streaming response")


def _refusal(error: Any, secret: str) -> SourceError:
    """What an HTTP error says, by status and the `case` of its body."""
    body = error.json_body if isinstance(error.json_body, dict) else {}
    detail = body.get("detail")
    detail = detail if isinstance(detail, dict) else {"message": detail if isinstance(detail, str) else ""}
    case, status = str(detail.get("case", "")), int(error.http_status)
    words = " ".join(str(detail.get("message", "")).split()).replace(secret, "***")[:WORDS_KEPT]
    said = f"HTTP {status}"
    said += f" {case}" if re.fullmatch(r"\w{1,64}", case) else ""
    said += f": {words}" if words else ""
    if status == 401:
        return NotConfigured(f"DATABENTO_API_KEY was refused ({said}); copy the key from the vendor's portal")
    if status == 402:
        return NotEntitled(f"the account cannot pay ({said}); see its billing page")
    if status == 429:
        return RateLimited(f"too many requests ({said})", retry_after_s=_retry_after(error))
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
    return Unavailable(f"refused or failed ({said})")
