"""Tradovate (experimental): its settings and its entry in the registry."""

from __future__ import annotations

from pydantic import SecretStr

from nq_pipeline.outcome import Outcome
from nq_pipeline.settings.base import CommaList, Url, VendorSettings, WebsocketUrl, setting
from nq_pipeline.sources.spec import PlanTier, StandIn, VendorSpec


class TradovateSettings(VendorSettings):
    """The settings of Tradovate."""

    prefix = "tradovate_"

    url: Url = setting("https://live.tradovateapi.com/v1", description="Base address of the REST API.")
    md_url: WebsocketUrl = setting(
        "wss://md.tradovateapi.com/v1/websocket", description="Address of the market-data websocket."
    )
    products: CommaList = setting(
        ("NQ=NQ Options", "ES=ES Options"),
        description="Tradovate's names of option products as ROOT=NAME pairs, where the name is not the "
        "root. Unconfirmed: no recorded answer of Tradovate shows one.",
    )
    max_quotes: int = setting(
        200, ge=1, description="Maximum number of contracts to subscribe to, nearest the money first."
    )
    quote_wait_s: float = setting(
        3.0, gt=0, description="Seconds to collect quotes after Tradovate confirmed the last subscription."
    )
    heartbeat_s: float = setting(2.5, gt=0, description="Seconds between the client's heartbeats.")
    username: SecretStr | None = setting(None, description="Login name.", variables=("TRADOVATE_USERNAME",))
    password: SecretStr | None = setting(None, description="Password.", variables=("TRADOVATE_PASSWORD",))
    app_id: str | None = setting(None, description="Name of the API key.", variables=("TRADOVATE_APP_ID",))
    app_version: str = setting(
        "1.0", description="Version of the API key.", variables=("TRADOVATE_APP_VERSION",)
    )
    cid: SecretStr | None = setting(
        None, description="Client id of the API key.", variables=("TRADOVATE_CID",)
    )
    sec: SecretStr | None = setting(None, description="Secret of the API key.", variables=("TRADOVATE_SEC",))
    device_id: str | None = setting(
        None, description="A stable id of this device.", variables=("TRADOVATE_DEVICE_ID",)
    )


SPEC = VendorSpec(
    name="tradovate",
    settings=TradovateSettings,
    source="nq_pipeline.sources.tradovate.source:Tradovate",
    description="Options on E-mini Nasdaq-100 futures from Tradovate's websocket, a bounded number of "
    "quotes nearest the money. Experimental. Needs an account with API access and market data.",
    underlying="future",
    cost="plan",
    stand_in=StandIn(
        {"tradovate_url": "http:/v1", "tradovate_md_url": "ws:/v1/websocket"},
        {
            "tradovate_username": "sandbox-user",
            "tradovate_password": "sandbox-password",
            "tradovate_app_id": "sandbox-app",
            "tradovate_cid": "0",
            "tradovate_sec": "sandbox-sec",
            "tradovate_device_id": "sandbox-device",
        },
    ),
    plan_product="market data",
    plan_tiers=(PlanTier("historical", "chain", "quotes; with the API add-on and a CME data licence"),),
    remedies={
        Outcome.NOT_CONFIGURED: "set TRADOVATE_USERNAME, TRADOVATE_PASSWORD, TRADOVATE_CID and TRADOVATE_SEC",
        Outcome.NOT_ENTITLED: "market data needs the API add-on and a CME data licence",
        Outcome.BLOCKED: "wait an hour before the next login",
        Outcome.RATE_LIMITED: "wait an hour before the next login",
    },
    # Its documentation asks for an hour without a request after HTTP 429 or a captcha.
    penalty_s={Outcome.BLOCKED: 3600, Outcome.RATE_LIMITED: 3600},
)
