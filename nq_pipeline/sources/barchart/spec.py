"""Barchart: its settings and its entry in the registry."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import SecretStr

from nq_pipeline.outcome import Outcome
from nq_pipeline.redaction import LONG
from nq_pipeline.settings.base import CommaList, Url, VendorSettings, setting
from nq_pipeline.sources.spec import StandIn, VendorSpec


class BarchartSettings(VendorSettings):
    """The settings of Barchart."""

    prefix = "barchart_"

    enabled: bool = setting(
        False,
        description="Opt-in: without it, the live environment does not ask barchart.com; `--source "
        "barchart` implies it.",
    )
    url: Url = setting("https://www.barchart.com", description="Base address of Barchart's site.")
    session: Literal["api", "cookies", "browser"] = setting(
        "api",
        description="How to authorize requests: `api` with headers only, `cookies` with the XSRF-TOKEN of a "
        "page visit, `browser` with the cookies in NQ_BARCHART_COOKIES.",
    )
    cookies: SecretStr | None = setting(None, description="Cookie header of your own browser session.")
    spacing_s: float = setting(
        1.0,
        ge=0,
        description="Minimum seconds between two requests to Barchart (0 in the sandbox).",
        sandbox=0.0,
    )
    delay_s: int = setting(
        600,
        ge=0,
        description="Delay of Barchart's quotes in seconds: `as_of` is the time of the request minus this.",
    )
    pages: bool = setting(
        True, description="Also fetch each series' page once per trade date, to check the chain's totals."
    )
    codes: CommaList = setting(
        (), description="Extra Barchart root codes as CODE=ROOT pairs, e.g. a fifth Monday's."
    )

    def secret_texts(self) -> Iterator[str]:
        yield from super().secret_texts()
        if self.cookies:
            values = {pair.partition("=")[2] for pair in self.cookies.get_secret_value().split(";")}
            yield from (value for value in values if len(value) >= LONG)


_OTHER_SESSION = (
    "set NQ_BARCHART_SESSION=cookies, or browser with the cookies of your own browser; "
    "or take barchart out of NQ_SOURCES"
)

SPEC = VendorSpec(
    name="barchart",
    settings=BarchartSettings,
    source="nq_pipeline.sources.barchart.source:Barchart",
    description="Options on E-mini Nasdaq-100 futures as barchart.com shows them, with volume and open "
    "interest, without Greeks. Quotes are delayed (NQ_BARCHART_DELAY_S). Free; its terms of use apply, "
    "so in live it needs NQ_BARCHART_ENABLED.",
    underlying="future",
    cost="free",
    stand_in=StandIn({"barchart_url": "http:"}),
    opt_in={"barchart_enabled": True},
    remedies={
        Outcome.NOT_CONFIGURED: "set NQ_BARCHART_ENABLED=true once you have read its terms of use",
        Outcome.BLOCKED: _OTHER_SESSION,
        Outcome.NOT_ENTITLED: _OTHER_SESSION,
        Outcome.RATE_LIMITED: "wait a while and try again",
    },
    series_of_code="nq_pipeline.sources.barchart.codes:series_of_code",
)
