"""A finding of the library in the words of an asset check."""

from __future__ import annotations

from typing import Any

import dagster as dg

from nq_pipeline.finding import Finding
from nq_pipeline.orchestration.metadata import markdown


def said(finding: Finding) -> dict[str, Any]:
    """What a result and an evaluation of a check have in common."""
    table = {} if finding.table is None else {"details": markdown(finding.table)}
    warn = finding.severity == "warn"
    return {
        "passed": finding.passed,
        "severity": dg.AssetCheckSeverity.WARN if warn else dg.AssetCheckSeverity.ERROR,
        "description": finding.sentence,
        "metadata": {**finding.numbers, **table},
    }
