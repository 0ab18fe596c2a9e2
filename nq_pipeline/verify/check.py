"""What a check receives and returns."""

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
    """Intervals in seconds; tests shorten them."""

    settle_s: float = 1.0  # records whose `ts_event` are this far apart arrive in order
    outage_s: float = 2.0  # how long the dropped connection stays down
    patience_s: float = 60.0  # the limit of a replay or an answer


@dataclass
class Context:
    """What checks share: the configuration, and what earlier checks found."""

    settings: Settings
    clock: Clock  # the gateway's: wall time, or the stand-in's; not pinned
    recorder: FeedRecorder
    evidence: Evidence
    work: Path  # removed at the end; the environment's own lake and log are not touched
    max_usd: Decimal
    stream_s: float
    timing: VerifyTiming = field(default_factory=VerifyTiming)
    spent_usd: Decimal = Decimal(0)
    live: Recording | None = None  # the session that was dropped
    resumed: Recording | None = None  # the one that resumed it
    recounted: Recording | None = None  # a replay of both spans
    span: tuple[Query, Array] | None = None  # one that the historical API has, and the gateway's replay of it

    @property
    def parents(self) -> tuple[str, ...]:
        """The parents of the options and futures of the chosen products."""
        return (*option_parents(self.settings.products), *future_parents(self.settings.products))

    @property
    def settle_ns(self) -> np.uint64:
        return np.uint64(self.timing.settle_s * NS_PER_S)

    @cached_property
    def probes(self) -> Mapping[str, Probe]:
        """The doctor's probe of every vendor; made once, of all vendors at the same time."""
        from nq_pipeline.verify.doctor import probe_sources

        return probe_sources(self.settings)


@dataclass(frozen=True, slots=True)
class Check:
    """A named check; it is skipped unless the checks it needs have passed."""

    name: str
    run: Callable[[Context], CheckResult]
    needs: tuple[str, ...] = ()
