"""The main job: one snapshot of the option chains of all vendors, into the lake.

Ask every vendor (free ones at the same time, metered ones only for what is missing unless
configured otherwise), write what they sent, decide who wins each series, write the winner,
publish the catalog. A vendor's failure is an outcome in the result; only a fault of this
program raises.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from nq_pipeline.clock import from_ns, to_ns
from nq_pipeline.errors import DeadlineReached, NqError, SettingsError, SourceError
from nq_pipeline.lake import catalog
from nq_pipeline.lake.lake import Lake
from nq_pipeline.lake.raw import RawArchive
from nq_pipeline.lake.schemas import DECISIONS, FETCHES, OPTION_CHAIN, SOURCE_CHAIN
from nq_pipeline.market import sessions
from nq_pipeline.market.contracts import Series
from nq_pipeline.market.listing import expirations
from nq_pipeline.outcome import Outcome
from nq_pipeline.settings import Settings
from nq_pipeline.sources import failover
from nq_pipeline.sources.answers import AnswerCache, answer_key
from nq_pipeline.sources.base import ChainAnswer, ChainRequest, Source, failed
from nq_pipeline.sources.breaker import Breaker
from nq_pipeline.sources.exchange import ArchivedExchange, Exchange, Scope
from nq_pipeline.sources.lifetime import Lifetime
from nq_pipeline.sources.quality import newest_quote
from nq_pipeline.sources.registry import open_source

Progress = Callable[[str], None]
GRACE_S = 2.0
"""Seconds beyond a vendor's deadline before its thread is left behind."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One vendor's part of a snapshot.

    Attributes
    ----------
    elapsed_s
        Wall time of asking and parsing, cache look-up included.
    used
        Archived request by digest of the question, for parsing again.
    """

    answer: ChainAnswer
    series: tuple[Series, ...]
    elapsed_s: float
    fetches: pl.DataFrame
    used: Mapping[str, str] = field(default_factory=dict)

    @property
    def hits(self) -> int:
        return int(self.fetches.filter(pl.col("cache") == "hit").height)

    @property
    def misses(self) -> int:
        return int(self.fetches.filter(pl.col("cache") != "hit").height)

    @property
    def newest(self) -> datetime | None:
        """The newest quote or trade of the answer."""
        return newest_quote(self.answer.frame)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one run came to; `rows` counts what was new in each table, `skipped` says who was not asked."""

    request: ChainRequest
    asked: Mapping[str, Asked]
    skipped: Mapping[str, str]
    decisions: pl.DataFrame
    chain: pl.DataFrame
    rows: Mapping[str, int]

    @property
    def winners(self) -> dict[str, int]:
        """Contracts by winning source, largest first."""
        counts = self.chain.group_by("source").len().sort("len", descending=True)
        return dict(counts.iter_rows())


def build_request(
    settings: Settings,
    *,
    run_id: str | None = None,
    series: Sequence[str] = (),
    scheduled: datetime | None = None,
    source: str | None = None,
) -> ChainRequest:
    """What to ask for: the given series, or all expirations within the horizon.

    Parameters
    ----------
    series
        Series keys (`Q1B-2025-07-01`), or with `source` that vendor's own codes (`MM1N5`).
    scheduled
        The scheduled time of a scheduled run: its age counts from there.

    Raises
    ------
    SettingsError
        When a series cannot be read.
    """
    now = settings.clock.pinned or scheduled or settings.clock.now()
    session = sessions.current_session(now)
    codes: dict[str, str] = {}
    wanted: list[Series] = []
    for text in series:
        parsed = _series(text, source, session.trade_date, settings)
        wanted.append(parsed)
        if text != parsed.key:
            codes[parsed.key] = text
    if not wanted:
        last_day = session.trade_date + timedelta(days=settings.horizon_days)
        wanted = [s for p in settings.products for s in expirations(p, session.trade_date, last_day)]
    return ChainRequest(
        trade_date=session.trade_date,
        snapshot_ts=now.astimezone(UTC),
        moment=sessions.chain_moment(now, settings.chain_window).astimezone(UTC),
        series=tuple(sorted(wanted, key=lambda s: (s.expiration_date, s.root))),
        run_id=run_id or uuid.uuid4().hex,
        environment=settings.environment,
        vendor_codes=codes,
    )


def _series(text: str, source: str | None, trade_date: date, settings: Settings) -> Series:
    try:
        return Series.parse(text)
    except ValueError as error:
        if source != "barchart":
            raise SettingsError(
                f"{error}, or give a vendor's own code together with `--source barchart`"
            ) from None
    from nq_pipeline.sources.barchart import series_of_code

    return series_of_code(text, trade_date, settings)


def take_snapshot(
    settings: Settings,
    request: ChainRequest,
    *,
    refresh: bool = False,
    choose: bool = True,
    progress: Progress = lambda line: None,
    opener: Callable[[str, Settings], Source] = open_source,
) -> Snapshot:
    """Ask, write, decide, publish.

    Parameters
    ----------
    refresh
        Ask again even where a kept answer is fresh.
    choose
        Whether to write a chosen chain; without, only what the vendors sent.
    opener
        How a source is had by its name.
    """
    sources = [opener(name, settings) for name in settings.sources]
    first = [s for s in sources if settings.ask_metered == "always" or not s.metered]
    asked = _ask_all(first, settings, request, refresh=refresh, progress=progress)
    skipped: dict[str, str] = {}
    for source in sources:
        if source in first:
            continue
        missing = _unwon(sources, asked, settings, request)
        if not missing:
            skipped[source.name] = "not asked: it is metered, and every series has a healthy answer already"
            continue
        part = replace(request, series=missing)
        asked |= _ask_all([source], settings, part, refresh=refresh, progress=progress)
    return _write(settings, sources, request, asked, skipped, choose=choose)


def replay_snapshot(settings: Settings, run_id: str) -> Snapshot:
    """Parse the archived answers of a run (`latest`: of the newest) again; nobody is asked.

    The rows carry the snapshot_ts of the original, so a lake that has them gains none.
    Raises `LakeError` when the run is not in the archive.
    """
    record = _archive(settings).read_run(run_id)
    asking = record["request"]
    request = ChainRequest(
        trade_date=date.fromisoformat(asking["trade_date"]),
        snapshot_ts=from_ns(asking["snapshot_ts"]),
        moment=from_ns(asking["moment"]),
        series=tuple(Series.parse(key) for key in asking["series"]),
        run_id=uuid.uuid4().hex,
        environment=settings.environment,
        vendor_codes=asking["vendor_codes"],
    )
    sources = [open_source(name, settings) for name in record["sources"]]
    asked = {}
    for source in sources:
        kept = record["sources"][source.name]
        part = replace(request, series=tuple(Series.parse(key) for key in kept["series"]))
        exchange = exchange_for(source, settings, part, replay=kept["used"])
        asked[source.name] = _ask(source, part, exchange, source.ask)
    return _write(settings, sources, request, asked, {}, record_run=False)


def _ask_all(
    sources: Sequence[Source],
    settings: Settings,
    request: ChainRequest,
    *,
    refresh: bool,
    progress: Progress,
) -> dict[str, Asked]:
    """Ask several vendors at the same time; the wall time is the slowest one's, bounded.

    Daemon threads: a client that ignores the deadline is left behind, and its vendor's outcome
    says so, rather than holding up the run.
    """
    done: dict[str, Asked] = {}
    faults: dict[str, Exception] = {}

    def work(source: Source) -> None:
        try:
            asked = _ask_or_recall(source, settings, request, refresh=refresh)
        except Exception as fault:
            faults[source.name] = fault
        else:
            done[source.name] = asked
            progress(f"{source.name}: {asked.answer.outcome}, {asked.answer.frame.height:,} contracts")

    threads = [threading.Thread(target=work, args=(s,), daemon=True, name=s.name) for s in sources]
    for thread in threads:
        thread.start()
    end = settings.clock.monotonic() + settings.source_deadline_s + GRACE_S
    for thread in threads:
        thread.join(max(0.0, end - settings.clock.monotonic()))
    for name, fault in faults.items():
        raise NqError(f"{name}: a fault of this program, {type(fault).__name__}: {fault}") from fault
    late = DeadlineReached(f"no answer within {settings.source_deadline_s:g} s (NQ_SOURCE_DEADLINE_S)")
    return {
        s.name: done.get(s.name)
        or Asked(failed(s.name, request, late), request.series, settings.source_deadline_s, FETCHES.empty())
        for s in sources
    }


def _ask_or_recall(source: Source, settings: Settings, request: ChainRequest, *, refresh: bool) -> Asked:
    """A fresh kept answer if there is one, else ask through the circuit breaker and keep what is ok."""
    started = settings.clock.monotonic()
    cache = AnswerCache(settings.environment_dir / "cache" / "answers")
    key = _answer_key(source, settings, request)
    exchange = exchange_for(source, settings, request, refresh=refresh)
    kept = None if refresh else cache.get(source.name, key)
    if kept is not None:
        answer, used = kept
        exchange.note_hit("kept answer", answer.frame["snapshot_ts"].max() or request.snapshot_ts)  # type: ignore[arg-type]
        return Asked(answer, request.series, settings.clock.monotonic() - started, exchange.frame(), used)
    breaker = Breaker(_state_dir(settings), source.name, source.base_url)
    if refresh:
        breaker.close()
    asked = _ask(source, request, exchange, lambda *a: breaker.ask(lambda: source.ask(*a)))
    if asked.answer.outcome is Outcome.OK and exchange.fresh_until is not None:
        cache.put(key, asked.answer, asked.used, exchange.fresh_until)
    return asked


def _ask(
    source: Source,
    request: ChainRequest,
    exchange: Exchange,
    ask: Callable[[ChainRequest, Exchange], ChainAnswer],
) -> Asked:
    started = exchange.clock.monotonic()
    try:
        answer = ask(request, exchange)
    except SourceError as error:
        answer = failed(source.name, request, error)
    finally:
        exchange.close()
    elapsed = exchange.clock.monotonic() - started
    return Asked(answer, request.series, elapsed, exchange.frame(), dict(exchange.used))


def exchange_for(
    source: Source,
    settings: Settings,
    request: ChainRequest,
    *,
    refresh: bool = False,
    replay: Mapping[str, str] | None = None,
) -> Exchange:
    """The exchange of one vendor for one request; with `replay`, one that answers from the archive."""
    clock = settings.clock
    scope = Scope(
        source=source.name,
        environment=settings.environment,
        run_id=request.run_id,
        trade_date=request.trade_date,
        snapshot_ts=request.snapshot_ts,
        base_url=source.base_url,
    )
    lifetime = Lifetime(clock, settings.cache_open_s, settings.cache_closed_s)
    deadline = clock.monotonic() + settings.source_deadline_s
    parts = (scope, source.policy, clock, _archive(settings), lifetime, _state_dir(settings), deadline)
    return Exchange(*parts, refresh=refresh) if replay is None else ArchivedExchange(*parts, answers=replay)


def _answer_key(source: Source, settings: Settings, request: ChainRequest) -> str:
    """Everything that shapes an answer: the vendor's own settings, the place, the question, the instant."""
    from pydantic import SecretStr

    own = {
        name: value
        for name, value in settings.model_dump().items()
        if name.startswith(source.name) and not isinstance(value, SecretStr)
    }
    return answer_key(
        {
            "source": source.name,
            "base_url": source.base_url,
            "settings": own,
            "window": settings.chain_window,
            "trade_date": request.trade_date,
            "series": [series.key for series in request.series],
            "codes": request.vendor_codes,
            "pinned": settings.now,
        }
    )


def _unwon(
    sources: Sequence[Source], asked: Mapping[str, Asked], settings: Settings, request: ChainRequest
) -> tuple[Series, ...]:
    """The series that no native source has a healthy answer for yet."""
    decisions = _decide(settings, sources, request, asked)
    won = set(decisions.filter("won", pl.col("outcome") == Outcome.OK)["series"])
    return tuple(series for series in request.series if series.key not in won)


def _decide(
    settings: Settings, sources: Sequence[Source], request: ChainRequest, asked: Mapping[str, Asked]
) -> pl.DataFrame:
    return failover.decide(
        {s.name: asked[s.name].answer for s in sources if s.name in asked},
        request,
        proxies=frozenset(s.name for s in sources if failover.NATIVE not in s.underlying_classes),
        gates=failover.Gates(settings.stale_after_s, settings.min_complete, settings.max_bad_quotes),
        decided_at=datetime.now(UTC),
    )


def _write(
    settings: Settings,
    sources: Sequence[Source],
    request: ChainRequest,
    asked: Mapping[str, Asked],
    skipped: Mapping[str, str],
    *,
    choose: bool = True,
    record_run: bool = True,
) -> Snapshot:
    """Vendors' rows, the winner's rows, the reasons, the fetches; then the catalog and the run's record."""
    lake, run_id = Lake(settings.environment_dir / "lake"), request.run_id
    ordered = {s.name: asked[s.name] for s in sources if s.name in asked}
    decisions = _decide(settings, sources, request, ordered) if choose else DECISIONS.empty()
    answers = {name: part.answer for name, part in ordered.items()}
    chain = failover.chosen(answers, decisions)
    tables = {
        SOURCE_CHAIN: pl.concat([SOURCE_CHAIN.empty(), *(a.frame for a in answers.values())]),
        OPTION_CHAIN: chain,
        DECISIONS: decisions,
        FETCHES: pl.concat([FETCHES.empty(), *(part.fetches for part in ordered.values())]),
    }
    rows = {table.name: lake.append(table, frame, run_id=run_id).rows for table, frame in tables.items()}
    if record_run:
        _archive(settings).write_run(run_id, _run_record(request, ordered))
    catalog.publish(settings.environment_dir)
    return Snapshot(request, ordered, skipped, decisions, chain, rows)


def _run_record(request: ChainRequest, asked: Mapping[str, Asked]) -> dict[str, Any]:
    """What `replay_snapshot` needs to ask the archive the same questions."""
    return {
        "request": {
            "trade_date": request.trade_date.isoformat(),
            "snapshot_ts": to_ns(request.snapshot_ts),
            "moment": to_ns(request.moment),
            "series": [series.key for series in request.series],
            "vendor_codes": dict(request.vendor_codes),
        },
        "sources": {
            name: {"series": [series.key for series in part.series], "used": dict(part.used)}
            for name, part in asked.items()
        },
    }


def _archive(settings: Settings) -> RawArchive:
    return RawArchive(settings.environment_dir / "raw")


def _state_dir(settings: Settings) -> Path:
    return settings.environment_dir / "cache"
