"""Which symbol an instrument_id stands for.

An id is later reused for another instrument, so it means nothing without a day.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt

from nq_pipeline.dbn.layout import DAY_NS, Array

LAST_DAY = np.iinfo(np.int64).max // DAY_NS
"""The last day since 1970 that int64 nanoseconds reach."""
EPOCH = date(1970, 1, 1).toordinal()


class SymbolMap:
    """The symbol of each instrument_id, by interval of UTC days (end excluded).

    `names` has all symbols, each once; `find` returns positions in it.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self._codes: dict[str, int] = {}
        self._intervals: dict[tuple[int, int], tuple[int, int]] = {}
        self._table: tuple[Array, Array, Array] | None = None

    def add(self, instrument_id: int, first: int, until: int, symbol: str) -> None:
        """Add an interval of days since 1970; a later one with the same first day replaces it."""
        code = self._codes.setdefault(symbol, len(self.names))
        if code == len(self.names):
            self.names.append(symbol)
        self._intervals[instrument_id, max(first, 0)] = (min(until, LAST_DAY), code)
        self._table = None

    def __iter__(self) -> Iterator[tuple[int, int, int, str]]:
        """Yield instrument_id, first day, day after the last, and symbol."""
        for (instrument_id, first), (until, code) in self._intervals.items():
            yield instrument_id, first, until, self.names[code]

    def find(self, instrument_ids: Array, days: Array) -> npt.NDArray[np.int32]:
        """Look up pairs of id and day since 1970; returns positions in `names`, -1 where none is known."""
        keys, untils, codes = self._sorted()
        if not len(keys):
            return np.full(len(days), -1, np.int32)
        ids = instrument_ids.astype(np.uint64) << 32
        at = np.searchsorted(keys, ids | days.astype(np.uint64), side="right") - 1
        found = (at >= 0) & (keys[at] >= ids) & (days < untils[at])
        return np.where(found, codes[at], -1).astype(np.int32)

    def _sorted(self) -> tuple[Array, Array, Array]:
        if self._table is None:
            rows = [(number << 32 | first, *mapped) for (number, first), mapped in self._intervals.items()]
            keys, untils, codes = zip(*sorted(rows), strict=True) if rows else ((), (), ())
            self._table = (np.array(keys, np.uint64), np.array(untils, np.int64), np.array(codes, np.int32))
        return self._table


def symbol_intervals(metadata: Any) -> Iterator[tuple[int, int, int, str]]:
    """Yield the mappings of a header: instrument_id, first day, day after the last, symbol.

    Days count from 1970. The order is always the same for the same file; a header that maps no
    instrument_id yields nothing. ValueError or OverflowError if a symbol is mapped to something else.
    """
    by_id = str(metadata.stype_in) == "instrument_id"
    if not by_id and str(metadata.stype_out) != "instrument_id":
        return
    for requested, spans in sorted(metadata.mappings.items()):  # the decoder's dictionary has no order
        for span in spans:
            if span["symbol"]:
                number, symbol = (requested, span["symbol"]) if by_id else (span["symbol"], requested)
                if not 0 <= (instrument_id := int(number)) < 2**32:
                    raise OverflowError(f"{number} is not an instrument_id")
                first, until = span["start_date"].toordinal() - EPOCH, span["end_date"].toordinal() - EPOCH
                yield instrument_id, first, until, symbol
