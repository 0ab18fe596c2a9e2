"""What the errors of Databento's official client mean.

The client raises its own errors for HTTP statuses, errors of `requests` for the connection, and any exception
for a body that it cannot read. Here each becomes one of this program's `SourceError`s.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from nq_pipeline.errors import (
    BadPayload,
    Blocked,
    NotConfigured,
    NotEntitled,
    RateLimited,
    SourceError,
    Unavailable,
)
from nq_pipeline.outcome import Outcome
from nq_pipeline.sources.failures import printable

YEARS = range(1970, 2200)
"""A number outside is not a timestamp."""


class NoRecords(SourceError):
    """None of the symbols is listed in the requested time, as on a weekend: nobody's fault."""

    outcome = Outcome.EMPTY


class TransientFailure(Unavailable):
    """A failure of the vendor's server or of the network that may be over at the next attempt."""


class EndsAfterAvailable(Unavailable):
    """The query ends after the available data do; `available_end` in nanoseconds UTC."""

    def __init__(self, message: str, available_end: int) -> None:
        super().__init__(message)
        self.available_end = available_end


def instant_ns(text: str) -> int:
    """Return the nanoseconds UTC of an ISO 8601 instant with up to nine digits; ValueError for other text."""
    plain = re.fullmatch(r"(\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d:\d\d(?:\.\d{1,9})?)?)(?:Z|\+00:00)?", text)
    if plain is None or int(plain[1][:4]) not in YEARS:  # others do not fit 64 bits, and wrap around
        raise ValueError(f"{text!r} is not a UTC instant")
    return int(np.datetime64(plain[1], "ns").astype(np.int64))


def brought_no_data(error: Exception) -> bool:
    """Whether a paid request provably brought no data: it was never sent, or was refused."""
    import requests
    from databento.common.error import BentoClientError
    from urllib3.exceptions import NewConnectionError

    if isinstance(error, BentoClientError):
        return error.http_status != 408
    reason = getattr(error.args[0] if error.args else None, "reason", None)
    return isinstance(error, requests.ConnectTimeout) or isinstance(reason, NewConnectionError)


def is_transient(error: BaseException) -> bool:
    """Whether a failed request cost nothing and may succeed at the next attempt."""
    import requests
    from databento.common.error import BentoClientError, BentoServerError

    if isinstance(error, BentoClientError):
        return error.http_status in (408, 429)
    broken = (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)
    return isinstance(error, (BentoServerError, *broken))


def as_source_error(error: Exception) -> SourceError:
    """Return the error of this program that an error of the client stands for."""
    import requests
    from databento.common.error import BentoHttpError

    if isinstance(error, BentoHttpError):
        return _http_source_error(error)
    if isinstance(error, requests.exceptions.JSONDecodeError):
        return BadPayload("expected JSON, got something else")
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return BadPayload("the answer was cut off")
    if isinstance(error, requests.Timeout):
        return TransientFailure("no answer in time")
    if isinstance(error, requests.RequestException):
        return TransientFailure(f"no connection or no answer ({type(error).__name__})")
    if was_cut_off(error):
        return BadPayload("the answer was cut off")
    return BadPayload(f"the client could not read the answer ({type(error).__name__})")


def was_cut_off(error: Exception) -> bool:
    """Whether a download ended before its body did, which only the client's message says."""
    return str(error).startswith("Error streaming response")


def _http_source_error(error: Any) -> SourceError:
    """The meaning of an HTTP error, by its status and the `case` of its body."""
    body = error.json_body if isinstance(error.json_body, dict) else {}
    detail = body.get("detail")
    detail = detail if isinstance(detail, dict) else {"message": detail if isinstance(detail, str) else ""}
    case, status = str(detail.get("case", "")), int(error.http_status)
    words = printable(detail.get("message"))
    shown = f"HTTP {status}"
    shown += f" {case}" if re.fullmatch(r"\w{1,64}", case) else ""
    shown += f": {words}" if words else ""
    if status == 401 or "api_key" in case:
        return NotConfigured(f"DATABENTO_API_KEY was refused ({shown}); copy it from the vendor's portal")
    if status == 402:
        return NotEntitled(f"the account cannot pay ({shown}); see its billing page")
    if status == 429:
        return RateLimited(f"too many requests ({shown})")
    if "license" in case or "entitlement" in case or case == "dataset_unavailable_range":
        return NotEntitled(f"the plan does not include this ({shown})")
    if status == 403:
        return Blocked(f"refused ({shown})")
    if case.startswith("symbology_"):
        return NoRecords(f"nothing is listed there ({shown})")
    if case == "data_end_after_available_end":
        payload = detail.get("payload")
        try:
            return EndsAfterAvailable(shown, instant_ns(str(payload["available_end"])))  # type: ignore[index]
        except (KeyError, TypeError, ValueError):
            return BadPayload(f"refused without saying how far the data reach ({shown})")
    return (TransientFailure if status >= 500 else Unavailable)(f"refused or failed ({shown})")
