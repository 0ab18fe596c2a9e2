"""The historical stand-in as a capture's `History`, asked through the official client over HTTP."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import databento

from nq_pipeline.errors import OverBudget
from nq_pipeline_tests.testing import standin

DATASET = "GLBX.MDP3"
USD_PER_GB = 28


class Historical:
    """History at an instant.

    Parameters
    ----------
    budget
        What the ledger would grant, USD.
    withheld
        Records that are left out of every file.
    """

    def __init__(self, folder: Path, now: datetime, *, budget: float = 10.0, withheld: int = 0) -> None:
        self.folder, self.budget, self.withheld = folder, budget, withheld
        self.bought: list[tuple[str, int, int]] = []
        self._client = databento.Historical("db-test-0000000000000000000000000")
        base = f"{standin.address()}/with/now={now.isoformat().replace('+00:00', 'Z')}/databento/v0"
        for group in ("metadata", "timeseries"):
            getattr(self._client, group)._base_url = f"{base}/{group}"

    def price(self, schema: str, parents: tuple[str, ...], start_ns: int, end_ns: int) -> Decimal:
        usd = self._client.metadata.get_cost(**self._asked(schema, parents, start_ns, end_ns))
        return Decimal(str(usd)).quantize(Decimal("1e-9"))

    def count(self, schema: str, parents: tuple[str, ...], start_ns: int, end_ns: int) -> int:
        return self._client.metadata.get_record_count(**self._asked(schema, parents, start_ns, end_ns))

    def fetch(
        self, schema: str, parents: tuple[str, ...], start_ns: int, end_ns: int, *, run_id: str
    ) -> tuple[Path, Decimal]:
        cost = self.price(schema, parents, start_ns, end_ns)
        if cost > Decimal(str(self.budget)):
            raise OverBudget(f"filling a gap would cost ${cost:.4f} and ${self.budget:.2f} are left today")
        self.bought.append((schema, start_ns, end_ns))
        path = self.folder / f"{start_ns}.dbn.zst"
        asked = self._asked(schema, parents, start_ns, end_ns)
        if self.withheld:
            asked["limit"] = self.count(schema, parents, start_ns, end_ns) - self.withheld
        self._client.timeseries.get_range(**asked, path=path)
        return path, cost

    def _asked(self, schema: str, parents: tuple[str, ...], start_ns: int, end_ns: int) -> dict[str, Any]:
        span = {"start": start_ns, "end": end_ns}
        return {"dataset": DATASET, "schema": schema, "symbols": list(parents), "stype_in": "parent", **span}
