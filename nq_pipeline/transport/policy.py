"""How fast, how often and how long a vendor may be asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from nq_pipeline.settings.groups import HttpSettings


@dataclass(frozen=True, slots=True)
class Policy:
    """The limits of the requests to one vendor.

    Attributes
    ----------
    timeout_s
        Seconds without a byte after which a request fails.
    attempts
        Most attempts of a request that fails for a transient reason, the first included.
    retry_after_cap_s
        Longest Retry-After, seconds, that is waited for.
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

    timeout_s: float = 10.0
    attempts: int = 3
    retry_after_cap_s: float = 30.0
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
        Headers of the answer. A Retry-After that is a date counts as none.
    """
    text = headers.get("Retry-After", "").strip()
    if not text.isdecimal():
        return None if status == 429 else 0.0
    wait_s = float(text)
    return wait_s if wait_s <= min(policy.retry_after_cap_s, remaining_s) else None
