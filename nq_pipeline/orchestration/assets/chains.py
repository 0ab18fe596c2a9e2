"""Option chains: what each vendor sent, and the chosen chain, from one step.

One step asks all vendors, so a snapshot is of one moment and takes as long as the slowest vendor. A vendor
that fails yields its failed check and no materialization, and the next vendor's chain is chosen.
"""

from collections.abc import Iterator

import dagster as dg
from pydantic import Field

from nq_pipeline.chains import quality
from nq_pipeline.chains.request import build_request
from nq_pipeline.chains.result import Snapshot
from nq_pipeline.lake.tables import OPTION_CHAIN, SOURCE_CHAIN
from nq_pipeline.orchestration import checks, freshness, metadata
from nq_pipeline.orchestration.names import CHOSEN_CHAIN, SOURCE_CHAINS
from nq_pipeline.orchestration.partitions import CHAIN_DATES
from nq_pipeline.orchestration.resources import Vendors
from nq_pipeline.orchestration.steps import MARKET_DATA, Event, failing_in_one_sentence
from nq_pipeline.schedule_policy import SCHEDULED, scheduled_for
from nq_pipeline.settings import Settings
from nq_pipeline.sources.base import ChainRequest
from nq_pipeline.sources.registry import VENDORS

GROUP = "chains"
CADENCE = "Every product in NQ_PRODUCTS, every five minutes while NQ_CHAIN_WINDOW is open."

SPECS = [
    *(
        dg.AssetSpec(
            key,
            skippable=True,
            description=f"{VENDORS[name].description}\n\n{SOURCE_CHAIN.meaning} {CADENCE}",
            metadata=metadata.of_table(SOURCE_CHAIN),
            group_name=GROUP,
            owners=MARKET_DATA,
            tags={"nq/underlying": VENDORS[name].underlying, "nq/cost": VENDORS[name].cost},
            kinds={name, "parquet"},
        )
        for name, key in SOURCE_CHAINS.items()
    ),
    dg.AssetSpec(
        CHOSEN_CHAIN,
        deps=list(SOURCE_CHAINS.values()),
        skippable=True,
        description="The chosen option chain: for each series the first healthy source by priority "
        f"(NQ_SOURCES); a proxy only when every native source failed.\n\n{OPTION_CHAIN.meaning} {CADENCE}",
        metadata=metadata.of_table(OPTION_CHAIN),
        group_name=GROUP,
        owners=MARKET_DATA,
        tags={"nq/layer": "chosen"},
        freshness_policy=freshness.SNAPSHOT,
        kinds={"duckdb", "parquet"},
    ),
]


class ChainConfig(dg.Config):
    """The configuration of a run."""

    refresh: bool = Field(False, description="Ask again even where a cached answer is still fresh.")


@dg.multi_asset(
    specs=SPECS,
    check_specs=checks.specs(*SOURCE_CHAINS.values(), CHOSEN_CHAIN),
    partitions_def=CHAIN_DATES,
    can_subset=True,
)
def option_chains(
    context: dg.AssetExecutionContext, config: ChainConfig, vendors: dg.ResourceParam[Vendors]
) -> Iterator[Event]:
    """Take one snapshot of the selected vendors' chains; choosing a chain asks all vendors."""
    from nq_pipeline.chains.snapshot import take_snapshot
    from nq_pipeline.runtime import endpoints

    # A check selected without its asset still needs the vendor's answer.
    selected = context.selected_asset_keys | {check.asset_key for check in context.selected_asset_check_keys}
    choose = CHOSEN_CHAIN in selected
    with failing_in_one_sentence():
        settings = vendors.settings()
        names = (name for name in settings.chains.sources if choose or SOURCE_CHAINS[name] in selected)
        request = _request(context, settings)
        with endpoints(settings.with_values(sources=tuple(names))) as reachable:
            snapshot = take_snapshot(
                reachable, request, refresh=config.refresh, choose=choose, opener=vendors.opener
            )
    for name, key in SOURCE_CHAINS.items():
        if key in selected:
            yield from _source_events(context, name, snapshot, settings)
    if choose:
        yield from _chosen_events(context, snapshot, settings)


def _request(context: dg.AssetExecutionContext, settings: Settings) -> ChainRequest:
    """What to ask for. Vendors show only the present, so the partition must be the current trade date."""
    scheduled = scheduled_for(context.run.tags.get(SCHEDULED), settings.clock.now())
    request = build_request(settings, run_id=context.run.run_id, scheduled=scheduled)
    current = request.trade_date.isoformat()
    # Checks launched alone have no partition.
    wanted = context.partition_key if context.has_partition_key else current
    if wanted != current:
        raise dg.Failure(
            f"Vendors show only the current session, {current}, not {wanted}; "
            f"launch the partition {current}, or set NQ_NOW to an instant of {wanted}.",
            allow_retries=False,
        )
    return request


def _source_events(
    context: dg.AssetExecutionContext, name: str, snapshot: Snapshot, settings: Settings
) -> Iterator[Event]:
    key, result = SOURCE_CHAINS[name], snapshot.results.get(name)
    if result is None:
        why = snapshot.skipped.get(name, "it is not among NQ_SOURCES")
        findings = {"available": quality.not_asked(why)}
    else:
        findings = quality.of_source(result.answer, snapshot.request, settings)
        if result.answer.frame.height and key in context.selected_asset_keys:
            yield dg.MaterializeResult(
                asset_key=key, metadata=metadata.of_source(name, result, snapshot, settings)
            )
    yield from checks.results(key, findings, context.selected_asset_check_keys)


def _chosen_events(
    context: dg.AssetExecutionContext, snapshot: Snapshot, settings: Settings
) -> Iterator[Event]:
    if snapshot.chain.height and CHOSEN_CHAIN in context.selected_asset_keys:
        yield dg.MaterializeResult(asset_key=CHOSEN_CHAIN, metadata=metadata.of_chain(snapshot, settings))
    answers = {name: result.answer for name, result in snapshot.results.items()}
    findings = quality.of_chain(snapshot.chain, snapshot.decisions, answers, snapshot.request, settings)
    yield from checks.results(CHOSEN_CHAIN, findings, context.selected_asset_check_keys)
