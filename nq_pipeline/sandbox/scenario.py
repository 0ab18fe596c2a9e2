"""What a request sees: which market, at which moment, with which fault. All of it is in the URL.

`/with/fault=blocked;now=2025-06-10T15:00:00Z;seed=7/barchart/…` asks Barchart's stand-in of a
market with seed 7, at that instant, while it blocks. `/barchart/…` takes the process's
defaults. So one process serves every clock and fault, a cache key made of URLs is right, and
one vendor's fault never reaches another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from nq_pipeline.clock import Clock, PinnedClock
from nq_pipeline.errors import SandboxError, SettingsError
from nq_pipeline.market.products import PRODUCTS, select_products
from nq_pipeline.sandbox.synthetic.market import AnyMarket, market

FAULTS: dict[str, str] = {
    "ok": "answers as the vendor does on a good day",
    "blocked": "refuses for good: 403, an unknown key, or at Tradovate a login penalty with a captcha",
    "challenged": "bot challenge: 202 without data at Barchart, elsewhere as blocked",
    "penalty": "Tradovate asks to wait before the login succeeds, elsewhere as rate_limited",
    "rate_limited": "429 to every request; Barchart and Databento say when to come back",
    "slow": "one byte a second, longer than any deadline",
    "truncated": "the connection closes in the middle of the body",
    "wrong_content_type": "an HTML page with status 200 where data should be",
    "stale": "the market as it was ten days ago",
    "empty": "a valid answer without a single row",
    "not_entitled": "the plan does not include the data",
    "malformed": "some rows with wrong types, missing fields or nonsense in them",
    "unavailable": "status 500 to every request",
}
"""Every fault a stand-in can show, with what it does."""

STALE_BY = timedelta(days=10)


@dataclass(frozen=True)
class Scenario:
    """The market, clock and fault that one request sees."""

    market: AnyMarket
    clock: Clock
    fault: str = "ok"

    @property
    def products(self) -> tuple[str, ...]:
        """What the market is of."""
        return tuple(part.product.code for part in self.market.markets)

    @property
    def now(self) -> datetime:
        """The instant a vendor would put into its envelope."""
        return self.clock.now()

    @property
    def shown(self) -> datetime:
        """The instant whose market the answer shows: now, or long ago under the fault `stale`."""
        return self.now - STALE_BY if self.fault == "stale" else self.now


def parse_options(text: str, defaults: Scenario) -> Scenario:
    """Read `fault=…;now=…;seed=…;products=…`; SandboxError in one sentence for anything else."""
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
                scenario = replace(scenario, market=market(scenario.market.markets[0].common_seed, products))
            else:
                raise ValueError
        except (ValueError, SettingsError):
            raise SandboxError(
                f"{part!r} is no option of the sandbox; write fault=, now=, seed= or products=, separated by "
                f"';', with a fault of {', '.join(FAULTS)}, an instant such as 2025-06-10T15:00:00Z and "
                f"products of {', '.join(PRODUCTS)}."
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
