"""Checks of option chains, evaluated in the step that asked, none blocking.

A vendor that fails must not stop the others, so a failed check is a statement, not a gate. What
was not judged (a vendor without rows has no quotes to look at) has no result at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import dagster as dg

from nq_pipeline.finding import Finding
from nq_pipeline.orchestration.checks.finding import said

SOURCE_CHECKS = {
    "available": "The vendor answered, and whole. A warning where rows came but not all, "
    "or where the vendor is not configured or was left out on purpose.",
    "rows_complete": "The vendor's own control totals hold and every series came whole.",
    "no_bad_quotes": "No crossed, negative or infinite quote; a warning up to NQ_MAX_BAD_QUOTES.",
    "unique_contracts": "Every contract at most once.",
    "fresh": "The newest quote or trade is younger than NQ_STALE_AFTER_S, or of the last session "
    "while the market is closed.",
}
CHAIN_CHECKS = {
    "available": "At least one source has a usable chain.",
    "series_covered": "Every series asked for has a winner, or is listed by nobody.",
    "no_proxy": "The contracts are options on futures, not on an index or fund that stands in for them.",
    "no_bad_quotes": SOURCE_CHECKS["no_bad_quotes"],
    "unique_contracts": SOURCE_CHECKS["unique_contracts"],
    "fresh": SOURCE_CHECKS["fresh"],
    "parity_forward": "The forward that put-call parity implies lies within NQ_PARITY_TOLERANCE of "
    "the underlying, in every series.",
    "sources_agree": "Native sources quote the contracts they share alike and see the same underlying.",
}


def specs(sources: Sequence[dg.AssetKey], chain: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    """The specifications of all checks of the sources' chains and of the chosen one."""
    of_sources = [(key, check, text) for key in sources for check, text in SOURCE_CHECKS.items()]
    of_chain = [(chain, check, text) for check, text in CHAIN_CHECKS.items()]
    return [
        dg.AssetCheckSpec(check, asset=key, description=text) for key, check, text in of_sources + of_chain
    ]


def results(
    key: dg.AssetKey, findings: Mapping[str, Finding], selected: set[dg.AssetCheckKey]
) -> Iterator[dg.AssetCheckResult]:
    """Findings as results of the selected checks of an asset."""
    for name, finding in findings.items():
        if dg.AssetCheckKey(key, name) not in selected:
            continue
        yield dg.AssetCheckResult(asset_key=key, check_name=name, **said(finding))
