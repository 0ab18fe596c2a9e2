"""The resource of runs and ticks: the current settings and the vendors."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import dagster as dg

from nq_pipeline.configuration import load
from nq_pipeline.errors import SettingsError
from nq_pipeline.orchestration.cluster.run_leases import claim_lease
from nq_pipeline.settings import Settings
from nq_pipeline.sources.registry import load_source

if TYPE_CHECKING:
    from nq_pipeline.sources.base import Source


@dataclass(frozen=True)
class Vendors:
    """The settings and vendors of a run or tick.

    Unless settings are `given`, they are read again for every run and tick, so that a change of `.env` needs
    no reload and a wrong setting fails a run in one sentence instead of the code location. `opener` opens a
    source by its name.
    """

    given: Settings | None = None
    opener: Callable[[str, Settings], Source] = load_source

    def settings(self) -> Settings:
        return self.given or load()

    def market_now(self) -> datetime:
        """The current instant of the market: the machine's in live, the stand-in's in the sandbox."""
        from nq_pipeline.runtime import market_clock

        return market_clock(self.settings()).now()


def vendors_resource(vendors: Vendors) -> dg.ResourceDefinition:
    """The vendors as a resource; a run that initializes it claims its lease (`cluster.run_leases`)."""

    def initialize(context: dg.InitResourceContext) -> Vendors:
        if context.run and context.instance:
            with suppress(SettingsError):  # the run itself fails for it, in one sentence
                claim_lease(context.instance, context.run, vendors.settings())
        return vendors

    return dg.ResourceDefinition(initialize)
