"""A scenario: the market, moment and fault that a request sees. The URL holds all of it.

`/with/fault=blocked;now=2025-06-10T15:00:00Z;seed=7/barchart/…` is Barchart's stand-in for the market
with seed 7 at that instant, while it blocks. `/barchart/…` uses the process's defaults. So one process
serves every clock and fault, URLs are valid cache keys, and a fault affects one vendor only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from nq_pipeline.clock import Clock, PinnedClock
from nq_pipeline.errors import SandboxError, SettingsError
from nq_pipeline.market.products import PRODUCTS, select_products

if TYPE_CHECKING:
    from nq_pipeline.sandbox.synthetic.market import AnyMarket

FAULTS: dict[str, str] = {
    "ok": "answers normally",
    "blocked": "refuses permanently: 403, an unknown key, or at Tradovate a login penalty with a captcha",
    "challenged": "bot challenge: 202 without data at Barchart, elsewhere as blocked",
    "penalty": "Tradovate requires a wait before login, elsewhere as rate_limited",
    "rate_limited": "429 to every request; Barchart and Databento send Retry-After",
    "slow": "sends one byte a second, slower than any deadline",
    "truncated": "closes the connection in the middle of the body",
    "wrong_content_type": "sends an HTML page with status 200 instead of data",
    "stale": "shows the market of ten days ago",
    "empty": "a valid answer without rows",
    "not_entitled": "the plan does not include the data",
    "malformed": "some rows have wrong types, missing fields or nonsense",
    "unavailable": "status 500 to every request",
}
"""The faults of a stand-in, with descriptions."""

STALE_BY = timedelta(days=10)


@dataclass(frozen=True)
class Scenario:
    """The market, clock and fault that one request sees."""

    market: AnyMarket
    clock: Clock
    fault: str = "ok"

    @property
    def products(self) -> tuple[str, ...]:
        """The codes of the market's products."""
        return tuple(one.product.code for one in self.market.markets)

    @property
    def now(self) -> datetime:
        """The vendor's current time."""
        return self.clock.now()

    @property
    def shown(self) -> datetime:
        """The instant whose market the answer shows: now, or ten days ago under the fault `stale`."""
        return self.now - STALE_BY if self.fault == "stale" else self.now


def parse_options(text: str, defaults: Scenario) -> Scenario:
    """Read `fault=…;now=…;seed=…;products=…`; raises SandboxError for anything else."""
    from nq_pipeline.sandbox.synthetic.market import market  # late: clients only format options

    scenario = defaults
    for part in text.split(";"):
        name, _, value = part.partition("=")
        try:
            if name == "fault" and value in FAULTS:
                scenario = replace(scenario, fault=value)
            elif name == "now":
                scenario = replace(scenario, clock=PinnedClock(datetime.fromisoformat(value)))
            elif name == "seed":
                scenario = replace(scenario, market=market(int(value), scenario.products))
            elif name == "products":
                products = tuple(product.code for product in select_products(value.split(",")))
                scenario = replace(scenario, market=market(scenario.market.markets[0].base_seed, products))
            else:
                raise ValueError
        except (ValueError, SettingsError):
            raise SandboxError(
                f"{part!r} is not a sandbox option; write fault=, now=, seed= or products=, joined by ';' "
                f"with a fault of {', '.join(FAULTS)}, an instant such as 2025-06-10T15:00:00Z and products "
                f"of {', '.join(PRODUCTS)}."
            ) from None
    return scenario


def format_options(options: Mapping[str, str | int | datetime | None]) -> str:
    """The text `parse_options` reads; options that are None are left out."""
    texts = {
        name: value.astimezone(UTC).isoformat().replace("+00:00", "Z")
        if isinstance(value, datetime)
        else str(value)
        for name, value in options.items()
        if value is not None
    }
    return ";".join(f"{name}={text}" for name, text in texts.items())
