"""Sends one message to the webhook. Its address is a secret: it appears in no log, exception or file.

Uses `http.client` because urllib3 writes every path to its debug log, and the path is the secret here.
Proxies, redirects and netrc are not used: the message goes where the setting says.
"""

from __future__ import annotations

import http.client
import json
from urllib.parse import urlsplit

import tenacity

from nq_pipeline.errors import WebhookRefused
from nq_pipeline.transport.policy import parse_retry_after

TIMEOUT_S = 5.0
"""Timeout of one attempt, for connecting and for the answer each."""
ATTEMPTS = 3
LONGEST_WAIT_S = 3.0
"""A longer Retry-After is left to a later delivery."""


def post(url: str, body: dict[str, str]) -> None:
    """Send a message, with retries where they may help; raises `WebhookRefused`."""
    tenacity.Retrying(
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        wait=_pause,
        retry=tenacity.retry_if_exception(_may_help),
        reraise=True,
    )(_post, url, json.dumps(body).encode())


def _post(url: str, body: bytes) -> None:
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        connection.request("POST", target, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
    except (OSError, http.client.HTTPException, ValueError) as error:
        slow = isinstance(error, TimeoutError)
        reason = f"no answer within {TIMEOUT_S:g} s" if slow else f"no connection ({type(error).__name__})"
        raise WebhookRefused(f"the webhook gave {reason}", retryable=True) from None
    finally:
        connection.close()
    if 200 <= response.status < 300:
        return
    raise WebhookRefused(
        f"the webhook answered HTTP {response.status}",
        retryable=response.status in (408, 429) or response.status >= 500,
        retry_after_s=parse_retry_after(response.headers.get("Retry-After", "")) or 0.0,
    )


def _may_help(error: BaseException) -> bool:
    return isinstance(error, WebhookRefused) and error.retryable and error.retry_after_s <= LONGEST_WAIT_S


def _pause(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    wait = error.retry_after_s if isinstance(error, WebhookRefused) else 0.0
    return wait + tenacity.wait_random_exponential(multiplier=0.2, max=1)(state)
