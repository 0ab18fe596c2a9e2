"""The accounts of Databento's stand-in: requests and batch jobs."""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from nq_pipeline.sandbox.synthetic.market import AnyMarket
from nq_pipeline.sandbox.vendors.databento.request import RangeQuery

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

    def record_request(self, name: str, parameters: Mapping[str, str]) -> None:
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
