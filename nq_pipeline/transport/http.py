"""The HTTP session of a vendor: cached, rate-limited, bounded in time and size.

requests-cache above requests-ratelimiter above one adapter of ours, so that a cached answer
costs no budget and a body is read under the deadline. The adapter also takes what must not be kept (cookies,
headers nobody reads, secrets the vendor repeats) out of a response before the cache sees it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import requests
import tenacity
from pyrate_limiter import Duration, Limiter, Rate, SQLiteBucket
from requests.adapters import HTTPAdapter
from requests.cookies import RequestsCookieJar
from requests.structures import CaseInsensitiveDict
from requests.utils import get_encoding_from_headers
from requests_cache import CacheMixin
from requests_cache.cache_keys import create_key
from requests_cache.policy.expiration import DO_NOT_CACHE
from requests_ratelimiter import LimiterMixin
from requests_ratelimiter.buckets import HostBucketFactory
from urllib3.exceptions import DecodeError, HTTPError, IncompleteRead, ProtocolError, ReadTimeoutError
from urllib3.response import HTTPResponse

from nq_pipeline.errors import BadPayload, DeadlineReached, Unavailable
from nq_pipeline.redaction import LONG, spellings, strike, strike_data
from nq_pipeline.transport.http_cache import HttpCache, drop_if_damaged
from nq_pipeline.transport.vendor_session import KEPT_HEADERS

STAMP_HEADER = "X-NQ-Stamp"
"""Rides on a cached response: `<snapshot ns>:<request id>` of the first asking."""

TRANSIENT_STATUS = frozenset({500, 502, 503, 504})
IGNORED = [
    "apiKey", "apikey", "api_key", "key", "token", "accessToken", "password", "sec", "cid", "p-ticket",
    "Authorization", "Cookie", "X-XSRF-TOKEN",
]  # fmt: skip
"""Parameters and headers that are no part of a cache key and are struck out of what is kept."""


class TruncatedAnswer(Exception):
    """A body ended before its announced length; says how much of it came."""


class _Adapter(HTTPAdapter):
    """Reads the whole body under a deadline and a size bound, and stamps it for the cache."""

    def __init__(
        self,
        remaining: Callable[[], float],
        max_bytes: int,
        secrets: Sequence[str] = (),
        configured: Sequence[str] = (),
    ) -> None:
        super().__init__(max_retries=0)
        self._remaining = remaining
        self._max_bytes = max_bytes
        self._secrets = secrets  # the session's own list: it grows with what the vendor hands out
        self._configured = configured
        self._cookies: frozenset[str] = frozenset()

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:  # type: ignore[override]
        stamp = request.headers.pop(STAMP_HEADER, "")
        kwargs["stream"] = True
        response = super().send(request, **kwargs)
        # What has no stamp is not kept: a login may hand out the same token again.
        known = self._secrets if stamp else self._configured
        self._cookies |= set(_cookies(request, response))  # they may hold after others took their place
        secrets = (*known, *spellings(self._cookies))
        read_whole(response, self._max_bytes, self._remaining, secrets)
        response.headers[STAMP_HEADER] = response.raw.headers[STAMP_HEADER] = stamp
        response.cookies.clear()
        request._cookies = RequestsCookieJar()  # type: ignore[attr-defined]
        return response


def read_whole(
    response: requests.Response, max_bytes: int, remaining: Callable[[], float], secrets: Iterable[str]
) -> None:
    """Read a streamed response to its end, without secrets and without headers that nobody reads.

    Raises
    ------
    BadPayload, DeadlineReached, CutOff
    """
    raw = response.raw
    try:
        body = _read(raw, max_bytes, remaining)
    except BaseException:
        raw.close()  # with its connection: the rest of this body must not answer the next question
        raise
    raw.release_conn()
    body, reason = strike_data(body, secrets), strike(response.reason or "", secrets)
    clean_headers(response, secrets)
    response.reason = reason
    # The session takes its cookies from `_original_response`; the cache never sees them.
    response.raw = HTTPResponse(
        body=io.BytesIO(body), headers=dict(response.headers), status=raw.status, reason=reason,
        version=raw.version, preload_content=False, original_response=raw._original_response,
        request_url=raw._request_url,
    )  # fmt: skip


def clean_headers(response: requests.Response, secrets: Iterable[str]) -> None:
    """Leave the headers of a response that somebody reads, without secrets."""
    kept = {name: response.headers[name] for name in KEPT_HEADERS if name in response.headers}
    response.headers = CaseInsensitiveDict({name: strike(value, secrets) for name, value in kept.items()})
    response.encoding = get_encoding_from_headers(response.headers)  # was of the headers as they came


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


def _cookies(request: requests.PreparedRequest, response: requests.Response) -> list[str]:
    """The session cookies that a request carried and its response sets: keys for as long as they hold."""
    pairs = [pair.partition("=")[2] for pair in str(request.headers.get("Cookie") or "").split(";")]
    set_now = [cookie.value or "" for cookie in response.cookies]
    return [value for value in (*pairs, *set_now) if len(value) >= LONG]


class _Session(CacheMixin, requests.Session):
    """Cached, no rate limit."""


class _LimitedSession(CacheMixin, LimiterMixin, requests.Session):
    """Cached and rate-limited; a hit costs no budget."""

    def close(self) -> None:
        super().close()  # type: ignore[no-untyped-call]
        self.limiter.bucket_factory.close()  # its thread: the library ends only those it began itself


def session(
    source: str,
    *,
    per_minute: int,
    spacing_s: float,
    state_dir: Path,
    pinned: datetime | None,
    remaining: Callable[[], float],
    max_bytes: int,
    secrets: Sequence[str],
    configured: Sequence[str],
) -> requests.Session:
    """A session whose cache and rate limit are shared by all processes using `state_dir`."""
    state_dir.mkdir(parents=True, exist_ok=True)
    instant = pinned.isoformat() if pinned else ""

    def key(request: Any, **kwargs: Any) -> str:
        # A frozen instant is part of the question: another instant is another answer.
        return create_key(request, **kwargs) + instant

    options: dict[str, Any] = {
        "backend": HttpCache(state_dir / f"{source}-http.sqlite"),
        "key_fn": key,
        "ignored_parameters": IGNORED,
        "allowable_codes": (200,),
        "allowable_methods": ("GET",),
        "stale_if_error": False,
        "cache_control": False,
    }
    rates = _rates(per_minute, spacing_s)
    made: Any
    if rates:
        drop_if_damaged(state_dir / f"{source}-rate.sqlite")
        memory = {"path": state_dir / f"{source}-rate.sqlite", "use_file_lock": True}
        buckets = HostBucketFactory(rates, SQLiteBucket, memory, bucket_name=source)
        made = _LimitedSession(**options, limiter=Limiter(buckets, buffer_ms=50), bucket_name=source)
    else:
        made = _Session(**options)
    adapter = _Adapter(remaining, max_bytes, secrets, configured)
    made.mount("https://", adapter)
    made.mount("http://", adapter)
    made.trust_env = False  # no netrc, no proxies: a key goes where the settings say and nowhere else
    return made  # type: ignore[no-any-return]


def _rates(per_minute: int, spacing_s: float) -> list[Rate]:
    """One request per spacing, so many a minute; the limiter refuses a rate that the other implies."""
    minute = [Rate(per_minute, Duration.MINUTE)] if per_minute and per_minute * spacing_s < 60 else []
    spaced = (
        [Rate(1, max(1, round(spacing_s * 1_000)))] if spacing_s and not (minute and per_minute == 1) else []
    )
    return spaced + minute


def send(
    session: Any,
    method: str,
    url: str,
    *,
    timeout_s: float,
    attempts: int,
    retry_after_cap_s: float,
    remaining: Callable[[], float],
    params: Mapping[str, Any],
    json: Mapping[str, Any] | None,
    headers: Mapping[str, str],
    expires: datetime | None,
    refresh: bool,
) -> requests.Response:
    """Send one question, again after transient faults while time is left.

    A server fault is asked again with jittered backoff, HTTP 429 after its Retry-After when
    that is short enough; the last response is returned whatever its status. POST is sent once.

    Raises
    ------
    DeadlineReached, Unavailable, BadPayload
    """

    def once() -> requests.Response:
        if hasattr(session, "max_delay"):
            session.max_delay = remaining()
        timeout = max(0.05, min(timeout_s, remaining()))
        return session.request(  # type: ignore[no-any-return]
            method, url, params=params, json=json, headers=headers, timeout=(timeout, timeout),
            expire_after=DO_NOT_CACHE if expires is None else expires, force_refresh=refresh,
            allow_redirects=False,
        )  # fmt: skip

    def pause(state: tenacity.RetryCallState) -> float:
        backoff = tenacity.wait_random_exponential(multiplier=0.2, max=5)(state)
        response = state.outcome.result() if state.outcome and not state.outcome.failed else None
        asked = retry_after(response) if response is not None else None
        return backoff if asked is None else asked + backoff

    def again(state: tenacity.RetryCallState) -> bool:
        assert state.outcome is not None
        if state.outcome.failed:
            error = state.outcome.exception()
            return isinstance(error, (TruncatedAnswer, requests.ConnectionError)) and not _rate_limit(error)
        response = state.outcome.result()
        asked = retry_after(response)
        if asked is not None and asked > min(retry_after_cap_s, remaining()):
            return False
        return response.status_code in TRANSIENT_STATUS or (response.status_code == 429 and asked is not None)

    allowed = attempts if method == "GET" else 1
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
        raise Unavailable(f"no answer within {timeout_s:g} s") from None
    except (requests.RequestException, HTTPError) as error:
        raise Unavailable(f"no connection or no answer ({type(error).__name__})") from None


def kept(session: Any, url: str, params: Mapping[str, Any]) -> bool:
    """Whether a GET would be answered from the cache."""
    request = requests.Request("GET", url, params=params)
    response = session.cache.get_response(session.cache.create_key(request))
    return response is not None and not response.is_expired


def retry_after(response: requests.Response) -> float | None:
    """Seconds the vendor asks to wait; None when it does not say (or says it as a date)."""
    text = response.headers.get("Retry-After", "").strip()
    return float(text) if text.isdecimal() else None


def _rate_limit(error: BaseException | None) -> bool:
    # requests-ratelimiter reports its own limit as a plain Timeout; only the text tells it apart.
    return isinstance(error, requests.Timeout) and "Rate limit not cleared" in str(error)
