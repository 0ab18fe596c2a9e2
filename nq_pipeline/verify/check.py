"""What a check is handed, and what it hands back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nq_pipeline.capture.gateway import future_parents, option_parents
from nq_pipeline.clock import NS_PER_S, Clock
from nq_pipeline.settings import Settings
from nq_pipeline.sources.base import Probe
from nq_pipeline.sources.databento.query import Query
from nq_pipeline.verify.evidence import Evidence
from nq_pipeline.verify.feed_recorder import Array, FeedRecorder, Recording

Verdict = Literal["PASS", "FAIL", "SKIP"]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What one check found: the verdict, why in one sentence, and the figures behind it.

    `run_checks` adds the name of the check and how long it took, in seconds.
    """

    verdict: Verdict
    reason: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    check: str = ""
    seconds: float = 0.0


def passed(reason: str, **facts: Any) -> CheckResult:
    return CheckResult("PASS", reason, facts)


def failed(reason: str, **facts: Any) -> CheckResult:
    return CheckResult("FAIL", reason, facts)


def skipped(reason: str, **facts: Any) -> CheckResult:
    return CheckResult("SKIP", reason, facts)


@dataclass(frozen=True, slots=True)
class VerifyTiming:
    """What a test may want shorter, in seconds.

    Attributes
    ----------
    settle_s
        Records whose `ts_event` are so far apart come in order.
    outage_s
        How long the dropped connection stays down.
    patience_s
        How long a replay or an answer may take.
    """

    settle_s: float = 1.0
    outage_s: float = 2.0
    patience_s: float = 60.0


@dataclass
class Context:
    """What checks share: what is configured, and what the checks before them brought.

    Attributes
    ----------
    clock
        The gateway's: wall time, or that of the stand-in. Runs.
    work
        A folder that is removed at the end; nothing is written to the environment's own lake or log.
    stream_s
        How long to stream.
    live, resumed, recounted
        The session that was dropped, the one that took it up again, and a replay of both spans.
    span
        A span that the historical API has, and what the gateway replays of it.
    """

    settings: Settings
    clock: Clock
    line: FeedRecorder
    evidence: Evidence
    work: Path
    max_usd: Decimal
    stream_s: float
    pace: VerifyTiming = field(default_factory=VerifyTiming)
    spent_usd: Decimal = Decimal(0)
    live: Recording | None = None
    resumed: Recording | None = None
    recounted: Recording | None = None
    span: tuple[Query, Array] | None = None

    @property
    def parents(self) -> tuple[str, ...]:
        """What is subscribed to: all options and the futures of the chosen products."""
        return (*option_parents(self.settings.products), *future_parents(self.settings.products))

    @property
    def settle_ns(self) -> np.uint64:
        return np.uint64(self.pace.settle_s * NS_PER_S)

    @cached_property
    def probes(self) -> Mapping[str, Probe]:
        """What the doctor says of every vendor; asked once, of all at the same time."""
        from nq_pipeline.verify.doctor import probe_sources

        return probe_sources(self.settings)


@dataclass(frozen=True, slots=True)
class Check:
    """A check by name; it is skipped unless those it needs have passed."""

    name: str
    find: Callable[[Context], CheckResult]
    needs: tuple[str, ...] = ()
