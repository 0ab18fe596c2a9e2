"""What Databento's stand-in remembers of an account: everything it asked, and its batch jobs."""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from nq_pipeline.sandbox.synthetic.market import AnyMarket

METERED = ("timeseries.get_range", "batch.submit_job")
"""What the vendor charges for; everything else is free."""
REQUESTS_KEPT = 20_000
ACCOUNTS_KEPT = 64


@dataclass
class SubmittedJob:
    """A batch job: what the vendor says of it, and the market its files are of."""

    details: dict[str, Any]
    market: AnyMarket
    looks: int = 0
    """How often its state was asked for; it is done at the second time."""
    packages: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Its files by name, under each fault it was asked for with."""


@dataclass
class Account:
    """One key's requests, oldest first, and jobs by id."""

    requests: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=REQUESTS_KEPT))
    jobs: dict[str, SubmittedJob] = field(default_factory=dict)

    def note(self, name: str, parameters: Mapping[str, str]) -> None:
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
    """The account of a key, which itself is not kept; the oldest of many are forgotten."""
    name = hashlib.sha256(key.encode()).hexdigest()
    with _lock:
        account = _accounts.setdefault(name, Account())
        _accounts.move_to_end(name)
        while len(_accounts) > ACCOUNTS_KEPT:
            _accounts.popitem(last=False)
    return account
