"""Asset checks: what each one promises, and findings of the library as their results.

Only the check of purchased history blocks. A vendor that fails must not stop the others, and a chain that
cannot be priced is still a chain. A check without anything to judge has no result.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg

from nq_pipeline.analytics import quality as analytics
from nq_pipeline.capture import quality as capture
from nq_pipeline.finding import Finding
from nq_pipeline.orchestration import names
from nq_pipeline.orchestration.metadata import markdown_table
from nq_pipeline.orchestration.resources import Vendors

_SOURCE_CHAIN = {
    "available": "The vendor sent a whole answer. A warning where rows are missing, or where the vendor is "
    "not configured or was left out on purpose.",
    "rows_complete": "The vendor's own control totals hold and every series is complete.",
    "no_bad_quotes": "No quote is crossed, negative or infinite; a warning up to NQ_MAX_BAD_QUOTES.",
    "unique_contracts": "Every contract appears at most once.",
    "fresh": "In regular hours the newest quote or trade is younger than NQ_STALE_AFTER_S; at other "
    "times it is from the current or the last session.",
}

PROMISES: dict[dg.AssetKey, dict[str, str]] = {
    **dict.fromkeys(names.SOURCE_CHAINS.values(), _SOURCE_CHAIN),
    names.CHOSEN_CHAIN: {
        "available": "At least one source has a usable chain.",
        "series_covered": "Every requested series has a winner, or no vendor lists it.",
        "no_proxy": "The contracts are options on futures, not on an index or fund that stands in for them.",
        **{name: _SOURCE_CHAIN[name] for name in ("no_bad_quotes", "unique_contracts", "fresh")},
        "parity_forward": "In every series the forward that put-call parity implies lies within "
        "NQ_PARITY_TOLERANCE of the underlying.",
        "sources_agree": "Native sources agree on the quotes of shared contracts and on the underlying.",
    },
    names.PRICING: {
        "quotes_priced": f"At least {analytics.LEAST_PRICED:.0%} of the out-of-the-money rows with a price "
        "and a forward have an implied volatility. Many quotes deep in the money have no time value, and "
        "rightly none.",
        "forwards_agree": f"At least {analytics.LEAST_FORWARDS:.0%} of the series with a price have a "
        "forward by put-call parity, and it lies within NQ_PARITY_TOLERANCE of the vendor's underlying.",
    },
    names.SMILE: {
        "front_smile": f"The first series to expire has a smile: at least {analytics.LEAST_STRIKES} strikes "
        "on either side of the forward, and an at-the-money volatility.",
        "no_butterfly_arbitrage": "No butterfly of neighbouring strikes costs less than nothing at the "
        f"quotes; a warning up to {analytics.MOST_ARBITRAGE:.0%} of them.",
    },
    names.SURFACE: {
        "quotes_inside": f"The surface passes between bid and ask of at least {analytics.LEAST_INSIDE:.0%} "
        "of the out-of-the-money quotes."
    },
    names.ARBITRAGE: {
        "no_surface_arbitrage": "Nowhere does total variance fall from one expiration to the next by more "
        "than the width of the quotes. Butterflies of the fitted curve are listed."
    },
    names.PROFILE: {"open_interest_known": "The vendor sent open interest for some strikes."},
    names.SERIES: {
        "term_structure": "Every series with a forward has an at-the-money volatility.",
        "wings_known": f"At least {analytics.LEAST_WINGS:.0%} of the series with an at-the-money volatility "
        "have a 25-delta put and call.",
    },
    names.MATURITIES: {
        "total_variance_rises": "The total variance at the money does not fall from one maturity to the "
        "next. One that falls is a calendar arbitrage, or an error of the quotes."
    },
    names.LEVELS: {
        "exposure_complete": f"At most {analytics.MOST_LEFT_OUT:.0%} of the open contracts are missing from "
        "the gamma exposure because their rows could not be priced."
    },
    names.OPEN_INTEREST: {
        "figures_continue": "Open interest starts from the figures with which the previous trade date ended."
    },
    names.BARS: {
        "bars_consistent": "Open and close of every bar lie between its low and high.",
        "bars_unbroken": "No trade date of the last 30 days lacks bars, counted from the first one.",
    },
    names.PRESSURE: {
        "windows_whole": "No window overlaps an unfilled gap of the capture.",
        "aggressors_known": f"At most {analytics.MOST_UNDEFINED:.0%} of the volume has no known aggressor.",
    },
    names.LIVE_TRADES: {
        "gaps": "Every gap in the capture of the trade date was filled, and an independent count agrees. "
        "A warning while one is open, an error where one cannot be filled.",
        "entitlement": "The plan streams the wanted schemas (NQ_CAPTURE_SCHEMA, NQ_CAPTURE_FUTURES_SCHEMA). "
        "A warning where the capture fell back to a lesser schema, an error where there is none.",
        "freshness": "While the window is open, the newest trade is under two minutes old; an error after "
        "ten.",
        "completeness": "The share of the window so far that is proven complete, and whether the gateway "
        "named instruments of every root that is always listed, NQ above all.",
    },
    names.SPEND_LEDGER: {
        "budget": "No metered request was refused today. A refused request was never sent; the rest of its "
        "run went on, with the outcome over_budget.",
        "projection": "The month stays below NQ_BUDGET_WARN of what the plan leaves of "
        "NQ_BUDGET_MONTHLY_USD. A warning.",
        "plan_fee": "The plan's monthly fee is booked.",
        "reconciled": "No reservation is open for longer than NQ_BUDGET_REVIEW_H.",
        "entitlement": "No plan refuses a request. A warning where there is a replacement: a lesser "
        "schema of the live gateway, another vendor's chain, older days of history; an error where nothing "
        "is left.",
    },
}
"""What each check of an asset promises, by its name. An alert quotes the first sentence."""


def specs(*keys: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    """The specifications of all checks of the assets."""
    return [
        dg.AssetCheckSpec(name, asset=key, description=promise)
        for key in keys
        for name, promise in PROMISES[key].items()
    ]


def results(
    key: dg.AssetKey, findings: Mapping[str, Finding | None], selected: set[dg.AssetCheckKey]
) -> Iterator[dg.AssetCheckResult]:
    """Findings as results of the selected checks of an asset."""
    for name, finding in findings.items():
        if finding is not None and dg.AssetCheckKey(key, name) in selected:
            yield dg.AssetCheckResult(asset_key=key, check_name=name, **_fields(finding))


def capture_evaluations(findings: Mapping[str, Finding]) -> list[dg.AssetCheckEvaluation]:
    """Findings about the capture as events that belong to no step."""
    return [
        dg.AssetCheckEvaluation(asset_key=names.LIVE_TRADES, check_name=name, **_fields(finding))
        for name, finding in findings.items()
    ]


def _fields(finding: Finding) -> dict[str, Any]:
    """The fields that a result and an evaluation of a check share."""
    details = {} if finding.table is None else {"details": markdown_table(finding.table)}
    warn = finding.severity == "warn"
    return {
        "passed": finding.passed,
        "severity": dg.AssetCheckSeverity.WARN if warn else dg.AssetCheckSeverity.ERROR,
        "description": finding.sentence,
        "metadata": {**finding.numbers, **details},
    }


@dg.multi_asset_check(name="capture_state", specs=specs(names.LIVE_TRADES), can_subset=True)
def capture_state(
    context: dg.AssetCheckExecutionContext, vendors: dg.ResourceParam[Vendors]
) -> Iterator[dg.AssetCheckResult]:
    """Judge the trade date whose window opened last, from the lake.

    These checks are not part of the step that captures. It runs all day, and until its end its own checks
    would show as "in progress" and hide the last result. The sensor `capture_checks` and the end of every
    capture record them, and anybody can run them at any time.
    """
    settings, now = vendors.settings(), vendors.market_now()
    day = capture.read_capture_day(settings, now, capture.last_opened(now, settings.capture.window))
    yield from results(names.LIVE_TRADES, capture.judge_capture(day), context.selected_asset_check_keys)
