"""A rate limit that several machines share: the times of the last requests, in the ledger's database."""

from __future__ import annotations

import json
import logging

from pyrate_limiter import InMemoryBucket, Rate, RateItem
from pyrate_limiter.abstracts.algorithm import Decision
from pyrate_limiter.clocks import WallClock

from nq_pipeline.errors import LedgerError
from nq_pipeline.leases.states import SharedStates

log = logging.getLogger(__name__)


class SharedBucket(InMemoryBucket):
    """pyrate-limiter's bucket in memory, filled from the state `name` for each request.

    Times are those of the database's clock. While the database is out of reach, the bucket limits only its
    own process.
    """

    _clock = WallClock()

    def __init__(self, rates: list[Rate], states: SharedStates, name: str) -> None:
        super().__init__(rates)
        self._states, self._name = states, name

    def put(self, item: RateItem) -> bool:
        try:
            with self._states.changing(self._name) as shared, self._lock:
                self.items = [RateItem(self._name, at, 1) for at in _times(shared.body)]
                ours = RateItem(self._name, shared.now_ms, item.weight)
                decision = Decision() if super().put(ours) else super()._decision(ours)
                super().leak(shared.now_ms)
                shared.body = json.dumps([one.timestamp for one in self.items])
            return self._record(item, decision)  # its wait counts from this machine's clock
        except LedgerError as error:
            log.warning("the rate limit of %s is not shared with other machines: %s", self._name, error)
            return super().put(item)

    def leak(self, current_timestamp: int | None = None) -> int:
        return 0  # `put` does it, by the database's clock


def _times(body: str) -> list[int]:
    try:
        return sorted(int(at) for at in json.loads(body or "[]"))
    except (ValueError, TypeError):
        return []
