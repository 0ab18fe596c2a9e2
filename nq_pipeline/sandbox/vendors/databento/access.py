"""Access to Databento's stand-in: the key, the plan, and errors in the vendor's format."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nq_pipeline.clock import to_ns
from nq_pipeline.sandbox.scenario import Scenario
from nq_pipeline.sandbox.vendors.databento.account import Account, account_of
from nq_pipeline.sandbox.vendors.databento.request import DATASET, Params, RequestRefused, iso
from nq_pipeline.sandbox.vendors.endpoint import ScenarioOf, endpoint, json_response

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
