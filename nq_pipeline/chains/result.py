"""The result of a snapshot: each source's result, and the chain that was selected from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import polars as pl

from nq_pipeline.chains.quality import newest_quote
from nq_pipeline.market.contracts import Series
from nq_pipeline.sources.base import ChainAnswer, ChainRequest


@dataclass(frozen=True, slots=True)
class SourceResult:
    """One source's part of a snapshot.

    Attributes
    ----------
    elapsed_s
        Wall time of requests and parsing, including cache look-ups.
    fetches
        Its requests as rows of `fetches`.
    used
        Request id of the archived answer, by digest of the request, so that it can be parsed again.
    fault
        The exception, if a fault of this program ended it.
    """

    answer: ChainAnswer
    series: tuple[Series, ...]
    elapsed_s: float
    fetches: pl.DataFrame
    used: Mapping[str, str] = field(default_factory=dict)
    fault: Exception | None = None

    @property
    def hits(self) -> int:
        return int(self.fetches.filter(pl.col("cache") == "hit").height)

    @property
    def misses(self) -> int:
        return self.fetches.height - self.hits

    @property
    def newest(self) -> datetime | None:
        """The newest quote or trade of the answer (UTC)."""
        return newest_quote(self.answer.frame)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The result of one run.

    Attributes
    ----------
    results
        By source that was asked, in order of priority.
    skipped
        Why a source was not asked, by its name.
    decisions, chain
        Rows of `chain_decisions` and of `option_chain`: who won each series and why, and the winners' rows.
    rows
        New rows by table.
    """

    request: ChainRequest
    results: Mapping[str, SourceResult]
    skipped: Mapping[str, str]
    decisions: pl.DataFrame
    chain: pl.DataFrame
    rows: Mapping[str, int]

    @property
    def winners(self) -> dict[str, int]:
        """Contracts by winning source, largest first."""
        counts = self.chain.group_by("source").len().sort("len", descending=True)
        return dict(counts.iter_rows())
