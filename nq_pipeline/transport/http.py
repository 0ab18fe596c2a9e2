"""The HTTP session of a vendor: rate-limited, retried after transient failures, bounded in time and size."""

from __future__ import annotations

import logging
import math
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import requests
import tenacity
from pyrate_limiter import Duration, Limiter, Rate, SQLiteBucket
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from requests.utils import get_encoding_from_headers
from requests_ratelimiter import LimiterMixin
from requests_ratelimiter.buckets import HostBucketFactory
from urllib3.exceptions import DecodeError, HTTPError, IncompleteRead, ProtocolError, ReadTimeoutError

from nq_pipeline.errors import BadPayload, DeadlineReached, Unavailable
from nq_pipeline.leases.states import SharedStates
from nq_pipeline.redaction import LONG, redact, redact_data
from nq_pipeline.transport.policy import Policy, retry_wait
from nq_pipeline.transport.shared_bucket import SharedBucket

KEPT_HEADERS = ("content-type", "x-amzn-waf-action", "retry-after", "x-warning", "request-id")

log = logging.getLogger(__name__)

TRANSIENT_STATUS = frozenset({429, 500, 502, 503, 504})
SQLITE_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class TruncatedAnswer(Exception):
    """A body ended before its announced length; the message is the length received."""


class _Adapter(HTTPAdapter):
    """Reads the whole body within a deadline and a size limit, and collects the session cookies."""

    def __init__(self, remaining: Callable[[], float], max_bytes: int, cookies: set[str]) -> None:
        super().__init__(max_retries=0)
        self._remaining, self._max_bytes, self._cookies = remaining, max_bytes, cookies

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:  # type: ignore[override]
        # Only now, because the wait for the rate limit is over.
        timeout = max(0.05, min(kwargs["timeout"], self._remaining()))
        response = super().send(request, **{**kwargs, "stream": True, "timeout": timeout})
        self._cookies |= set(_session_cookies(request, response))
        read_whole(response, self._max_bytes, self._remaining)
        return response


def read_whole(response: requests.Response, max_bytes: int, remaining: Callable[[], float]) -> None:
    """Read a streamed response to its end; raises `BadPayload`, `DeadlineReached` or `TruncatedAnswer`."""
    try:
        response._content = _read(response.raw, max_bytes, remaining)
    except BaseException:
        response.raw.close()  # with its connection: the rest of this body must not answer the next request
        raise
    response._content_consumed = True  # type: ignore[attr-defined]
    response.raw.release_conn()


def redact_response(response: requests.Response, secrets: Iterable[str]) -> None:
    """Redact secrets from a response, and drop the headers that nobody reads."""
    secrets = tuple(secrets)
    if response._content:
        response._content = redact_data(response._content, secrets)
    response.reason = redact(response.reason or "", secrets)
    kept = {name: response.headers[name] for name in KEPT_HEADERS if name in response.headers}
    response.headers = CaseInsensitiveDict({name: redact(value, secrets) for name, value in kept.items()})
    response.encoding = get_encoding_from_headers(response.headers)  # requests derived it from all headers


def _read(raw: Any, max_bytes: int, remaining: Callable[[], float]) -> bytes:
    body = bytearray()
    try:
        while chunk := raw.read1(1 << 18, decode_content=True):
            body += chunk
            if len(body) > max_bytes:
                raise BadPayload(f"an answer larger than {max_bytes:,} bytes was refused")
            if remaining() <= 0:
                raise DeadlineReached("the time allowed ran out while an answer was still arriving")
    except (IncompleteRead, ProtocolError):
        raise TruncatedAnswer(f"{len(body):,} bytes") from None
    if raw.length_remaining:
        raise TruncatedAnswer(f"{len(body):,} bytes")
    return bytes(body)


def _session_cookies(request: requests.PreparedRequest, response: requests.Response) -> list[str]:
    """The long cookies of a request and its response: secrets, because they open the session."""
    pairs = [pair.partition("=")[2] for pair in str(request.headers.get("Cookie") or "").split(";")]
    set_now = [cookie.value or "" for cookie in response.cookies]
    return [value for value in (*pairs, *set_now) if len(value) >= LONG]


class _LimitedSession(LimiterMixin, requests.Session):
    """A rate-limited session."""

    def close(self) -> None:
        super().close()
        self.limiter.bucket_factory.close()  # the library stops only threads that it started itself


def open_http(
    source: str,
    policy: Policy,
    *,
    state_dir: Path,
    remaining: Callable[[], float],
    cookies: set[str],
    states: SharedStates | None = None,
) -> requests.Session:
    """A session whose rate limit all processes that use `state_dir` share, or all machines by `states`.

    `cookies` is the set that receives every session cookie.
    """
    rates = _rates(policy.per_minute, policy.spacing_s)
    session: Any = requests.Session()
    if rates:
        if states is not None:
            shared = {"states": states, "name": f"{source}-rate"}
            buckets = HostBucketFactory(rates, SharedBucket, shared, bucket_name=source)
        else:
            state_dir.mkdir(parents=True, exist_ok=True)
            path = state_dir / f"{source}-rate.sqlite"
            _drop_if_damaged(path)
            memory = {"path": path, "use_file_lock": True}
            buckets = HostBucketFactory(rates, SQLiteBucket, memory, bucket_name=source)
        session = _LimitedSession(limiter=Limiter(buckets, buffer_ms=50), bucket_name=source)
    adapter = _Adapter(remaining, policy.max_bytes, cookies)
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    session.trust_env = False  # no netrc, no proxies: a key goes where the settings say and nowhere else
    return session  # type: ignore[no-any-return]


def _rates(per_minute: int, spacing_s: float) -> list[Rate]:
    """The limits as rates, without one that the other implies, which the limiter would refuse."""
    minute = [Rate(per_minute, Duration.MINUTE)] if per_minute and per_minute * spacing_s < 60 else []
    spaced = (
        [Rate(1, max(1, round(spacing_s * 1_000)))] if spacing_s and not (minute and per_minute == 1) else []
    )
    return spaced + minute


def send(
    session: Any,
    method: str,
    url: str,
    policy: Policy,
    *,
    remaining: Callable[[], float],
    params: Mapping[str, Any] | None = None,
    json: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> requests.Response:
    """Send one request; repeat it after transient faults while time is left.

    A transient status (`TRANSIENT_STATUS`) or a broken connection is retried after `policy.retry_wait`
    and a jittered backoff. The last response is returned whatever its status. POST is sent once.
    Raises `DeadlineReached`, `Unavailable` or `BadPayload`.
    """

    def once() -> requests.Response:
        if hasattr(session, "max_delay"):
            session.max_delay = remaining()
        return session.request(  # type: ignore[no-any-return]
            method,
            url,
            params=params,
            json=json,
            headers=headers,
            timeout=policy.timeout_s,
            allow_redirects=False,
        )

    def pause(state: tenacity.RetryCallState) -> float:
        backoff = tenacity.wait_random_exponential(multiplier=0.2, max=5)(state)
        if state.outcome is None or state.outcome.failed:
            return backoff
        response = state.outcome.result()
        return backoff + (retry_wait(response.status_code, response.headers, policy, math.inf) or 0.0)

    def again(state: tenacity.RetryCallState) -> bool:
        assert state.outcome is not None
        if state.outcome.failed:
            error = state.outcome.exception()
            return isinstance(error, (TruncatedAnswer, requests.ConnectionError)) and not _rate_limit(error)
        response = state.outcome.result()
        if response.status_code not in TRANSIENT_STATUS:
            return False
        return retry_wait(response.status_code, response.headers, policy, remaining()) is not None

    allowed = policy.attempts if method == "GET" else 1
    retrying = tenacity.Retrying(
        stop=lambda state: state.attempt_number >= allowed or state.upcoming_sleep >= remaining(),
        wait=pause,
        retry=again,
        retry_error_callback=lambda state: state.outcome.result(),  # type: ignore[union-attr]
    )
    try:
        return retrying(once)
    except TruncatedAnswer as error:
        raise BadPayload(f"the answer was cut off after {error}") from None
    except DecodeError:
        raise BadPayload("the answer's compression is broken") from None
    except (requests.Timeout, ReadTimeoutError) as error:
        if _rate_limit(error):
            raise DeadlineReached("the rate limit of the plan leaves no time for more requests") from None
        if remaining() <= 0.05:
            raise DeadlineReached("the time allowed ran out while waiting for an answer") from None
        raise Unavailable(f"no answer within {policy.timeout_s:g} s") from None
    except (requests.RequestException, HTTPError) as error:
        raise Unavailable(f"no connection or no answer ({type(error).__name__})") from None


def _rate_limit(error: BaseException | None) -> bool:
    # requests-ratelimiter reports its own limit as a plain Timeout; only the text tells it apart.
    return isinstance(error, requests.Timeout) and "Rate limit not cleared" in str(error)


def _drop_if_damaged(path: Path) -> None:
    """Remove the rate limiter's database if it is damaged; the limiter creates a new one."""
    if not path.exists():
        return
    try:
        with closing(sqlite3.connect(path)) as database:
            sound = database.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)
    except sqlite3.DatabaseError as error:
        # Busy, full or out of reach is not damage.
        sound = getattr(error, "sqlite_errorcode", 0) & 0xFF not in SQLITE_DAMAGE
    if not sound:
        log.warning("the rate limiter's database %s is damaged; a new one is created", path)
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
