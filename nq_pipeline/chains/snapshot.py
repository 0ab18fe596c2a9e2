"""The main job: one snapshot of the option chains of all sources, into the lake.

`request.py` says which series to ask for, `ask.py` asks the sources, `failover.py` selects the winner of each
series, and `select_and_store` writes the rows and publishes the catalog.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson
import polars as pl

from nq_pipeline.chains import failover
from nq_pipeline.chains.ask import Progress, ask_sources, raise_faults
from nq_pipeline.chains.result import Snapshot, SourceResult
from nq_pipeline.chains.run_record import answered_record, hold_run, planned_record
from nq_pipeline.clock import real_now
from nq_pipeline.errors import LakeError
from nq_pipeline.lake import catalog
from nq_pipeline.lake.tables import ANSWERS, DECISIONS, FETCHES, OPTION_CHAIN, SOURCE_CHAIN
from nq_pipeline.settings import Settings
from nq_pipeline.sources.base import ChainRequest, Source
from nq_pipeline.sources.registry import load_source
from nq_pipeline.spend.export import export_spend
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
    with (
        hold_run(settings, request.run_id, archive),
        archive.begin_run(request.run_id, planned_record(settings, request, plan, choose)) as update_record,
    ):
        results, priced = ask_sources(
            sources, settings, request, refresh=refresh, free_only=free_only, progress=progress
        )
        skipped: dict[str, str] = {}
        for source in [source for source in sources if source.name in priced]:
            won = set(select(settings, sources, request, results).filter("won")["series"])
            missing = tuple(series for series in request.series if series.key not in won)
            if missing:
                plan[source.name] = missing
                update_record(planned_record(settings, request, plan, choose))
                part = replace(request, series=missing)
                results |= ask_sources([source], settings, part, refresh=refresh, progress=progress)[0]
            else:
                skipped[source.name] = "not asked: it costs money, and every series has a chain already"
        snapshot = select_and_store(
            settings, sources, request, results, skipped, choose=choose, pricing=priced.values()
        )
    raise_faults(results)
    return snapshot


def select(
    settings: Settings, sources: Sequence[Source], request: ChainRequest, results: Mapping[str, SourceResult]
) -> pl.DataFrame:
    """Select each series' winner by the limits in the settings: rows of `DECISIONS` (see `decide`)."""
    return failover.decide(
        {s.name: results[s.name].answer for s in sources if s.name in results},
        request,
        proxies=frozenset(s.name for s in sources if failover.NATIVE not in s.underlying_classes),
        gates=failover.Gates(
            settings.chains.stale_after_s, settings.chains.min_complete, settings.chains.max_bad_quotes
        ),
        decided_at=real_now(),
    )


def select_and_store(
    settings: Settings,
    sources: Sequence[Source],
    request: ChainRequest,
    results: Mapping[str, SourceResult],
    skipped: Mapping[str, str] | None = None,
    *,
    choose: bool = True,
    record_run: bool = True,
    pricing: Iterable[pl.DataFrame] = (),
) -> Snapshot:
    """Select the chain and write the run: its record, then its rows, then the catalog.

    `pricing` are fetches of sources that were asked only for their price. Raises `LakeError` when a table
    cannot be written; all others are, and the catalog is published.
    """
    lake, run_id = Workspace.of(settings).lake, request.run_id
    ordered = {s.name: results[s.name] for s in sources if s.name in results}
    decisions = select(settings, sources, request, ordered) if choose else DECISIONS.empty()
    answers = {name: result.answer for name, result in ordered.items()}
    chain = failover.winning_rows(answers, decisions)
    # Requests (and their cost) come first, so that no row of a run that dies between two tables
    # refers to a request that is not recorded.
    tables = {
        FETCHES: pl.concat([FETCHES.empty(), *(r.fetches for r in ordered.values()), *pricing]),
        ANSWERS: _answer_rows(request, ordered),
        SOURCE_CHAIN: pl.concat([SOURCE_CHAIN.empty(), *(a.frame for a in answers.values())]),
        OPTION_CHAIN: chain,
        DECISIONS: decisions,
    }
    # The record comes before the rows: a run that is killed after it can be completed from the archive.
    if record_run:
        archive = Workspace.of(settings).archive
        archive.write_run(run_id, answered_record(settings, request, ordered, choose))
    written = lake.append_all(tables.items(), run_id=run_id)
    try:
        export_spend(settings, lake, run_id=run_id)
    except LakeError as error:
        written.failures.append(error)
    catalog.publish(Workspace.of(settings).lake)
    written.check()  # the archive still has what a damaged table lacks of this run
    return Snapshot(request, ordered, skipped or {}, decisions, chain, written.rows)


def _answer_rows(request: ChainRequest, results: Mapping[str, SourceResult]) -> pl.DataFrame:
    """Each source's answer as a row of `ANSWERS`."""
    rows = [
        {
            "run_id": request.run_id,
            "answered_at": real_now(),
            "trade_date": request.trade_date,
            "environment": request.environment,
            "source": name,
            "outcome": str(result.answer.outcome),
            "reason": result.answer.reason or None,
            "contracts": result.answer.frame.height,
            "series": result.answer.frame["series"].n_unique(),
            "dropped": result.answer.dropped.total(),
            "dropped_by_reason": _json(result.answer.dropped),
            "controls": _json(result.answer.controls),
            "cached": result.answer.cached,
            "elapsed_s": result.elapsed_s,
        }
        for name, result in results.items()
    ]
    return pl.DataFrame(rows, infer_schema_length=None) if rows else ANSWERS.empty()


def _json(mapping: Mapping[str, Any]) -> str | None:
    return orjson.dumps(mapping, option=orjson.OPT_SORT_KEYS).decode() if mapping else None
