"""How the official client's questions travel: bounded in size and time, to one host, without the key in
what comes back.

The client asks by `requests.get` and `requests.post` of its own modules and has no parameter for a
session. So those two modules are given another `requests`, which asks through the transport that a
client's headers carry, and through the real one where they carry none: clients that others made in
this process are not touched. What a bad answer means passes the client as a `RefusedAnswer`, which is no
`Exception`, since the client retries or renames those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from nq_pipeline.dbn.layout import ZSTD_MAGIC
from nq_pipeline.errors import BadPayload, DeadlineReached, RateLimited, SourceError, Unavailable
from nq_pipeline.redaction import redact_logs
from nq_pipeline.transport.policy import Policy

MODULES = ("databento.common.http", "databento.historical.api.batch")
"""Where the client asks from."""
MAX_HEAD_BYTES = 16 * 1024 * 1024
"""The client reads the head of a download at once, however long it claims to be."""
HEAD_SEEN_BYTES = 256 * 1024
"""Compressed, the first bytes of a head lie within a block, which is no longer than this."""


class RefusedAnswer(BaseException):
    """An answer that was refused; `reason` says why. Passes the client's own `except Exception`."""

    def __init__(self, reason: SourceError) -> None:
        super().__init__(str(reason))
        self.reason = reason


@dataclass
class Transport:
    """Asks for one client.

    Parameters
    ----------
    remaining
        Seconds left for this vendor.
    secrets
        Struck out of whatever comes back.

    Attributes
    ----------
    most
        Bytes that the next download may have.
    """

    policy: Policy
    remaining: Callable[[], float]
    secrets: Sequence[str] = field(default=(), repr=False)
    most: int = field(init=False)

    def __post_init__(self) -> None:
        self.most = self.policy.max_data_bytes
        redact_logs(self.secrets)

    @contextmanager
    def limit_bytes(self, size: int) -> Iterator[None]:
        """Let downloads have so many bytes, and no more."""
        before, self.most = self.most, size
        try:
            yield
        finally:
            self.most = before

    def request(self, method: str, url: str, **options: Any) -> requests.Response:
        options.setdefault("timeout", self.policy.timeout_s)  # the client's downloads of files have none
        with requests.Session() as session:
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
            raise RefusedAnswer(DeadlineReached("the time allowed ran out before it was asked"))
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
        from nq_pipeline.transport import http

        if 300 <= response.status_code < 400:
            raise Redirected(
                f"Databento's address sends the question elsewhere (HTTP {response.status_code}), which is "
                "not followed; check NQ_DATABENTO_URL"
            )
        if not (streamed and response.status_code == 429 and response.request.method == "GET"):
            return
        asked = http.retry_after(response)  # the client would sleep for as long as it says
        longest = min(self._transport.policy.retry_after_cap_s, self._transport.remaining())
        if asked is None or asked > longest:
            raise RateLimited("too many requests (HTTP 429)")


class Redirected(Unavailable):
    """The answer is another address instead of data."""


class _Download:
    """The body of a download, which ends when it is too long or takes too long."""

    def __init__(self, raw: Any, transport: Transport) -> None:
        self._raw, self._remaining, self._most = raw, transport.remaining, transport.most

    def stream(self, amt: int, decode_content: bool = True) -> Iterator[bytes]:
        size = 0
        head: bytes | None = b""
        for chunk in self._raw.stream(amt, decode_content=decode_content):
            size += len(chunk)
            if size > self._most:
                self._refuse(BadPayload(f"an answer larger than {self._most >> 20} MiB was refused"))
            if self._remaining() <= 0:
                self._refuse(DeadlineReached("the time allowed ran out while an answer was still arriving"))
            if head is not None:
                head += chunk
                length = _head_length(head)
                if length is None and len(head) < HEAD_SEEN_BYTES:
                    continue
                if (length or 0) > MAX_HEAD_BYTES:
                    self._refuse(BadPayload(f"a head that claims {length:,} bytes was refused"))
                chunk, head = head, None
            yield chunk
        if head:
            yield head

    def _refuse(self, reason: SourceError) -> None:
        self._raw.close()  # with its connection
        raise RefusedAnswer(reason)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)


def _head_length(start: bytes) -> int | None:
    """What the head in a compressed stream that begins like this claims to be long; None while that does
    not show. An uncompressed one is as long as what came."""
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
    """A client's headers, with the transport that its questions take."""

    def __init__(self, headers: dict[str, str], transport: Transport) -> None:
        super().__init__(headers)
        self.transport = transport

    def copy(self) -> _Headers:
        return _Headers(self, self.transport)


class _Requests:
    """`requests`, as the client's modules see it."""

    def get(self, url: str, **options: Any) -> requests.Response:
        return self._ask("GET", url, options)

    def post(self, url: str, **options: Any) -> requests.Response:
        return self._ask("POST", url, options)

    def _ask(self, method: str, url: str, options: dict[str, Any]) -> requests.Response:
        transport = getattr(options.get("headers"), "transport", requests)
        answer: requests.Response = transport.request(method, url, **options)
        return answer

    def __getattr__(self, name: str) -> Any:
        return getattr(requests, name)


def use_transport(api: Any, transport: Transport) -> bool:
    """Let one group of the client's questions take this transport; False when the client asks in a way
    that is unknown here."""
    modules: list[ModuleType] = [import_module(name) for name in MODULES]
    known = all(getattr(module, "requests", None) is requests for module in modules)
    ours = all(isinstance(getattr(module, "requests", None), _Requests) for module in modules)
    if not (known or ours) or type(getattr(api, "_headers", None)) is not dict:
        return False
    if known:
        seen = _Requests()
        for module in modules:
            module.requests = seen  # type: ignore[attr-defined]
    api._headers = _Headers(api._headers, transport)
    return True
