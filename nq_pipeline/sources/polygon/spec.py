"""Polygon (now Massive): its settings and its entry in the registry."""

from __future__ import annotations

from pydantic import SecretStr

from nq_pipeline.outcome import Outcome
from nq_pipeline.settings.base import CommaList, Url, VendorSettings, setting
from nq_pipeline.sources.spec import PlanTier, StandIn, VendorSpec


class PolygonSettings(VendorSettings):
    """The settings of Polygon."""

    prefix = "polygon_"

    url: Url = setting("https://api.massive.com", description="Base address of Polygon (now Massive).")
    rpm: int = setting(
        5,
        ge=0,
        description="Requests per minute that your plan allows; 0 is no limit (the sandbox's default).",
        sandbox=0,
    )
    underlyings: CommaList = setting(
        ("NDX", "SPX"),
        description="Underlyings whose chains are requested as proxies of NQ_PRODUCTS: NDX and QQQ for NQ, "
        "SPX and SPY for ES.",
    )
    api_key: SecretStr | None = setting(
        None,
        description="API key of Polygon or Massive.",
        variables=(
            "POLYGON_API_KEY",
            "MASSIVE_API_KEY",
        ),
    )


SPEC = VendorSpec(
    name="polygon",
    settings=PolygonSettings,
    source="nq_pipeline.sources.polygon.source:Polygon",
    description="Options on the Nasdaq-100 index (and QQQ) from Polygon, now Massive: a proxy, because "
    "it has no options on futures. Needs an API key; what a chain holds and how old it is depends on "
    "the plan.",
    underlying="proxy",
    cost="plan",
    stand_in=StandIn({"polygon_url": "http:"}, {"polygon_api_key": "sandbox-polygon-key"}),
    replay_settings={"polygon_api_key": "not-a-key"},
    remedies={
        Outcome.NOT_CONFIGURED: "set POLYGON_API_KEY (or MASSIVE_API_KEY) to a key of massive.com, "
        "or take polygon out of NQ_SOURCES",
        Outcome.NOT_ENTITLED: "choose a plan with options data at massive.com/pricing",
        Outcome.RATE_LIMITED: "wait a minute; set NQ_POLYGON_RPM to your plan's limit",
    },
    plan_product="options",
    plan_tiers=(PlanTier("historical", "chain", "quotes of NDX and QQQ chains; not with the free plan"),),
)
