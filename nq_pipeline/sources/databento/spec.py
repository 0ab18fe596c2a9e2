"""Databento: its settings and its entry in the registry."""

from __future__ import annotations

import re

from pydantic import SecretStr, field_validator

from nq_pipeline.errors import NotConfigured
from nq_pipeline.outcome import Outcome
from nq_pipeline.settings.base import Url, VendorSettings, setting
from nq_pipeline.sources.spec import PlanTier, StandIn, VendorSpec


class DatabentoSettings(VendorSettings):
    """The settings of Databento."""

    prefix = "databento_"

    url: Url = setting("https://hist.databento.com", description="Base address of the historical API.")
    gateway: str | None = setting(
        None, description="host:port of the live gateway; by default Databento's own.", shapes_chain=False
    )
    dataset: str = setting("GLBX.MDP3", description="Databento's dataset for CME Globex.")
    quote_window_s: int = setting(
        900,
        ge=60,
        description="Seconds of quotes to buy before the requested moment. Quotes are most of a snapshot's "
        "price (the sandbox's default is 60).",
        sandbox=60,
    )
    api_key: SecretStr | None = setting(
        None, description="API key of Databento.", variables=("DATABENTO_API_KEY",)
    )

    @field_validator("gateway")
    @classmethod
    def _host_and_port(cls, value: str | None) -> str | None:
        host, _, port = (value or "").rpartition(":")
        if value is not None and not (host and port.isdecimal() and 0 < int(port) < 65_536):
            raise ValueError("write host:port, e.g. 127.0.0.1:13000")
        return value


def check_databento_key(key: SecretStr, host: str) -> None:
    """Raise `NotConfigured` for a key that Databento itself would not accept; other hosts may have others."""
    if host.endswith(".databento.com") and not re.fullmatch(r"db-[!-~]{29}", key.get_secret_value()):
        raise NotConfigured(
            "DATABENTO_API_KEY is not a Databento key, which has 32 characters and begins with `db-`; "
            "copy it from databento.com/portal/keys"
        )


SPEC = VendorSpec(
    name="databento",
    settings=DatabentoSettings,
    source="nq_pipeline.sources.databento.source:Databento",
    description="Options on E-mini Nasdaq-100 futures from CME Globex by Databento: definitions, "
    "statistics and quotes. Metered unless the plan includes it; no request is sent beyond the spend "
    "ledger's budgets.",
    underlying="future",
    cost="metered",
    stand_in=StandIn({"databento_url": "http:"}, {"databento_api_key": "db-sandbox-not-a-real-key-000000"}),
    replay_settings={"databento_api_key": "not-a-key"},
    remedies={Outcome.NOT_CONFIGURED: "set DATABENTO_API_KEY to a key of databento.com/portal/keys"},
    plan_product="GLBX.MDP3",
    plan_tiers=(
        PlanTier(
            "live",
            "mbo",
            "every order, from which the whole book follows; by users' reports not with Standard",
        ),
        PlanTier("live", "mbp-1", "every change of the best bid and ask; with Standard"),
        PlanTier("live", "trades", "every trade as it happens; with Standard"),
        PlanTier("historical", "chain", "chains of the running session; needs a live licence"),
    ),
)
