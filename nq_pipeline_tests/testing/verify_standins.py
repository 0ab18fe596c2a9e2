"""A verification of scripted stand-ins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

from nq_pipeline.clock import Clock
from nq_pipeline.configuration import build_settings
from nq_pipeline.sandbox.gateway.fault_script import Fault, FaultScript
from nq_pipeline.sandbox.gateway.gateway import HOST, KEY, Gateway
from nq_pipeline.settings import Settings
from nq_pipeline.verify.check import VerifyTiming
from nq_pipeline.verify.run import CHECKS, VerifyReport, run_checks
from nq_pipeline_tests.testing.gateway_client import gateway, unlimited

LOAD = 500
QUICK = VerifyTiming(settle_s=0.3, outage_s=0.3, patience_s=20.0)
STREAM_S = 1.2


@contextmanager
def serve_feed(*faults: Fault, load: int | None = LOAD, **more: Any) -> Iterator[Gateway]:
    """A gateway in the middle of a session, which works off these faults."""
    options = {"load": load, "script": FaultScript(*faults), "limits": unlimited(), **more}
    with gateway(**options).serve_in_thread() as it:
        yield it


def verify_settings(it: Gateway | None, data: Path, **more: Any) -> Settings:
    """Settings of a gateway, and of no other vendor."""
    own = {
        "data_dir": data,
        "sources": ("databento",),
        "databento_url": f"http://{HOST}:9",
        "databento_gateway": it.address if it else f"{HOST}:9",
        "databento_api_key": KEY,
        "capture_schema": "trades",
    }
    return build_settings(**{**own, **more})


def run_verification(
    it: Gateway,
    data: Path,
    *names: str,
    clock: Clock | None = None,
    stream_s: float = STREAM_S,
    max_usd: str = "0",
    timing: VerifyTiming = QUICK,
    **more: Any,
) -> VerifyReport:
    """The report of some checks."""
    return run_checks(
        verify_settings(it, data, **more),
        clock=clock or it.clock,
        minutes=stream_s / 60,
        max_usd=Decimal(max_usd),
        checks=[check for check in CHECKS if check.name in names],
        timing=timing,
    )


def verdicts(report: VerifyReport) -> dict[str, str]:
    """Check to verdict."""
    return {result.check: result.verdict for result in report.results}


def reason(report: VerifyReport, check: str) -> str:
    return next(result.reason for result in report.results if result.check == check)
