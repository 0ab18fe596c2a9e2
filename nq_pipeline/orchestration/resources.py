"""What runs and ticks are given: the settings of this moment, and how vendors are asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from nq_pipeline.settings import Settings, load
from nq_pipeline.sources.registry import open_source

if TYPE_CHECKING:
    from nq_pipeline.chains.result import Snapshot
    from nq_pipeline.sources.base import ChainRequest, Source


@dataclass(frozen=True)
class Vendors:
    """The vendors of a run.

    Attributes
    ----------
    given
        Settings to use; None reads them anew for every run and tick, so that a change of `.env`
        needs no reload and a wrong setting fails a run in one sentence, not the code location.
    opener
        How a source is had by its name.
    """

    given: Settings | None = None
    opener: Callable[[str, Settings], Source] = open_source

    def settings(self) -> Settings:
        return self.given or load()

    def market_now(self) -> datetime:
        """Where the market is that a capture would follow: now, or where the stand-in's is."""
        from nq_pipeline.sandbox.process import market_clock

        return market_clock(self.settings()).now()

    def snapshot(
        self,
        settings: Settings,
        request: ChainRequest,
        *,
        sources: Sequence[str],
        choose: bool,
        refresh: bool,
    ) -> Snapshot:
        """Ask the named sources (stand-ins in the sandbox) and write what came."""
        from nq_pipeline.chains.snapshot import take_snapshot
        from nq_pipeline.sandbox.process import endpoints

        with endpoints(settings.model_copy(update={"sources": tuple(sources)})) as reachable:
            return take_snapshot(reachable, request, refresh=refresh, choose=choose, opener=self.opener)
