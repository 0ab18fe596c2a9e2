"""The one way to ask a vendor.

Every request of a run goes through the vendor's `VendorSession`: HTTP by `get()` and `post()`,
everything else (an official client, a websocket) by `call()`. It retries, spaces and bounds requests,
archives the exact body of every answer (after transfer and content decoding), and records one
`Fetch` per request. The archive is the cache, too: a question is answered from it while its last
answer is fresh. `ArchivedSession` answers only from the archive, so that a parser can run again.

The vendor's client decides what an answer means. It calls `reject()` for a bad one, which marks the
fetch and keeps the answer from being served again.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import orjson
import polars as pl

from nq_pipeline.clock import Clock, to_ns
from nq_pipeline.errors import BadPayload, DeadlineReached, LakeError, SourceError, Unavailable
from nq_pipeline.lake.archive import RawArchive, RawEntry
from nq_pipeline.lake.tables import FETCHES
from nq_pipeline.outcome import Outcome
from nq_pipeline.redaction import redact, redact_data, redact_logs, secret_spellings
from nq_pipeline.transport.json_columns import loads
from nq_pipeline.transport.lifetime import Keep, Lifetime
from nq_pipeline.transport.policy import Policy

SECRET_NAMES = frozenset(
    ["apikey", "api_key", "authorization", "cookie", "x-xsrf-token", "password", "sec", "cid", "p-ticket",
     "accesstoken", "token", "key"]
)  # fmt: skip
"""Parameters and headers (lower case) that never reach a key, an address or a file."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer. `snapshot_ts` (ns) is when it was first asked for, also on a cache hit.

    `received_at` (ns) is when it was there by the run's clock: no instant in it can be later.
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

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    def json(self) -> Any:
        """The decoded body; `BadPayload` when it is not JSON (the text itself is never quoted)."""
        try:
            return loads(self.body)
        except ValueError:
            kind = self.content_type or "nothing that says what it is"
            raise BadPayload(
                f"{self.operation}: expected JSON, got {kind} of {len(self.body)} bytes (HTTP {self.status})"
            ) from None


@dataclass(slots=True)
class Fetch:
    """One question and what came of it; a row of `fetches`.

    Until an answer is there it counts as unanswered: a run may end while it is still waited for.
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
    """What all questions of one run to one vendor share; `secrets` are struck out of its answers, in
    every spelling (`redaction.spellings`)."""

    source: str
    environment: str
    run_id: str
    trade_date: date
    snapshot_ts: datetime
    base_url: str
    secrets: Collection[str] = field(default=(), repr=False)


@dataclass
class VendorSession:
    """The questions of one run to one vendor. Not shared between threads, `frame` aside.

    Parameters
    ----------
    deadline
        `clock.monotonic()` value past which nothing more is asked.
    state_dir
        Folder of the rate limiter's memory.
    refresh
        Ask even where a cached answer is still fresh.

    Attributes
    ----------
    fetches
        Every question so far.
    used
        Request id of the archived answer by digest of the question.
    fresh_until
        When the first of the answers so far may no longer be served (ns, real time); None while
        there is none that may be.
    secrets
        What is struck out of everything the vendor sends: those of the scope and what was learnt.
    """

    scope: Scope
    policy: Policy
    clock: Clock
    archive: RawArchive
    lifetime: Lifetime
    state_dir: Path
    deadline: float
    refresh: bool = False
    fetches: list[Fetch] = field(default_factory=list)
    used: dict[str, str] = field(default_factory=dict)
    fresh_until: int | None = None
    secrets: list[str] = field(default_factory=list, repr=False)
    _cookies: set[str] = field(default_factory=set, repr=False)
    _http_session: Any = None

    def __post_init__(self) -> None:
        self.learn(*self.scope.secrets)

    def learn(self, *secrets: str) -> None:
        """Keep secret from now on what the vendor handed out, as a token."""
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
        """GET `base_url + path`; any HTTP status is a reply.

        An answer with a token in it must be neither cached (`keep`) nor archived.

        Raises
        ------
        DeadlineReached
            No time is left, or the rate limit would not clear in time.
        Unavailable
            Nothing answered after the retries.
        BadPayload
            The body was cut off or larger than any honest answer.
        """
        return self._http("GET", path, operation, params, None, headers, keep, archive=archive)

    def post(
        self,
        path: str,
        *,
        operation: str,
        json: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        archive: bool = False,
    ) -> Reply:
        """POST a JSON body, once, never cached; archived only on demand (tokens must not be)."""
        return self._http("POST", path, operation, None, json, headers, Keep.NEVER, archive=archive)

    def call(
        self,
        operation: str,
        parameters: Mapping[str, Any],
        perform: Callable[[], bytes],
        *,
        keep: Keep = Keep.MARKET,
    ) -> Reply:
        """Ask something that is not plain HTTP; `perform` does it and returns the exact bytes.

        Parameters
        ----------
        parameters
            Identify the question; no secrets.
        perform
            Raises `SourceError` for what the vendor did, which is recorded and passes through. It
            notes its cost in `asking`.
        """
        started = self.clock.monotonic()
        cached = self._cached(operation, parameters, keep)
        fetch = self._fetch(operation, self._address(operation))
        if cached:
            self._finish(fetch, started)
            return self._reply(fetch, *cached, cached=True)
        try:
            self.check_deadline()
            body = redact_data(perform(), self.secrets)
        except Exception as error:
            outcome = error.outcome if isinstance(error, SourceError) else Outcome.UNAVAILABLE
            detail = str(error) if isinstance(error, SourceError) else type(error).__name__
            self._finish(fetch, started, outcome=outcome, detail=detail)
            raise
        self._finish(fetch, started)
        entry = self.archive.put(self._entry(fetch, operation, parameters, body, keep), body)
        return self._reply(fetch, entry, body, cached=False)

    @property
    def asking(self) -> Fetch:
        """The newest question; within `perform`, the one that is being asked."""
        return self.fetches[-1]

    def is_cached(
        self,
        operation: str,
        parameters: Mapping[str, Any] | None = None,
        keep: Keep = Keep.MARKET,
        *,
        path: str | None = None,
    ) -> bool:
        """Whether `call` (or `get`, with `path`) would answer without asking, so without cost or login."""
        return self._cached(operation, _question(path, parameters), keep) is not None

    def note_hit(self, operation: str, snapshot_ts: datetime) -> None:
        """Record that a whole cached answer was served without any request."""
        fetch = self._fetch(operation, self._address("/"))
        fetch.cache, fetch.snapshot_ts = "hit", to_ns(snapshot_ts)
        fetch.outcome, fetch.detail = Outcome.OK, None

    def reject(self, reply: Reply, outcome: Outcome, detail: str) -> None:
        """Mark a reply as bad: its fetch shows why, and it is not served again."""
        for fetch in self.fetches:
            if fetch.request_id == reply.fetch_id:
                fetch.outcome, fetch.detail = outcome, redact(detail, self.secrets)
        entry = self.archive.entry(self.scope.source, self.scope.trade_date, reply.request_id)
        if entry is not None:
            self.archive.expire(entry)

    def remaining(self) -> float:
        """Seconds left for this vendor; never negative."""
        return max(0.0, self.deadline - self.clock.monotonic())

    def check_deadline(self) -> None:
        """Raise `DeadlineReached` when no time is left."""
        if self.remaining() <= 0:
            raise DeadlineReached(
                f"the time allowed for {self.scope.source} is over; NQ_SOURCE_DEADLINE_S raises it"
            )

    def cookie(self, name: str) -> str | None:
        """A cookie the vendor set in this run."""
        return self._open_http().cookies.get(name)  # type: ignore[no-any-return]

    def close(self) -> None:
        if self._http_session is not None:
            self._http_session.close()

    def frame(self) -> pl.DataFrame:
        """The fetches so far as rows of the `fetches` table, also while another thread still asks."""
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
        raw = pl.DataFrame(rows, infer_schema_length=None) if rows else FETCHES.empty()
        return raw.select([pl.col(name).cast(dtype) for name, dtype in FETCHES.schema.items()])

    def _http(
        self,
        method: str,
        path: str,
        operation: str,
        params: Mapping[str, Any] | None,
        json: Mapping[str, Any] | None,
        headers: Mapping[str, str] | None,
        keep: Keep,
        *,
        archive: bool,
    ) -> Reply:
        from nq_pipeline.transport import http

        started = self.clock.monotonic()
        query, question = _with_values(params), _question(path, params)
        cached = self._cached(operation, question, keep)
        if not cached:
            self.check_deadline()
        fetch = self._fetch(operation, self._address(path, query))
        if cached:
            self._finish(fetch, started)
            return self._reply(fetch, *cached, cached=True)
        try:
            response = http.send(
                self._open_http(),
                method,
                self.scope.base_url + path,
                self.policy,
                remaining=self.remaining,
                params=query,
                json=json,
                headers=headers,
            )
        except SourceError as error:
            self._finish(fetch, started, outcome=error.outcome, detail=str(error))
            raise
        self._finish(fetch, started)
        # Learnt secrets stay in an answer that is not archived: a login may hand out the same token again.
        secrets = self.secrets if archive else secret_spellings(self.scope.secrets)
        http.redact_response(response, (*secrets, *secret_spellings(self._cookies)))
        entry = replace(
            self._entry(fetch, operation, question, response.content, keep),
            status=response.status_code,
            headers=dict(response.headers),
        )
        if archive:
            self.archive.put(entry, response.content)
        return self._reply(fetch, entry, response.content, cached=False, archived=archive)

    def _open_http(self) -> Any:
        if self._http_session is None:
            from nq_pipeline.transport import http

            self._http_session = http.open_http(
                self.scope.source,
                self.policy,
                state_dir=self.state_dir,
                remaining=self.remaining,
                cookies=self._cookies,
            )
        return self._http_session

    def _fetch(self, operation: str, url: str) -> Fetch:
        fetch = Fetch(
            request_id=uuid.uuid4().hex,
            operation=operation,
            url=url,
            requested_at=time.time_ns(),
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
            received_at=entry.received_at or _asked(entry),
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
            parameters={k: str(v) for k, v in public(parameters).items()},
            url=fetch.url,
            base_url=scope.base_url,
            pinned=self._pinned,
            trade_date=scope.trade_date,
            snapshot_ts=fetch.snapshot_ts,
            requested_at=fetch.requested_at,
            expires=to_ns(expires) if expires else 0,
            received_at=self._received(self.clock.now()),
            sha256=hashlib.sha256(body).hexdigest(),
            bytes=len(body),
        )

    def _received(self, now: datetime) -> int:
        """When an answer was there; a frozen clock's instant is that of the question."""
        return to_ns(max(self.scope.snapshot_ts, self.clock.pinned or now))

    @property
    def _pinned(self) -> str | None:
        return self.clock.pinned.isoformat() if self.clock.pinned else None

    def _cached(
        self, operation: str, parameters: Mapping[str, Any], keep: Keep
    ) -> tuple[RawEntry, bytes] | None:
        """The archived answer to this very question, while it may still be served; damage is a miss."""
        if self.refresh or keep is Keep.NEVER:
            return None
        entry = self.archive.find(self.scope.source, digest(self.scope.source, operation, parameters))
        if entry is None or entry.base_url != self.scope.base_url or entry.pinned != self._pinned:
            return None
        if time.time_ns() >= entry.expires or entry.status not in (None, 200):
            return None
        try:
            return entry, self.archive.get(entry)
        except LakeError:
            return None

    def _address(self, path: str, params: Mapping[str, Any] | None = None) -> str:
        shown = {k: v for k, v in (params or {}).items() if k.lower() not in SECRET_NAMES}
        base = self.scope.base_url + (path if path.startswith("/") else f"/{path}")
        return f"{base}?{urlencode(shown)}" if shown else base


@dataclass
class ArchivedSession(VendorSession):
    """Answers every question with what an archived run got; asks nobody.

    `answers` maps the digest of a question to the request whose answer that run used. With `original`
    the fetches are those of that run, which died before it could write them.
    """

    answers: Mapping[str, str] = field(default_factory=dict)
    original: bool = False

    def _http(
        self, method: str, path: str, operation: str, params: Mapping[str, Any] | None, *_: Any, **__: Any
    ) -> Reply:
        return self._archived(operation, _question(path, params))

    def call(
        self,
        operation: str,
        parameters: Mapping[str, Any],
        perform: Callable[[], bytes],
        *,
        keep: Keep = Keep.MARKET,
    ) -> Reply:
        return self._archived(operation, parameters)

    def is_cached(self, *_: Any, **__: Any) -> bool:
        return True

    def cookie(self, name: str) -> str | None:
        return None

    def _archived(self, operation: str, parameters: Mapping[str, Any]) -> Reply:
        scope, fetch = self.scope, self._fetch(operation, self._address(operation))
        request_id = self.answers.get(digest(scope.source, operation, parameters))
        entry = self.archive.entry(scope.source, scope.trade_date, request_id) if request_id else None
        if entry is None:
            fetch.detail = "the archived run has no answer to this question"
            raise Unavailable(fetch.detail)
        body = self.archive.get(entry)
        own = self.original and entry.run_id == scope.run_id
        if own:
            fetch.request_id, fetch.requested_at, fetch.url = entry.request_id, entry.requested_at, entry.url
        self._finish(fetch, self.clock.monotonic())
        return self._reply(fetch, entry, body, cached=not own)


def _asked(entry: RawEntry) -> int:
    """When an archived answer was asked for, where its entry does not say when it was there."""
    return entry.snapshot_ts if entry.pinned else max(entry.snapshot_ts, entry.requested_at)


def _question(path: str | None, parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """What identifies a question: the parameters, for HTTP those that have a value and the path."""
    return dict(parameters or {}) if path is None else {"path": path, **_with_values(parameters)}


def _with_values(params: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (params or {}).items() if value is not None}


def public(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parameters without anything secret."""
    return {k: v for k, v in parameters.items() if k.lower() not in SECRET_NAMES}


def digest(source: str, operation: str, parameters: Mapping[str, Any]) -> str:
    """The identity of a question: SHA-256 over its canonical JSON without secrets."""
    canonical = orjson.dumps(
        [source, operation, {k: str(v) for k, v in public(parameters).items()}], option=orjson.OPT_SORT_KEYS
    )
    return hashlib.sha256(canonical).hexdigest()


def relative(url: str, base_url: str) -> str:
    """A vendor's absolute address (a `next_url`) as a path below our base address.

    Only path and query survive: the host a vendor names is never followed.
    """
    parts, base = urlsplit(url), urlsplit(base_url)
    # The slash is not for looks: `base_url` + `@elsewhere/` would name another host.
    path = "/" + parts.path.removeprefix(base.path.rstrip("/")).lstrip("/")
    return f"{path}?{parts.query}" if parts.query else path
