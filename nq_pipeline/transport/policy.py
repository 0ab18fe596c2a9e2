"""How fast, how often and how long a vendor may be asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from nq_pipeline.settings.groups import HttpSettings

_DEFAULTS = HttpSettings()


@dataclass(frozen=True, slots=True)
class Policy:
    """The limits of the requests to one vendor.

    Attributes
    ----------
    timeout_s, attempts, retry_after_cap_s
        As in the settings (`NQ_HTTP_TIMEOUT_S` and so on).
    per_minute
        Most requests per minute; 0 is no limit. Like `spacing_s` it holds across processes that share a
        state folder.
    spacing_s
        Least seconds between two requests; 0 is no limit.
    max_bytes
        Largest answer in text form, after decompression. The largest one seen has 0.8 MB; parsing JSON
        takes up to twenty times its size in memory.
    max_data_bytes
        Largest answer in binary form.
    """

    timeout_s: float = _DEFAULTS.timeout_s
    attempts: int = _DEFAULTS.attempts
    retry_after_cap_s: float = _DEFAULTS.retry_after_cap_s
    per_minute: int = 0
    spacing_s: float = 0.0
    max_bytes: int = 8 * 1024 * 1024
    max_data_bytes: int = 256 * 1024 * 1024

    @classmethod
    def of(cls, http: HttpSettings, *, per_minute: int = 0, spacing_s: float = 0.0) -> Self:
        """The policy that the settings ask for, with the vendor's own rate limits."""
        return cls(http.timeout_s, http.attempts, http.retry_after_cap_s, per_minute, spacing_s)


def retry_wait(
    status: int | None, headers: Mapping[str, str], policy: Policy, remaining_s: float
) -> float | None:
    """Seconds that a vendor asks us to wait before we repeat a request; None when we must not repeat it.

    HTTP 429 is repeated only when its Retry-After is a number of seconds. No wait may be longer than
    `policy.retry_after_cap_s` or the time left. Without Retry-After, any other failure has a wait of 0.

    Parameters
    ----------
    status
        HTTP status of the failed attempt; None when there was no answer.
    headers
        Headers of the answer.
    """
    if (wait_s := parse_retry_after(headers.get("Retry-After", ""))) is None:
        return None if status == 429 else 0.0
    return wait_s if wait_s <= min(policy.retry_after_cap_s, remaining_s) else None


def parse_retry_after(header: str) -> float | None:
    """The seconds of a Retry-After header; None when it is empty or a date."""
    return float(header) if header.strip().isdecimal() else None
