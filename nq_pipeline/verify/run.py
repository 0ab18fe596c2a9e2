"""`nq verify`: checks of the feed, one by one, against whatever is configured: vendors or stand-ins.

Nothing in the environment is written but the evidence and, after a purchase, the ledger and its table
`spend`. What is captured goes to a folder that is removed at the end. One gateway session is open at a
time, so a capture may run at the same time if the account has one session left.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nq_pipeline.capture import gateway
from nq_pipeline.clock import Clock, real_now
from nq_pipeline.errors import CaptureError, NotConfigured, NqError
from nq_pipeline.settings import Settings
from nq_pipeline.sources.databento.spec import DatabentoSettings
from nq_pipeline.sources.registry import SOURCE_NAMES
from nq_pipeline.verify import feed, historical_api, replay, vendors
from nq_pipeline.verify.check import Check, CheckResult, Context, VerifyTiming, failed, skipped
from nq_pipeline.verify.evidence import Evidence
from nq_pipeline.verify.feed_recorder import FeedRecorder
from nq_pipeline.workspace import Workspace

CHECKS = (
    Check("connect", feed.connect),
    Check("stream", feed.stream, needs=("connect",)),
    Check("symbols", feed.symbols, needs=("connect",)),
    Check("reconnect", replay.reconnect, needs=("stream",)),
    Check("replay", replay.replay, needs=("stream",)),
    Check("entitlement", feed.entitlement, needs=("connect",)),
    Check("clock", feed.clock, needs=("stream",)),
    Check("latency", feed.latency, needs=("stream",)),
    Check("cost", historical_api.cost),
    Check("count", historical_api.count, needs=("connect", "cost")),
    Check("history", historical_api.history, needs=("cost",)),
    Check("cache", vendors.cache),
    *(Check(name, vendors.vendor(name)) for name in SOURCE_NAMES),
)
"""All checks, in order."""


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The results of a verification; `evidence` is where the evidence is."""

    started: datetime
    seconds: float
    environment: str
    results: tuple[CheckResult, ...]
    spent_usd: Decimal
    evidence: str

    @property
    def sound(self) -> bool:
        """Whether nothing failed."""
        return all(result.verdict != "FAIL" for result in self.results)

    @property
    def summary(self) -> str:
        count = Counter(result.verdict for result in self.results)
        return f"{count['PASS']} passed, {count['FAIL']} failed, {count['SKIP']} skipped"

    def as_json(self) -> dict[str, Any]:
        return {
            "started": self.started,
            "seconds": self.seconds,
            "environment": self.environment,
            "sound": self.sound,
            "spent_usd": self.spent_usd,
            "checks": [asdict(result) for result in self.results],
        }


def run_checks(
    settings: Settings,
    *,
    clock: Clock,
    minutes: float = 1.0,
    max_usd: Decimal = Decimal(0),
    on_result: Callable[[CheckResult], object] | None = None,
    checks: Sequence[Check] = CHECKS,
    timing: VerifyTiming | None = None,
) -> VerifyReport:
    """Run the checks and store the evidence.

    `settings` have addresses that can be reached, as `endpoints` gives them. `clock` is the live gateway's:
    wall time, or the stand-in's. The connection is dropped after `minutes` of streaming. `max_usd` limits the
    check that buys history; the ledger's budgets hold too.

    Raises `CaptureError` for a pinned clock.
    """
    if clock.pinned:
        raise CaptureError("a verification needs a running clock; unset NQ_NOW")
    started, began = real_now(), time.monotonic()
    evidence = Evidence(Workspace.of(settings).evidence, f"{started:%Y%m%dT%H%M%S.%fZ}", settings)
    databento = settings.vendor(DatabentoSettings)
    dataset, address = databento.dataset, gateway.gateway_address(databento.gateway, databento.dataset)
    results: list[CheckResult] = []
    # Before any request whose evidence could not be stored.
    evidence.report({"dataset": dataset, "started": started, "results": ()})
    with TemporaryDirectory(prefix="nq-verify-") as work:
        ctx = Context(
            settings=settings,
            clock=clock,
            recorder=FeedRecorder(databento.api_key, dataset, address, clock),
            evidence=evidence,
            work=Path(work) / settings.environment,
            max_usd=max_usd,
            stream_s=minutes * 60,
            timing=timing or VerifyTiming(),
        )
        try:
            for check in checks:
                results.append(_run_check(check, ctx, results))
                if on_result:
                    on_result(results[-1])
        finally:  # report what was found before Ctrl-C, too
            seconds, environment = time.monotonic() - began, settings.environment
            report = VerifyReport(started, seconds, environment, tuple(results), ctx.spent_usd, evidence.uri)
            versions = {name: version(name) for name in ("nq_pipeline", "databento")}
            ctx.evidence.report({"dataset": dataset, "versions": versions, **report.as_json()})
    return report


def _run_check(check: Check, ctx: Context, before: Sequence[CheckResult]) -> CheckResult:
    """Run a check, unless one it needs did not pass."""
    began = time.monotonic()
    verdicts = {result.check: result.verdict for result in before}
    lacking = [name for name in check.needs if verdicts.get(name) != "PASS"]
    found = skipped(f"needs {lacking[0]}, which did not pass") if lacking else _run_safely(check, ctx)
    return replace(
        found,
        reason=ctx.evidence.redact(found.reason),
        facts=ctx.evidence.redact(found.facts),
        check=check.name,
        seconds=time.monotonic() - began,
    )


def _run_safely(check: Check, ctx: Context) -> CheckResult:
    try:
        return check.run(ctx)
    except NotConfigured as error:
        return skipped(str(error))
    except NqError as error:
        return failed(str(error))
    except Exception as fault:  # one faulty check must not hide the others' results
        return failed(f"a fault of this program, {type(fault).__name__}: {fault}; please report it")
