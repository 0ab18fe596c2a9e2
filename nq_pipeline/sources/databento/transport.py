"""The official client's HTTP: bounded in size and time, to one host, with the key redacted in answers.

The client calls `requests.get` and `requests.post` in its own modules and has no parameter for a session. So
those modules get a `requests` of ours, which sends through the transport that a client's headers carry, and
through the real one for other clients. A bad answer passes the client as a `RefusedAnswer`, which is no
`Exception`, because the client retries or renames those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter

from nq_pipeline.dbn.layout import ZSTD_MAGIC
from nq_pipeline.disk import Room
from nq_pipeline.errors import BadPayload, DeadlineReached, RateLimited, SourceError, Unavailable
from nq_pipeline.redaction import redact_logs
from nq_pipeline.settings.base import LOOPBACK
from nq_pipeline.transport.policy import Policy, retry_wait

MODULES = ("databento.common.http", "databento.historical.api.batch")
"""The modules in which the client sends requests."""
MAX_HEADER_BYTES = 16 * 1024 * 1024
"""The client reads the header of a download at once, however long it claims to be."""
HEADER_WITHIN_BYTES = 256 * 1024
"""The start of a compressed header lies within one zstd block, which is no longer than this."""


class RefusedAnswer(BaseException):
    """A refused answer and its reason; it passes the client's own `except Exception`."""

    def __init__(self, reason: SourceError) -> None:
        super().__init__(str(reason))
        self.reason = reason


@dataclass
class Transport:
    """Sends the requests of one client, with `secrets` struck out of every answer.

    `remaining` returns the seconds left for this vendor; the next download may have `max_download` bytes, and
    gives back the `room` that is reserved for it as it arrives.
    """

    policy: Policy
    remaining: Callable[[], float]
    secrets: Sequence[str] = field(default=(), repr=False)
    max_download: int = field(init=False)
    room: Room | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.max_download = self.policy.max_data_bytes
        redact_logs(self.secrets)

    @contextmanager
    def limit_bytes(self, size: int) -> Iterator[None]:
        """Limit downloads to so many bytes."""
        before, self.max_download = self.max_download, size
        try:
            yield
        finally:
            self.max_download = before

    def request(self, method: str, url: str, **options: Any) -> requests.Response:
        options.setdefault("timeout", self.policy.timeout_s)  # the client's downloads of files have none
        with requests.Session() as session:
            session.trust_env = urlsplit(url).hostname not in LOOPBACK  # a proxy does not reach this machine
            adapter = _Adapter(self)
            session.mount("https://", adapter)
            session.mount("http://", adapter)
            return session.request(method, url, **{**options, "allow_redirects": False})


class _Adapter(HTTPAdapter):
    def __init__(self, transport: Transport) -> None:
        super().__init__(max_retries=0)
        self._transport = transport

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:  # type: ignore[override]
        from nq_pipeline.transport import http  # its libraries are slow to import

        transport, streamed = self._transport, bool(kwargs.get("stream"))
        if transport.remaining() <= 0:
            raise RefusedAnswer(DeadlineReached("the time allowed ran out before the request was sent"))
        response = super().send(request, **{**kwargs, "stream": True})
        try:
            self._check(response, streamed)
            if streamed and response.ok:
                response.raw = _Download(response.raw, transport)
            else:
                http.read_whole(response, transport.policy.max_bytes, transport.remaining)
            http.redact_response(response, transport.secrets)
        except SourceError as error:
            response.raw.close()
            raise RefusedAnswer(error) from None
        except http.TruncatedAnswer as error:
            raise requests.exceptions.ChunkedEncodingError(str(error)) from None
        response.cookies.clear()
        return response

    def _check(self, response: requests.Response, streamed: bool) -> None:
        if 300 <= response.status_code < 400:
            raise Redirected(
                f"Databento's address redirects elsewhere (HTTP {response.status_code}); "
                "redirects are not followed, so check NQ_DATABENTO_URL"
            )
        if not (streamed and response.status_code == 429 and response.request.method == "GET"):
            return
        # The client itself sleeps for as long as Retry-After says, however long that is.
        policy, remaining_s = self._transport.policy, self._transport.remaining()
        if retry_wait(response.status_code, response.headers, policy, remaining_s) is None:
            raise RateLimited("too many requests (HTTP 429)")


class Redirected(Unavailable):
    """The answer is another address instead of data."""


class _Download:
    """The body of a download, which is refused when it is too long or takes too long."""

    def __init__(self, raw: Any, transport: Transport) -> None:
        self._raw, self._remaining, self._max_bytes = raw, transport.remaining, transport.max_download
        self._room = transport.room

    def stream(self, amt: int, decode_content: bool = True) -> Iterator[bytes]:
        size = 0
        start: bytes | None = b""
        for chunk in self._raw.stream(amt, decode_content=decode_content):
            size += len(chunk)
            if size > self._max_bytes:
                self._refuse(BadPayload(f"an answer larger than {self._max_bytes >> 20} MiB was refused"))
            if self._remaining() <= 0:
                self._refuse(DeadlineReached("the time allowed ran out while an answer was still arriving"))
            if self._room:
                self._room.give_back(len(chunk))
            if start is not None:
                start += chunk
                length = _claimed_header_length(start)
                if length is None and len(start) < HEADER_WITHIN_BYTES:
                    continue
                if (length or 0) > MAX_HEADER_BYTES:
                    self._refuse(BadPayload(f"a header that claims {length:,} bytes was refused"))
                chunk, start = start, None
            yield chunk
        if start:
            yield start

    def _refuse(self, reason: SourceError) -> None:
        self._raw.close()  # with its connection
        raise RefusedAnswer(reason)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)


def _claimed_header_length(start: bytes) -> int | None:
    """The length that a compressed header claims; None until it is known, 0 for an uncompressed body."""
    if len(start) < len(ZSTD_MAGIC):
        return None
    if not start.startswith(ZSTD_MAGIC):
        return 0
    import zstandard

    try:
        plain = zstandard.ZstdDecompressor().stream_reader(start).read(8)
    except zstandard.ZstdError:
        return None
    return 8 + int.from_bytes(plain[4:8], "little") if len(plain) == 8 and plain[:3] == b"DBN" else None


class _Headers(dict[str, str]):
    """A client's headers, which carry its transport."""

    def __init__(self, headers: dict[str, str], transport: Transport) -> None:
        super().__init__(headers)
        self.transport = transport

    def copy(self) -> _Headers:
        return _Headers(self, self.transport)


class _Requests:
    """`requests`, as the client's modules see it."""

    def get(self, url: str, **options: Any) -> requests.Response:
        return self._send("GET", url, options)

    def post(self, url: str, **options: Any) -> requests.Response:
        return self._send("POST", url, options)

    def _send(self, method: str, url: str, options: dict[str, Any]) -> requests.Response:
        transport = getattr(options.get("headers"), "transport", requests)
        answer: requests.Response = transport.request(method, url, **options)
        return answer

    def __getattr__(self, name: str) -> Any:
        return getattr(requests, name)


def use_transport(api: Any, transport: Transport) -> bool:
    """Route one group of the client's requests through a transport; False for an unknown client layout."""
    modules: list[ModuleType] = [import_module(name) for name in MODULES]
    known = all(getattr(module, "requests", None) is requests for module in modules)
    ours = all(isinstance(getattr(module, "requests", None), _Requests) for module in modules)
    if not (known or ours) or type(getattr(api, "_headers", None)) is not dict:
        return False
    if known:
        replacement = _Requests()
        for module in modules:
            module.requests = replacement  # type: ignore[attr-defined]
    api._headers = _Headers(api._headers, transport)
    return True
