"""The main job: one snapshot of the option chains of all sources, into the lake.

`request.py` says which series to ask for, `ask.py` asks the sources, `failover.py` selects the winner of each
series, `store.py` writes the rows and publishes the catalog.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from nq_pipeline.chains.ask import Progress, ask_sources, raise_faults
from nq_pipeline.chains.result import Snapshot
from nq_pipeline.chains.run_record import planned_record
from nq_pipeline.chains.store import select, select_and_store
from nq_pipeline.settings import Settings
from nq_pipeline.sources.base import ChainRequest, Source
from nq_pipeline.sources.registry import load_source
from nq_pipeline.workspace import Workspace


def take_snapshot(
    settings: Settings,
    request: ChainRequest,
    *,
    refresh: bool = False,
    choose: bool = True,
    progress: Progress = lambda line: None,
    opener: Callable[[str, Settings], Source] = load_source,
) -> Snapshot:
    """Ask the sources, select the chain, write the rows, publish the catalog.

    A vendor's failure is an outcome in the result. With NQ_ASK_METERED=missing, a source whose answer costs
    money is asked last, and only for the series that no other source has.

    Parameters
    ----------
    refresh
        Ask even where a cached answer is still fresh.
    choose
        Whether to select a chain; without, only what the vendors sent is written.

    Raises
    ------
    NqError
        A fault of this program in a vendor's code; the other vendors' rows are written.
    LakeError
        A table cannot be written; all others are, and the catalog is published.
    """
    sources = [opener(name, settings) for name in settings.chains.sources]
    free_only = settings.chains.ask_metered == "missing"
    plan = dict.fromkeys(settings.chains.sources, request.series)
    archive = Workspace.of(settings).archive
    with archive.begin_run(request.run_id, planned_record(settings, request, plan, choose)) as update_record:
        results, priced = ask_sources(
            sources, settings, request, refresh=refresh, free_only=free_only, progress=progress
        )
        skipped: dict[str, str] = {}
        for source in [source for source in sources if source.name in priced]:
            won = set(select(settings, sources, request, results).filter("won")["series"])
            missing = tuple(series for series in request.series if series.key not in won)
            if missing:
                update_record(planned_record(settings, request, plan | {source.name: missing}, choose))
                part = replace(request, series=missing)
                results |= ask_sources([source], settings, part, refresh=refresh, progress=progress)[0]
            else:
                skipped[source.name] = "not asked: it costs money, and every series has a chain already"
        snapshot = select_and_store(
            settings, sources, request, results, skipped, choose=choose, pricing=priced.values()
        )
    raise_faults(results)
    return snapshot
