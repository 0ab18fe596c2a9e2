"""The accounts of Databento's stand-in: key, plan, requests and batch jobs."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from threading import Lock
from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nq_pipeline.clock import to_ns
from nq_pipeline.sandbox.scenario import Scenario
from nq_pipeline.sandbox.synthetic.market import AnyMarket
from nq_pipeline.sandbox.vendors.databento.request import DATASET, Params, RangeQuery, RequestRefused, iso
from nq_pipeline.sandbox.vendors.endpoint import ScenarioOf, endpoint, json_response

METERED = ("timeseries.get_range", "batch.submit_job")
"""What the vendor charges for; everything else is free."""
MAX_REQUESTS = 20_000
MAX_ACCOUNTS = 64


@dataclass
class SubmittedJob:
    """A batch job: the vendor's description, its query, and the market its files show."""

    details: dict[str, Any]
    query: RangeQuery
    market: AnyMarket
    polls: int = 0
    """How often its state was requested; the third answer is `done`."""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Its files by name, per fault they were requested under."""


@dataclass
class Account:
    """One key's requests, oldest first, and its jobs by id."""

    requests: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=MAX_REQUESTS))
    jobs: dict[str, SubmittedJob] = field(default_factory=dict)

    def record_request(self, name: str, parameters: Params) -> None:
        self.requests.append(
            {"request": name, "metered": name in METERED, "parameters": dict(parameters), "billed_bytes": 0}
        )

    def bill(self, name: str, size: int) -> None:
        """Charge the newest request of that name."""
        newest = next(request for request in reversed(self.requests) if request["request"] == name)
        newest["billed_bytes"] = size


_accounts: OrderedDict[str, Account] = OrderedDict()
_lock = Lock()


def account_of(key: str) -> Account:
    """The account of a key. Only the key's hash is stored; new accounts replace the oldest ones."""
    name = hashlib.sha256(key.encode()).hexdigest()
    with _lock:
        account = _accounts.setdefault(name, Account())
        _accounts.move_to_end(name)
        while len(_accounts) > MAX_ACCOUNTS:
            _accounts.popitem(last=False)
    return account


Handler = Callable[[Request, Params, Scenario, Account], Response]


def api_route(method: str, name: str, handler: Handler, scenario_of: ScenarioOf, path: str = "") -> Route:
    """The route `/v0/{path or name}`, with key, faults and errors handled around the handler."""

    def respond(request: Request, body: bytes, scenario: Scenario) -> Response:
        form = body.decode("ascii", "replace") if request.method == "POST" else request.url.query
        params, account = dict(parse_qsl(form)), account_of(api_key(request))
        account.record_request(name, params)
        try:
            _check_access(request, scenario)
            return handler(request, params, scenario, account)
        except RequestRefused as refused:
            headers = {"Retry-After": "60"} if refused.status == 429 else None
            return json_response({"detail": refused.detail}, refused.status, headers)

    return Route(f"/v0/{path or name}", endpoint(respond, scenario_of), methods=[method])


def api_key(request: Request) -> str:
    """The key of the request, '' without one."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    with suppress(binascii.Error, UnicodeDecodeError):
        if scheme.lower() == "basic":
            return base64.b64decode(token, validate=True).decode().partition(":")[0]
    return ""


def require_entitlement(scenario: Scenario) -> None:
    """Raise the vendor's refusal if the plan does not include the data."""
    if scenario.fault == "not_entitled":
        raise RequestRefused(
            422,
            "dataset_unavailable_range",
            f"Part or all of your request for dataset '{DATASET}' requires a subscription and/or license to "
            f"access. Try again with an end time before {iso(to_ns(scenario.now - timedelta(days=1)))}.",
        )


def _check_access(request: Request, scenario: Scenario) -> None:
    if not api_key(request):
        refused = RequestRefused(401, "auth_authentication_failed", "Authentication failed.")
        refused.detail = str(refused)  # the one error whose detail is plain text
        raise refused
    if scenario.fault in ("blocked", "challenged"):
        raise RequestRefused(403, "auth_account_locked", "This account is locked.")
    if scenario.fault in ("rate_limited", "penalty"):
        raise RequestRefused(429, "rate_limit_exceeded", "Too many requests.")
