"""The requests of a run to one vendor.

A source sends HTTP with `get()` and `post()`, everything else (an official client, a websocket) with
`call()`. The session retries and limits requests, archives the exact body of every answer (after transfer and
content decoding), and records one `Fetch` per request. The archive is also the cache. `ArchivedSession`
answers only from the archive, so that a parser can run again.

The source decides what an answer means. It calls `reject()` for a bad one, which the cache then never serves.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import orjson
import polars as pl

from nq_pipeline.clock import Clock, real_ns, to_ns
from nq_pipeline.errors import BadPayload, DeadlineReached, LakeError, SourceError, StoreError, Unavailable
from nq_pipeline.lake.archive import RawArchive, RawEntry
from nq_pipeline.lake.tables import FETCHES, conform
from nq_pipeline.leases.states import SharedStates
from nq_pipeline.outcome import Outcome
from nq_pipeline.redaction import redact, redact_data, redact_logs, secret_spellings
from nq_pipeline.transport.json_columns import loads
from nq_pipeline.transport.lifetime import Keep, Lifetime
from nq_pipeline.transport.policy import Policy

SECRET_NAMES = frozenset(
    ["apikey", "api_key", "authorization", "cookie", "x-xsrf-token", "password", "sec", "cid", "p-ticket",
     "accesstoken", "token", "key"]
)  # fmt: skip
"""Parameters (lower case) that are left out of cache keys, recorded addresses and files."""

_Received = tuple[bytes, int | None, Mapping[str, str]]
"""A body with secrets redacted, and an HTTP status and headers if there are some."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer.

    Attributes
    ----------
    status
        HTTP status; None for an answer to `call`.
    body
        The exact bytes, with secrets redacted.
    snapshot_ts
        When it was first requested (ns UTC), also on a cache hit.
    request_id, fetch_id
        The request that the vendor answered, of an earlier run on a cache hit; and the `Fetch` of this run.
    received_at
        When it arrived (ns UTC) by the run's clock. No instant in the answer can be later.
    """

    operation: str
    status: int | None
    headers: Mapping[str, str]
    body: bytes
    snapshot_ts: int
    request_id: str
    sha256: str
    cached: bool
    url: str
    fetch_id: str = ""
    received_at: int = 0

    def json(self) -> Any:
        """The decoded body. Raises `BadPayload`, which never quotes the body, when it is not JSON."""
        try:
            return loads(self.body)
        except ValueError:
            kind = self.headers.get("content-type", "nothing that says what it is").partition(";")[0]
            raise BadPayload(
                f"{self.operation}: expected JSON, got {kind} of {len(self.body)} bytes (HTTP {self.status})"
            ) from None


@dataclass(slots=True)
class Fetch:
    """One request and its result, a row of `fetches`; unanswered at first, because a run may end before the
    answer.
    """

    request_id: str
    operation: str
    url: str
    requested_at: int
    snapshot_ts: int
    status: int | None = None
    outcome: Outcome = Outcome.UNAVAILABLE
    detail: str | None = "the run went on without an answer"
    latency_ms: float = 0.0
    bytes: int = 0
    cache: str = "none"
    cost_usd: Decimal = Decimal(0)
    raw_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Scope:
    """What all requests of one run to one vendor share.

    `snapshot_ts` is the scheduled time of the run (aware, UTC). `secrets` are redacted from the vendor's
    answers, in every spelling (`redaction.secret_spellings`).
    """

    source: str
    environment: str
    run_id: str
    trade_date: date
    snapshot_ts: datetime
    base_url: str
    secrets: Collection[str] = field(default=(), repr=False)


@dataclass
class VendorSession:
    """The session of one run with one vendor. For one thread only, except `frame`.

    Attributes
    ----------
    deadline
        The value of `clock.monotonic()` after which no request is sent.
    refresh
        Send every request, although a cached answer may still be fresh.
    fetches
        Every request so far, including those that the cache answered.
    used
        Request id of the archived answer, by digest of the request.
    fresh_until
        When the first of the answers so far expires (ns UTC, real time); None while none can be cached.
    secrets
        Redacted from everything the vendor sends: the secrets of the scope and those added by `learn`.
    unarchived
        Why an answer that this run uses is not in the archive; None if all are.
    """

    scope: Scope
    policy: Policy
    clock: Clock
    archive: RawArchive
    lifetime: Lifetime
    state_dir: Path
    deadline: float
    refresh: bool = False
    states: SharedStates | None = None
    fetches: list[Fetch] = field(default_factory=list)
    used: dict[str, str] = field(default_factory=dict)
    fresh_until: int | None = None
    secrets: list[str] = field(default_factory=list, repr=False)
    unarchived: LakeError | None = None
    _cookies: set[str] = field(default_factory=set, repr=False)
    _http_session: Any = None

    def __post_init__(self) -> None:
        self.learn(*self.scope.secrets)

    def learn(self, *secrets: str) -> None:
        """Redact these secrets, such as a token that the vendor issued, from now on."""
        self.secrets[:] = secret_spellings({*self.secrets, *secrets})
        redact_logs(self.secrets)

    def get(
        self,
        path: str,
        *,
        operation: str,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        keep: Keep = Keep.MARKET,
        archive: bool = True,
    ) -> Reply:
        """GET `base_url + path`. An answer with any HTTP status is a reply.

        Pass `keep=Keep.NEVER` and `archive=False` for an answer that contains a token. Raises
        `DeadlineReached` when no time is left or the rate limit would not clear in time, `Unavailable`
        without an answer after the retries, and `BadPayload` for a body that was cut off or is larger than
        `policy.max_bytes`.
        """
        query = _with_values(params)
        return self._request(
            operation,
            {"path": path, **query},
            self._address(path, query),
            lambda: self._http("GET", path, archive, params=query, headers=headers),
            keep,
            archive=archive,
        )

    def post(self, path: str, *, operation: str, json: Mapping[str, Any]) -> Reply:
        """POST a JSON body once. The answer, which may contain a token, is neither cached nor archived."""
        return self._request(
            operation,
            {"path": path},
            self._address(path),
            lambda: self._http("POST", path, archive=False, json=json),
            Keep.NEVER,
            archive=False,
        )

    def call(
        self,
        operation: str,
        parameters: Mapping[str, Any],
        perform: Callable[[], bytes],
        *,
        keep: Keep = Keep.MARKET,
        paid_bytes: int | None = None,
    ) -> Reply:
        """Send a request that is not plain HTTP.

        `parameters` identify the request and hold no secrets. `perform` sends it and returns the exact bytes
        of the answer. It may add its cost to `current_fetch`. Its `SourceError` is recorded and raised again.
        For an answer that costs money, `paid_bytes` says how long it may be, uncompressed: raises `NoRoom`
        before the request is sent if the archive has no room for it.
        """

        def received() -> _Received:
            return redact_data(perform(), self.secrets), None, {}

        return self._request(
            operation, parameters, self._address(operation), received, keep, paid_bytes=paid_bytes
        )

    @property
    def current_fetch(self) -> Fetch:
        """The newest request; within `perform`, the one that is being sent."""
        return self.fetches[-1]

    def is_cached(
        self,
        operation: str,
        parameters: Mapping[str, Any] | None = None,
        keep: Keep = Keep.MARKET,
        *,
        path: str | None = None,
    ) -> bool:
        """Whether the cache would answer `call` (or `get`, with `path`) without a login or a payment."""
        identity = parameters or {} if path is None else {"path": path, **_with_values(parameters)}
        return self._cached(operation, identity, keep) is not None

    def note_hit(self, operation: str, snapshot_ts: datetime) -> None:
        """Record that a whole chain was served from the cache of parsed answers."""
        fetch = self._fetch(operation, self._address("/"))
        fetch.cache, fetch.snapshot_ts = "hit", to_ns(snapshot_ts)
        fetch.outcome, fetch.detail = Outcome.OK, None

    def reject(self, reply: Reply, outcome: Outcome, detail: str) -> None:
        """Record why a reply is bad, and keep the cache from serving it again."""
        for fetch in self.fetches:
            if fetch.request_id == reply.fetch_id:
                fetch.outcome, fetch.detail = outcome, redact(detail, self.secrets)
        entry = self.archive.entry(self.scope.source, self.scope.trade_date, reply.request_id)
        if entry is not None:
            self.archive.expire(entry)

    def remaining(self) -> float:
        """Seconds left until the deadline; never negative."""
        return max(0.0, self.deadline - self.clock.monotonic())

    def check_deadline(self) -> None:
        """Raise `DeadlineReached` when the deadline has passed."""
        if self.remaining() <= 0:
            raise DeadlineReached(
                f"the time allowed for {self.scope.source} is over; raise NQ_SOURCE_DEADLINE_S"
            )

    def cookie(self, name: str) -> str | None:
        """The value of a cookie that the vendor set in this run, on whatever path; None without one."""
        return dict(self._open_http().cookies.items()).get(name)

    def close(self) -> None:
        if self._http_session is not None:
            self._http_session.close()

    def frame(self) -> pl.DataFrame:
        """The fetches so far as rows of the table `fetches`. Safe while another thread sends requests."""
        scope = self.scope
        rows = [
            {
                **{name: getattr(fetch, name) for name in Fetch.__dataclass_fields__},
                "outcome": str(fetch.outcome),
                "run_id": scope.run_id,
                "source": scope.source,
                "environment": scope.environment,
                "trade_date": scope.trade_date,
            }
            for fetch in tuple(self.fetches)
        ]
        return conform(FETCHES, pl.DataFrame(rows, infer_schema_length=None)) if rows else FETCHES.empty()

    def _request(
        self,
        operation: str,
        identity: Mapping[str, Any],
        url: str,
        send: Callable[[], _Received],
        keep: Keep,
        *,
        archive: bool = True,
        paid_bytes: int | None = None,
    ) -> Reply:
        """The cached answer, or what `send` receives; it is recorded, and archived if it may be."""
        started = self.clock.monotonic()
        cached = self._cached(operation, identity, keep)
        if not cached:
            self.check_deadline()
        fetch = self._fetch(operation, url)
        if cached:
            self._finish(fetch, started)
            return self._reply(fetch, *cached, cached=True)
        try:
            with self.archive.reserve_room(paid_bytes) if paid_bytes is not None else nullcontext():
                body, status, headers = send()
        except Exception as error:
            outcome = error.outcome if isinstance(error, SourceError) else Outcome.UNAVAILABLE
            detail = str(error) if isinstance(error, SourceError) else type(error).__name__
            self._finish(fetch, started, outcome=outcome, detail=detail)
            raise
        self._finish(fetch, started)
        entry = self._entry(fetch, operation, identity, body, keep)
        entry = replace(entry, status=status, headers=headers)
        return self._reply(
            fetch, entry, body, cached=False, archived=archive and self._archive(fetch, entry, body)
        )

    def _archive(self, fetch: Fetch, entry: RawEntry, body: bytes) -> bool:
        """Archive an answer; False if it cannot be, since it is worth more than its copy."""
        try:
            self.archive.put(entry, body)
        except (OSError, StoreError) as error:
            reason = redact(str(error), self.secrets)
            fetch.detail = f"this answer is not in the archive: {reason}"
            self.unarchived = LakeError(
                f"{self.scope.source}: an answer could not be archived ({reason}); this run used it, and it "
                "cannot be parsed again"
            )
            self.unarchived.__cause__ = error
            return False
        return True

    def _http(self, method: str, path: str, archive: bool, **options: Any) -> _Received:
        from nq_pipeline.transport import http

        url = self.scope.base_url + path
        response = http.send(self._open_http(), method, url, self.policy, remaining=self.remaining, **options)
        # An answer that is not archived keeps learnt secrets: a login may return the same token again.
        secrets = self.secrets if archive else secret_spellings(self.scope.secrets)
        http.redact_response(response, (*secrets, *secret_spellings(self._cookies)))
        return response.content, response.status_code, dict(response.headers)

    def _open_http(self) -> Any:
        if self._http_session is None:
            from nq_pipeline.transport import http

            self._http_session = http.open_http(
                self.scope.source,
                self.policy,
                state_dir=self.state_dir,
                remaining=self.remaining,
                cookies=self._cookies,
                states=self.states,
            )
        return self._http_session

    def _fetch(self, operation: str, url: str) -> Fetch:
        fetch = Fetch(
            request_id=uuid.uuid4().hex,
            operation=operation,
            url=url,
            requested_at=real_ns(),
            snapshot_ts=to_ns(self.scope.snapshot_ts),
        )
        self.fetches.append(fetch)
        return fetch

    def _finish(
        self, fetch: Fetch, started: float, *, outcome: Outcome = Outcome.OK, detail: str | None = None
    ) -> None:
        fetch.latency_ms = (self.clock.monotonic() - started) * 1_000
        fetch.outcome, fetch.detail = outcome, detail and redact(detail, self.secrets)

    def _reply(
        self, fetch: Fetch, entry: RawEntry, body: bytes, *, cached: bool, archived: bool = True
    ) -> Reply:
        fetch.cache = "hit" if cached else "miss"
        fetch.status, fetch.bytes, fetch.snapshot_ts = entry.status, len(body), entry.snapshot_ts
        if archived:
            fetch.raw_sha256 = entry.sha256
            self.used[entry.digest] = entry.request_id
        if entry.expires:
            self.fresh_until = min(self.fresh_until or entry.expires, entry.expires)
        return Reply(
            operation=fetch.operation,
            status=entry.status,
            headers=entry.headers,
            body=body,
            snapshot_ts=entry.snapshot_ts,
            request_id=entry.request_id,
            sha256=entry.sha256,
            cached=cached,
            url=fetch.url,
            fetch_id=fetch.request_id,
            received_at=entry.received_at or _arrival(entry),
        )

    def _entry(
        self, fetch: Fetch, operation: str, parameters: Mapping[str, Any], body: bytes, keep: Keep
    ) -> RawEntry:
        scope = self.scope
        expires = self.lifetime.expires(keep, scope.snapshot_ts)
        return RawEntry(
            request_id=fetch.request_id,
            run_id=scope.run_id,
            source=scope.source,
            operation=operation,
            digest=digest(scope.source, operation, parameters),
            parameters=_public(parameters),
            url=fetch.url,
            base_url=scope.base_url,
            pinned=self._pinned,
            trade_date=scope.trade_date,
            snapshot_ts=fetch.snapshot_ts,
            requested_at=fetch.requested_at,
            expires=to_ns(expires) if expires else 0,
            # With a frozen clock, that is when it was requested.
            received_at=to_ns(max(scope.snapshot_ts, self.clock.pinned or self.clock.now())),
            sha256=hashlib.sha256(body).hexdigest(),
            bytes=len(body),
        )

    @property
    def _pinned(self) -> str | None:
        return self.clock.pinned.isoformat() if self.clock.pinned else None

    def _cached(
        self, operation: str, parameters: Mapping[str, Any], keep: Keep
    ) -> tuple[RawEntry, bytes] | None:
        """The archived answer to the same request, unless it has expired or is damaged."""
        if self.refresh or keep is Keep.NEVER:
            return None
        entry = self.archive.find(self.scope.source, digest(self.scope.source, operation, parameters))
        if entry is None or entry.base_url != self.scope.base_url or entry.pinned != self._pinned:
            return None
        if real_ns() >= entry.expires or entry.status not in (None, 200):
            return None
        try:
            return entry, self.archive.get(entry)
        except LakeError:
            return None

    def _address(self, path: str, params: Mapping[str, Any] | None = None) -> str:
        shown = _public(params or {})
        base = self.scope.base_url + (path if path.startswith("/") else f"/{path}")
        return f"{base}?{urlencode(shown)}" if shown else base


@dataclass
class ArchivedSession(VendorSession):
    """Answers every request with the archived answer of an earlier run, and sends none.

    `answers` has the request id of the answer that the run used, by digest of the request. `original` records
    the fetches as those of the earlier run, which died before it wrote them.
    """

    answers: Mapping[str, str] = field(default_factory=dict)
    original: bool = False

    def _request(self, operation: str, identity: Mapping[str, Any], url: str, *_: Any, **__: Any) -> Reply:
        scope, fetch = self.scope, self._fetch(operation, url)
        request_id = self.answers.get(digest(scope.source, operation, identity))
        entry = self.archive.entry(scope.source, scope.trade_date, request_id) if request_id else None
        if entry is None:
            fetch.detail = "the archived run has no answer to this request"
            raise Unavailable(fetch.detail)
        body = self.archive.get(entry)
        own = self.original and entry.run_id == scope.run_id
        if own:
            fetch.request_id, fetch.requested_at, fetch.url = entry.request_id, entry.requested_at, entry.url
        self._finish(fetch, self.clock.monotonic())
        return self._reply(fetch, entry, body, cached=not own)

    def is_cached(self, *_: Any, **__: Any) -> bool:
        return True

    def cookie(self, name: str) -> str | None:
        return None


def _arrival(entry: RawEntry) -> int:
    """When an archived answer was requested, for entries that do not say when it arrived."""
    return entry.snapshot_ts if entry.pinned else max(entry.snapshot_ts, entry.requested_at)


def _with_values(params: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (params or {}).items() if value is not None}


def _public(parameters: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in parameters.items() if name.lower() not in SECRET_NAMES}


def digest(source: str, operation: str, parameters: Mapping[str, Any]) -> str:
    """The SHA-256, in hex, of a request's canonical JSON without secrets."""
    canonical = orjson.dumps([source, operation, _public(parameters)], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(canonical).hexdigest()


def relative(url: str, base_url: str) -> str:
    """The path and query of an address that a vendor sent (a `next_url`), relative to our base address.

    The host is dropped: a session sends requests only to its own base address.
    """
    parts, base = urlsplit(url), urlsplit(base_url)
    # Without the slash, `base_url` + `@elsewhere/` would name another host.
    path = "/" + parts.path.removeprefix(base.path.rstrip("/")).lstrip("/")
    return f"{path}?{parts.query}" if parts.query else path
