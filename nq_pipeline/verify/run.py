"""`nq verify`: the feed test, check by check, against whatever is configured: the vendors or the stand-ins.

Nothing of the environment is written but the evidence, and the ledger and its table `spend` when
something is bought: what is captured on the way goes to a folder that is removed at the end. One
session of the live gateway is open at a time, so a capture may run beside it as long as the account
has one session left.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nq_pipeline import files
from nq_pipeline.capture import gateway
from nq_pipeline.clock import Clock
from nq_pipeline.errors import CaptureError, NotConfigured, NqError
from nq_pipeline.settings import Settings
from nq_pipeline.sources.databento.spec import DatabentoSettings
from nq_pipeline.sources.registry import SOURCE_NAMES
from nq_pipeline.verify import (
    feed,
    historical_api,
    replay,
    vendors,
)
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
"""All there is to verify, in order."""


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What came of a verification; `folder` holds the evidence."""

    started: datetime
    seconds: float
    environment: str
    results: tuple[CheckResult, ...]
    spent_usd: Decimal
    folder: Path

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
    pace: VerifyTiming | None = None,
) -> VerifyReport:
    """Make all checks and keep the evidence.

    Parameters
    ----------
    settings
        Of vendors that can be reached, as `sandbox.process.endpoints` gives them.
    clock
        The live gateway's: wall time, or that of its stand-in. Must run.
    minutes
        How long to stream before the connection is dropped.
    max_usd
        What the check of the historical API may spend at most; the ledger's budgets hold as well.
    on_result
        Is handed every result as it comes.

    Raises
    ------
    CaptureError
        The clock is pinned.
    """
    if clock.pinned:
        raise CaptureError("a verification needs a clock that runs; unset NQ_NOW")
    started, began = datetime.now(UTC), time.monotonic()
    folder = Workspace.of(settings).evidence / f"{started:%Y%m%dT%H%M%S.%fZ}"
    dataset = settings.vendor(DatabentoSettings).dataset
    address = gateway.gateway_address(settings.vendor(DatabentoSettings).gateway, dataset)
    results: list[CheckResult] = []
    files.make_folder(folder)  # before anything is asked whose evidence could then not be kept
    with TemporaryDirectory(prefix="nq-verify-") as work:
        ctx = Context(
            settings=settings,
            clock=clock,
            line=FeedRecorder(settings.vendor(DatabentoSettings).api_key, dataset, address, clock),
            evidence=Evidence(folder, settings),
            work=Path(work) / settings.environment,
            max_usd=max_usd,
            stream_s=minutes * 60,
            pace=pace or VerifyTiming(),
        )
        try:
            for check in checks:
                results.append(_result(check, ctx, results))
                if on_result:
                    on_result(results[-1])
        finally:  # also of what was found before Ctrl-C
            report = VerifyReport(
                started=started,
                seconds=time.monotonic() - began,
                environment=settings.environment,
                results=tuple(results),
                spent_usd=ctx.spent_usd,
                folder=folder,
            )
            ctx.evidence.report({"dataset": dataset, "versions": _versions(), **report.as_json()})
    return report


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("nq_pipeline", "databento")}


def _result(check: Check, ctx: Context, before: Sequence[CheckResult]) -> CheckResult:
    """Make one check, unless one it needs did not pass."""
    began = time.monotonic()
    verdicts = {result.check: result.verdict for result in before}
    lacking = [name for name in check.needs if verdicts.get(name) != "PASS"]
    found = skipped(f"needs {lacking[0]}, which did not pass") if lacking else _found(check, ctx)
    return replace(
        found,
        reason=ctx.evidence.redact(found.reason),
        facts=ctx.evidence.redact(found.facts),
        check=check.name,
        seconds=time.monotonic() - began,
    )


def _found(check: Check, ctx: Context) -> CheckResult:
    try:
        return check.find(ctx)
    except NotConfigured as error:
        return skipped(str(error))
    except NqError as error:
        return failed(str(error))
    except Exception as fault:  # one check's fault must not hide what the others find
        return failed(f"a fault of this program, {type(fault).__name__}: {fault}; please report it")
