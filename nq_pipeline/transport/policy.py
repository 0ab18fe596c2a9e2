"""How fast and how often a vendor may be asked."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Policy:
    """How a vendor is asked, as data.

    Attributes
    ----------
    per_minute, spacing_s
        Rate limits; 0 is none. They hold across processes that share a state folder.
    max_bytes
        A larger text is refused, also when it only becomes so by unpacking. The fullest board that was
        seen has 0.8 MB; reading JSON takes up to twenty times its size in memory.
    max_data_bytes
        A larger answer in binary form is refused.
    """

    timeout_s: float = 10.0
    attempts: int = 3
    retry_after_cap_s: float = 30.0
    per_minute: int = 0
    spacing_s: float = 0.0
    max_bytes: int = 8 * 1024 * 1024
    max_data_bytes: int = 256 * 1024 * 1024
