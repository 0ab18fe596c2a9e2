"""What a vendor's plan refuses, recorded so that a chain requests it only once per trade date."""

from __future__ import annotations

from collections.abc import Mapping

from nq_pipeline.errors import LakeError
from nq_pipeline.outcome import Outcome
from nq_pipeline.settings import Settings
from nq_pipeline.sources.base import ChainAnswer, ChainRequest, Source
from nq_pipeline.sources.registry import VENDORS
from nq_pipeline.spend import entitlements
from nq_pipeline.spend.entitlements import WHOLE_CHAIN, Entitlement
from nq_pipeline.workspace import Workspace


def known_refusals(source: Source, settings: Settings, request: ChainRequest) -> Mapping[str, Entitlement]:
    """The refusals of the vendor's plan that hold on this trade date, by part of the chain.

    Empty while the table is damaged: a useless request costs less than a missing chain.
    `record_entitlements` reports the damage.
    """
    try:
        return _refusals(source, settings, request)
    except LakeError:
        return {}


def record_entitlements(
    source: Source, settings: Settings, request: ChainRequest, answer: ChainAnswer, *, whole: bool
) -> None:
    """Record which parts of a chain an answer shows as refused by the plan, and which as granted again.

    Raises `LakeError` when the table of entitlements cannot be read or written.
    """
    product = VENDORS[source.name].plan_product
    if product is None:
        return
    refusals = {part: text for part, text in answer.refused.items() if part not in request.refused}
    if whole:
        granted = _refusals(source, settings, request).keys() - answer.refused.keys()
        refusals |= dict.fromkeys(granted, "")
    if answer.outcome is Outcome.NOT_ENTITLED:
        refusals[WHOLE_CHAIN] = answer.reason
    elif answer.frame.height and WHOLE_CHAIN not in answer.refused:
        refusals[WHOLE_CHAIN] = ""
    for part, text in refusals.items():
        others, rest = "the other vendors' chains are used", "the rest of its chain is used"
        consequence = others if part == WHOLE_CHAIN else rest
        entitlements.record_entitlement(
            Workspace.of(settings).lake,
            Entitlement(
                vendor=source.name,
                dataset=product,
                schema=part,
                mode="historical",
                environment=request.environment,
                trade_date=request.trade_date,
                entitled=not text,
                text=text,
                step=consequence if text else "",
                address=source.base_url,
                data_from=request.trade_date if text and part != WHOLE_CHAIN else None,
            ),
            run_id=request.run_id,
        )


def _refusals(source: Source, settings: Settings, request: ChainRequest) -> dict[str, Entitlement]:
    product = VENDORS[source.name].plan_product
    if product is None:
        return {}
    lake = Workspace.of(settings).lake
    return entitlements.active_refusals(
        lake, source.name, product, "historical", request.trade_date, address=source.base_url
    )
