"""What the live gateway no longer replays, from the historical API: the seam, and the repair of a gap.

Whoever hosts a capture hands in a `History`; this room knows neither the vendor's client nor the
ledger. Prices and counts are free to ask. `fetch` spends money and is called only where the
operator has opted in (`NQ_CAPTURE_REPAIR=paid`).
"""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Protocol


class History(Protocol):
    """The historical API of one dataset.

    Spans are of `ts_recv`, nanoseconds UTC, start included, end not; symbols are parents (`NQ.OPT`).
    Calls block for as long as the vendor takes, and come from one thread at a time.

    Raises
    ------
    SourceError
        From every method, with a sentence for a person: there is no answer, or a refusal.
    LedgerError
        From `fetch`: the ledger cannot be used, so nothing was asked.
    """

    def price(self, schema: str, parents: tuple[str, ...], start_ns: int, end_ns: int) -> Decimal:
        """What the records of a span cost now, USD."""
        ...

    def count(self, schema: str, parents: tuple[str, ...], start_ns: int, end_ns: int) -> int:
        """How many records the vendor says a span has (`metadata.get_record_count`)."""
        ...

    def fetch(
        self, schema: str, parents: tuple[str, ...], start_ns: int, end_ns: int, *, run_id: str
    ) -> tuple[Path, Decimal]:
        """Buy the records of a span: a DBN file with the mappings of its instruments, and its cost in USD.

        Raises
        ------
        OverBudget
            The ledger refuses; nothing was asked of the vendor.
        """
        ...
