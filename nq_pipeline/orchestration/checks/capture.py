"""Checks of the live capture, none blocking, and none of them part of the step that captures.

That step runs all day, and until its end a check of its own would show as "in progress" and hide
what is known. So they are judged from the lake: by `capture_checks` (a sensor) whenever a judgement
has changed, when a capture ends however it ends, and by hand at any time.
"""

from collections.abc import Iterator, Mapping, Sequence

import dagster as dg

from nq_pipeline.capture import quality
from nq_pipeline.finding import Finding
from nq_pipeline.orchestration.checks.chains import results
from nq_pipeline.orchestration.checks.finding import said
from nq_pipeline.orchestration.resources import Vendors

TRADES_ASSET = dg.AssetKey(["databento", "trades"])

CHECKS = {
    "gaps": "Every hole in the capture of the trade date was filled and an independent count agrees. "
    "A warning while one is open, an error where one cannot be filled.",
    "entitlement": "The plan streams the schemas that are wanted (NQ_CAPTURE_SCHEMA, "
    "NQ_CAPTURE_FUTURES_SCHEMA). A warning where it fell back to a lesser one, an error where there is none.",
    "freshness": "While the window is open, the newest trade is under two minutes old; an error after ten.",
    "completeness": "The share of the window so far for which nothing is missing, proven; and the gateway "
    "named instruments of every root that is always listed, NQ above all.",
}


@dg.multi_asset_check(
    name="capture_state",
    specs=[
        dg.AssetCheckSpec(name, asset=TRADES_ASSET, description=meaning) for name, meaning in CHECKS.items()
    ],
    can_subset=True,
)
def capture_state(
    context: dg.AssetCheckExecutionContext, vendors: dg.ResourceParam[Vendors]
) -> Iterator[dg.AssetCheckResult]:
    """Judge the trade date whose window opened last, as the lake has it now."""
    settings, now = vendors.settings(), vendors.market_now()
    day = quality.read_capture_day(settings, now, quality.last_opened(now, settings.capture_window))
    yield from results(TRADES_ASSET, quality.judge_capture(day), context.selected_asset_check_keys)


def evaluations(findings: Mapping[str, Finding]) -> Sequence[dg.AssetCheckEvaluation]:
    """Findings as events that belong to no step."""
    return [
        dg.AssetCheckEvaluation(asset_key=TRADES_ASSET, check_name=name, **said(finding))
        for name, finding in findings.items()
    ]
