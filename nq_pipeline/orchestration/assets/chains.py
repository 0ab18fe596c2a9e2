"""Option chains: what each vendor sent, and the chosen chain, from one step.

One step asks all vendors, so a snapshot is of one moment and costs the slowest vendor's time. A
vendor that fails yields its failed check and no materialization; the chain of the next one is
chosen all the same.
"""

from collections.abc import Iterator

import dagster as dg
from pydantic import Field

from nq_pipeline.chains import quality
from nq_pipeline.chains.request import build_request
from nq_pipeline.chains.result import Snapshot
from nq_pipeline.errors import NqError
from nq_pipeline.lake.tables import OPTION_CHAIN, SOURCE_CHAIN
from nq_pipeline.orchestration import freshness, metadata
from nq_pipeline.orchestration.checks import chains as checks
from nq_pipeline.orchestration.partitions import CHAIN_DATES
from nq_pipeline.orchestration.resources import Vendors
from nq_pipeline.schedule_policy import SCHEDULED, scheduled_for
from nq_pipeline.settings import SOURCE_NAMES, Settings
from nq_pipeline.sources.base import ChainRequest

GROUP = "chains"
OWNERS = ["team:market-data"]
CADENCE = "Asked of every product in NQ_PRODUCTS, every five minutes while NQ_CHAIN_WINDOW is open."

CHOSEN = dg.AssetKey(["nq", "option_chain"])
SOURCES = {name: dg.AssetKey([name, "option_chain"]) for name in SOURCE_NAMES}

DESCRIPTIONS = {
    "barchart": "Options on E-mini Nasdaq-100 futures as barchart.com shows them, with volume and open "
    "interest, without Greeks. Quotes are delayed (NQ_BARCHART_DELAY_S). Free to ask; its terms of use "
    "apply, so live asks it only with NQ_BARCHART_ENABLED.",
    "polygon": "Options on the Nasdaq-100 index (and QQQ) from Polygon, now Massive: a proxy, because it has "
    "no options on futures. Needs an API key; what a chain holds and how old it is depends on the plan.",
    "tradovate": "Options on E-mini Nasdaq-100 futures from Tradovate's websocket, a bounded number of "
    "quotes nearest the money. Experimental. Needs an account with API access and market data.",
    "databento": "Options on E-mini Nasdaq-100 futures from CME Globex by Databento: definitions, statistics "
    "and quotes. Metered unless the plan includes it; what the spend ledger's budgets do not grant is not "
    "asked for.",
}
TAGS = {
    "barchart": {"nq/underlying": "future", "nq/cost": "free"},
    "polygon": {"nq/underlying": "proxy", "nq/cost": "plan"},
    "tradovate": {"nq/underlying": "future", "nq/cost": "plan"},
    "databento": {"nq/underlying": "future", "nq/cost": "metered"},
}

SPECS = [
    *(
        dg.AssetSpec(
            key,
            skippable=True,
            description=f"{DESCRIPTIONS[name]}\n\n{SOURCE_CHAIN.meaning} {CADENCE}",
            metadata=metadata.of_table(SOURCE_CHAIN),
            group_name=GROUP,
            owners=OWNERS,
            tags=TAGS[name],
            kinds={name, "parquet"},
        )
        for name, key in SOURCES.items()
    ),
    dg.AssetSpec(
        CHOSEN,
        deps=list(SOURCES.values()),
        skippable=True,
        description="The chosen option chain: per series the first healthy source by priority (NQ_SOURCES), "
        f"a proxy only when every native source failed.\n\n{OPTION_CHAIN.meaning} {CADENCE}",
        metadata=metadata.of_table(OPTION_CHAIN),
        group_name=GROUP,
        owners=OWNERS,
        tags={"nq/layer": "chosen"},
        freshness_policy=freshness.SNAPSHOT,
        kinds={"duckdb", "parquet"},
    ),
]


Event = dg.MaterializeResult[None] | dg.AssetCheckResult


class ChainConfig(dg.Config):
    """What a run may be told."""

    refresh: bool = Field(False, description="Ask again even where a kept answer is still fresh.")


@dg.multi_asset(
    specs=SPECS,
    check_specs=checks.specs(list(SOURCES.values()), CHOSEN),
    partitions_def=CHAIN_DATES,
    can_subset=True,
)
def option_chains(
    context: dg.AssetExecutionContext, config: ChainConfig, vendors: dg.ResourceParam[Vendors]
) -> Iterator[Event]:
    """One snapshot of the selected vendors' chains; all vendors are asked when the choice is wanted."""
    # A check may be selected without its asset: it needs the vendor's answer all the same.
    selected = context.selected_asset_keys | {check.asset_key for check in context.selected_asset_check_keys}
    choose = CHOSEN in selected
    try:
        settings = vendors.settings()
        names = [name for name in settings.sources if choose or SOURCES[name] in selected]
        request = _request(context, settings)
        snapshot = vendors.snapshot(settings, request, sources=names, choose=choose, refresh=config.refresh)
    except NqError as error:
        raise dg.Failure(str(error), allow_retries=False) from error

    for name, key in SOURCES.items():
        if key in selected:
            yield from _source(context, name, snapshot, settings)
    if choose:
        yield from _chosen(context, snapshot, settings)


def _request(context: dg.AssetExecutionContext, settings: Settings) -> ChainRequest:
    """What to ask for; vendors show the present, so the partition has to be the current trade date."""
    scheduled = scheduled_for(context.run.tags.get(SCHEDULED), settings.clock.now())
    request = build_request(settings, run_id=context.run.run_id, scheduled=scheduled)
    current = request.trade_date.isoformat()
    # Checks alone are launched without a partition.
    wanted = context.partition_key if context.has_partition_key else current
    if wanted != current:
        raise dg.Failure(
            f"Vendors show the current session, which is {current}, and not {wanted}; "
            f"launch the partition {current}, or set NQ_NOW to an instant of {wanted}.",
            allow_retries=False,
        )
    return request


def _source(
    context: dg.AssetExecutionContext, name: str, snapshot: Snapshot, settings: Settings
) -> Iterator[Event]:
    key, asked = SOURCES[name], snapshot.results.get(name)
    if asked is None:
        why = snapshot.skipped.get(name, "it is not among NQ_SOURCES")
        findings = {"available": quality.not_asked(why)}
    else:
        findings = quality.of_source(asked.answer, snapshot.request, settings)
        if asked.answer.frame.height and key in context.selected_asset_keys:
            yield dg.MaterializeResult(
                asset_key=key, metadata=metadata.of_source(name, asked, snapshot, settings)
            )
    yield from checks.results(key, findings, context.selected_asset_check_keys)


def _chosen(context: dg.AssetExecutionContext, snapshot: Snapshot, settings: Settings) -> Iterator[Event]:
    if snapshot.chain.height and CHOSEN in context.selected_asset_keys:
        yield dg.MaterializeResult(asset_key=CHOSEN, metadata=metadata.of_chain(snapshot, settings))
    answers = {name: asked.answer for name, asked in snapshot.results.items()}
    findings = quality.of_chain(snapshot.chain, snapshot.decisions, answers, snapshot.request, settings)
    yield from checks.results(CHOSEN, findings, context.selected_asset_check_keys)
