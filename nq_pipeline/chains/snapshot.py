"""The main job: one snapshot of the option chains of all vendors, into the lake.

Ask every vendor (free ones at the same time, metered ones only for what is missing unless
configured otherwise), write what they sent, decide who wins each series, write the winner,
publish the catalog. A vendor's failure is an outcome in the result. A fault of this program in
one vendor's code raises too, but only after what the others gave is written.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any, cast

import orjson
import polars as pl
from pydantic import SecretStr

from nq_pipeline.chains import failover
from nq_pipeline.chains.answer_cache import AnswerCache, answer_key
from nq_pipeline.chains.quality import newest_quote
from nq_pipeline.clock import from_ns, to_ns
from nq_pipeline.errors import (
    DeadlineReached,
    LakeError,
    NotConfigured,
    NotEntitled,
    NqError,
    SettingsError,
    SourceError,
    Unavailable,
)
from nq_pipeline.lake import catalog
from nq_pipeline.lake.archive import RawArchive, damaged_record
from nq_pipeline.lake.tables import ANSWERS, DECISIONS, FETCHES, OPTION_CHAIN, SOURCE_CHAIN
from nq_pipeline.market import sessions
from nq_pipeline.market.contracts import ROOTS, Series
from nq_pipeline.market.listing import expiration_date, expirations
from nq_pipeline.market.products import chosen
from nq_pipeline.outcome import Outcome
from nq_pipeline.settings import Settings
from nq_pipeline.sources.base import (
    ChainAnswer,
    ChainRequest,
    MeteredSource,
    Source,
    failed,
    without_secrets,
)
from nq_pipeline.sources.registry import open_source
from nq_pipeline.spend import entitlements
from nq_pipeline.spend.entitlements import CHAIN, Entitlement
from nq_pipeline.spend.export import export_spend
from nq_pipeline.transport.breaker import Breaker
from nq_pipeline.transport.lifetime import Lifetime
from nq_pipeline.transport.vendor_session import ArchivedSession, Scope, VendorSession
from nq_pipeline.workspace import Workspace

Progress = Callable[[str], None]
WITH_PLANS = {"databento": "GLBX.MDP3", "polygon": "options", "tradovate": "market data"}
"""Vendors whose refusal follows from the plan, so that it lasts, with the product of it."""
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
    fault
        The exception, where a fault of this program ended the asking.
    """

    answer: ChainAnswer
    series: tuple[Series, ...]
    elapsed_s: float
    fetches: pl.DataFrame
    used: Mapping[str, str] = field(default_factory=dict)
    fault: Exception | None = None

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
        When a series or product is none, a series has expired, or nothing expires within the horizon.
    """
    now = settings.clock.pinned or scheduled or settings.clock.now()
    session = sessions.current_session(now)
    codes: dict[str, str] = {}
    wanted: set[Series] = set()
    for text in series:
        parsed, code = _series(text.strip(), source, session.trade_date, settings)
        if parsed.expiration_date < session.trade_date:
            raise SettingsError(
                f"{text.strip()!r} expired on {parsed.expiration_date}, and no vendor lists it any more; "
                f"the next {parsed.root} is {_next_of(parsed.root, session.trade_date)}"
            )
        wanted.add(parsed)
        if code:
            codes[parsed.key] = code
    if not series:
        wanted = _within_horizon(settings, session.trade_date)
    return ChainRequest(
        trade_date=session.trade_date,
        snapshot_ts=now.astimezone(UTC),
        moment=sessions.chain_moment(now, settings.chain_window).astimezone(UTC),
        series=tuple(sorted(wanted, key=lambda s: (s.expiration_date, s.root))),
        run_id=run_id or uuid.uuid4().hex,
        environment=settings.environment,
        vendor_codes=codes,
    )


def _series(text: str, source: str | None, trade_date: date, settings: Settings) -> tuple[Series, str | None]:
    """The series of a key, or of a vendor's own code and then that code too."""
    try:
        parsed = Series.parse(text)
    except ValueError as error:
        if source != "barchart":
            raise SettingsError(
                f"{error}, or give the site's own code together with `--source barchart`"
            ) from None
    else:
        if parsed.root not in ROOTS:
            raise SettingsError(
                f"{text!r}: {parsed.root} is no root of options on futures; there are {', '.join(ROOTS)}"
            )
        day = parsed.expiration_date
        listed = expiration_date(parsed.root, *parsed.contract_month)
        if listed not in (None, day):
            raise SettingsError(
                f"{text!r}: {parsed.root} expires on {listed} in {day:%B %Y}; "
                f"write {replace(parsed, expiration_date=listed).key}"
            )
        return parsed, None
    from nq_pipeline.sources.barchart.source import series_of_code

    return series_of_code(text, trade_date, settings), text


def _next_of(root: str, trade_date: date) -> Series:
    """The next series of a root, this trade date's included."""
    months = (trade_date.year * 12 + trade_date.month - 1 + ahead for ahead in count())
    days = (expiration_date(root, month // 12, month % 12 + 1) for month in months)
    return Series(root, next(day for day in days if day and day >= trade_date))


def _within_horizon(settings: Settings, trade_date: date) -> set[Series]:
    products = chosen(settings.products)
    last_day = trade_date + timedelta(days=settings.horizon_days)
    found = {s for product in products for s in expirations(product.code, trade_date, last_day)}
    if not found:
        raise SettingsError(f"nothing expires from {trade_date} to {last_day}; raise NQ_HORIZON_DAYS")
    return found


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

    Raises
    ------
    NqError
        A fault of this program in a vendor's code; what the other vendors gave is written.
    LakeError
        A table cannot be written; all others are, and the catalog is published.
    """
    sources = [opener(name, settings) for name in settings.sources]
    free_only = settings.ask_metered == "missing"
    to_ask = dict.fromkeys(settings.sources, request.series)
    with _archive(settings).begun(request.run_id, _begun_record(settings, request, to_ask, choose)) as begun:
        asked, priced = _ask_all(
            sources, settings, request, refresh=refresh, free_only=free_only, progress=progress
        )
        skipped: dict[str, str] = {}
        for source in [source for source in sources if source.name in priced]:
            missing = _unwon(sources, asked, settings, request)
            if missing:
                begun(_begun_record(settings, request, to_ask | {source.name: missing}, choose))
                part = replace(request, series=missing)
                asked |= _ask_all([source], settings, part, refresh=refresh, progress=progress)[0]
            else:
                skipped[source.name] = "not asked: it costs money, and every series has a chain already"
        snapshot = _write(settings, sources, request, asked, skipped, choose=choose, pricing=priced.values())
    _raise_faults(asked)
    return snapshot


def replay_snapshot(
    settings: Settings, run_id: str, *, opener: Callable[[str, Settings], Source] = open_source
) -> Snapshot:
    """Parse the archived answers of a run (`latest`: of the newest) again; nobody is asked.

    Every vendor's own settings are those of the run, so that the same questions are asked of the
    archive; neither a key nor an opt-in is needed. The rows carry the snapshot_ts of the original,
    so a lake that has them gains none.

    Raises
    ------
    LakeError
        The run is not in the archive, or an answer there is not what was stored.
    NqError
        A fault of this program in a vendor's code; what the others gave is written.
    """
    return _replay(settings, _archive(settings).read_run(run_id), uuid.uuid4().hex, opener)


def finish_killed(
    settings: Settings,
    *,
    before: datetime,
    opener: Callable[[str, Settings], Source] = open_source,
    progress: Progress = lambda line: None,
) -> list[Snapshot]:
    """Write the rows of runs that died before they could, from what they had archived; nobody is asked.

    A vendor that had not answered by then has no answer in them.

    Parameters
    ----------
    before
        Runs that asked earlier than this. With a pinned clock, one of the same instant is the run that
        is about to begin, which completes it.
    """
    archive, finished = _archive(settings), []
    with archive.unfinished() as runs:
        for run_id in runs:
            try:
                record = _recalled(archive, run_id)
                if from_ns(record["request"]["snapshot_ts"]) >= before:
                    continue
                if not any(kept["used"] for kept in record["sources"].values()):
                    archive.forget_begun(run_id)  # it had no answer yet
                    continue
                snapshot = _replay(settings, record, run_id, opener, original=True)
            except NqError as error:
                progress(f"run {run_id} was killed and cannot be finished yet: {error}")
                continue
            archive.forget_begun(run_id)
            finished.append(snapshot)
            new = snapshot.rows[SOURCE_CHAIN.name]
            progress(
                f"run {run_id} of {snapshot.request.snapshot_ts:%Y-%m-%d %H:%M:%S} UTC was killed; finished "
                f"from its archived answers, {new:,} new rows"
            )
    return finished


def _recalled(archive: RawArchive, run_id: str) -> dict[str, Any]:
    """The record of an unfinished run with all its answers that were archived."""
    record = archive.read_begun(run_id)
    try:
        from_ns(record["request"]["snapshot_ts"])
        day = date.fromisoformat(record["request"]["trade_date"])
        for name, kept in record["sources"].items():
            kept["used"] = {**archive.answers_of(run_id, name, day), **kept["used"]}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise damaged_record(archive.root / "begun" / f"{run_id}.json") from None
    return record


def _replay(
    settings: Settings,
    record: Mapping[str, Any],
    run_id: str,
    opener: Callable[[str, Settings], Source],
    *,
    original: bool = False,
) -> Snapshot:
    """Ask the archive what a run asked; with `original` as that run itself, which wrote no rows."""
    try:
        settings = _as_in(record, settings)
        request = _request_of(record, settings, run_id)
        parts = {name: _part_of(request, kept) for name, kept in record["sources"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise damaged_record(_archive(settings).root / "runs") from None
    sources = [opener(name, settings) for name in parts]
    asked = {}
    for source in sources:
        part, kept = parts[source.name], record["sources"][source.name]
        exchange = exchange_for(source, settings, part, replay=kept["used"], original=original)
        try:
            asked[source.name] = _ask(source, part, exchange, source.ask)
        except NqError:
            raise
        except Exception as fault:
            asked[source.name] = _faulty(source.name, part, exchange, fault)
    choose = record.get("choose", True) or not original
    snapshot = _write(settings, sources, request, asked, {}, choose=choose, record_run=original)
    _raise_faults(asked)
    return snapshot


def _request_of(record: Mapping[str, Any], settings: Settings, run_id: str) -> ChainRequest:
    asking = record["request"]
    return ChainRequest(
        trade_date=date.fromisoformat(asking["trade_date"]),
        snapshot_ts=from_ns(asking["snapshot_ts"]),
        moment=from_ns(asking["moment"]),
        series=tuple(Series.parse(key) for key in asking["series"]),
        run_id=run_id,
        environment=settings.environment,
        vendor_codes=dict(asking["vendor_codes"]),
    )


def _part_of(request: ChainRequest, kept: Mapping[str, Any]) -> ChainRequest:
    """What one vendor was asked."""
    series = tuple(Series.parse(key) for key in kept["series"])
    dict(kept["used"])  # told here when it is none
    return replace(request, series=series, refused=dict(kept.get("refused", {})))


def _as_in(record: Mapping[str, Any], settings: Settings) -> Settings:
    """The settings with the vendors' own as in a run, and every vendor taken for configured."""
    own = {name: value for kept in record["sources"].values() for name, value in kept["settings"].items()}
    keys = dict.fromkeys(("polygon_api_key", "databento_api_key"), SecretStr("not-a-key"))
    return Settings(**{**settings.model_dump(), **own, **keys, "barchart_enabled": True})


def _ask_all(
    sources: Sequence[Source],
    settings: Settings,
    request: ChainRequest,
    *,
    refresh: bool,
    free_only: bool = False,
    progress: Progress,
) -> tuple[dict[str, Asked], dict[str, pl.DataFrame]]:
    """Ask several vendors at the same time; the wall time is the slowest one's, bounded.

    With `free_only`, one whose answer would cost money is only asked its price; the second
    mapping has the fetches of those. Daemon threads: a client that ignores the deadline is left
    behind, and its vendor's outcome says so, rather than holding up the run; what it had asked
    until then is in its fetches.
    """
    done: dict[str, Asked] = {}
    priced: dict[str, pl.DataFrame] = {}
    exchanges = {s.name: exchange_for(s, settings, request, refresh=refresh) for s in sources}

    def work(source: Source) -> None:
        exchange = exchanges[source.name]
        try:
            asked = _ask_or_recall(source, settings, request, exchange, free_only=free_only)
        except Exception as fault:
            asked = _faulty(source.name, request, exchange, fault)
        if isinstance(asked, pl.DataFrame):
            priced[source.name] = asked
            progress(f"{source.name}: costs money, so only what the others lack is asked")
        else:
            done[source.name] = asked
            progress(f"{source.name}: {asked.answer.outcome}, {asked.answer.frame.height:,} contracts")

    threads = [threading.Thread(target=work, args=(s,), daemon=True, name=s.name) for s in sources]
    for thread in threads:
        thread.start()
    allowed = time_allowed(settings, request)
    end = settings.clock.monotonic() + allowed + GRACE_S
    for thread in threads:
        thread.join(max(0.0, end - settings.clock.monotonic()))
    late = DeadlineReached(f"no answer within {allowed:g} s (NQ_SOURCE_DEADLINE_S)")

    def left_behind(name: str) -> Asked:
        fetches = exchanges[name].frame()
        return Asked(failed(name, request, late), request.series, allowed, fetches)

    asked = {s.name: done.get(s.name) or left_behind(s.name) for s in sources if s.name not in priced}
    return asked, dict(priced)


def _faulty(name: str, request: ChainRequest, exchange: VendorSession, fault: Exception) -> Asked:
    """A vendor's part that ended in a fault of this program; its words stay out of the tables."""
    error = Unavailable(f"a fault of this program ({type(fault).__name__})")
    return Asked(failed(name, request, error), request.series, 0.0, exchange.frame(), fault=fault)


def _raise_faults(asked: Mapping[str, Asked]) -> None:
    for name, part in asked.items():
        if isinstance(part.fault, NqError):
            raise part.fault
        if (fault := part.fault) is not None:
            raise NqError(
                f"{name}: a fault of this program, {type(fault).__name__}: {fault}; "
                f"what the other vendors gave is in the lake"
            ) from fault


def _ask_or_recall(
    source: Source, settings: Settings, request: ChainRequest, exchange: VendorSession, *, free_only: bool
) -> Asked | pl.DataFrame:
    """A fresh kept answer if there is one, else ask through the circuit breaker and keep what is whole.

    With `free_only`, a source that wants money (or cannot say how much) is not asked: the fetches
    of asking its price are what comes back.
    """
    started = settings.clock.monotonic()
    cache = AnswerCache(Workspace.of(settings).cache / "answers")
    key = _answer_key(source, settings, request)
    kept = None if exchange.refresh else cache.get(source.name, key)
    if kept is not None:
        answer, used = kept
        exchange.note_hit("kept answer", answer.frame["snapshot_ts"].max() or request.snapshot_ts)  # type: ignore[arg-type]
        return Asked(answer, request.series, settings.clock.monotonic() - started, exchange.frame(), used)
    if free_only and source.metered and not _is_free(cast(MeteredSource, source), request, exchange):
        exchange.close()
        return exchange.frame()
    refused = {} if exchange.refresh else _known_refusals(source, settings, request)
    if refused.keys() == {CHAIN}:
        said = refused[CHAIN]
        refusal = NotEntitled(f"{said.text}; not asked again before {said.ask_again}, or with --refresh")
        answer = failed(source.name, request, refusal)
        return Asked(answer, request.series, settings.clock.monotonic() - started, exchange.frame())
    request = replace(request, refused={part: said.text for part, said in refused.items()})
    breaker = Breaker(_state_dir(settings), source.name, source.base_url)
    if exchange.refresh:
        breaker.close()
    asked = _ask(source, request, exchange, lambda *a: breaker.ask(lambda: source.ask(*a)))
    whole = _is_whole(asked.answer, exchange)
    try:
        _note_entitlement(source, settings, request, asked.answer, whole=whole)
    except LakeError as damage:  # told at the end; the answer is worth more than the note
        asked = replace(asked, fault=damage)
    if whole and exchange.fresh_until is not None:
        cache.put(key, asked.answer, asked.used, exchange.fresh_until)
    return asked


def _refused(source: Source, settings: Settings, request: ChainRequest) -> dict[str, Entitlement]:
    """What a vendor with plans refused on this trade date, so that it is not asked in vain again."""
    if source.name not in WITH_PLANS:
        return {}
    lake, product = Workspace.of(settings).lake, WITH_PLANS[source.name]
    return entitlements.refusals(
        lake, source.name, product, "historical", request.trade_date, address=source.base_url
    )


def _known_refusals(source: Source, settings: Settings, request: ChainRequest) -> dict[str, Entitlement]:
    """`_refused`, or nothing while the table is damaged: to ask in vain costs less than to miss a chain."""
    try:
        return _refused(source, settings, request)
    except LakeError:
        return {}  # `_note_entitlement` meets the same and says so


def _note_entitlement(
    source: Source, settings: Settings, request: ChainRequest, answer: ChainAnswer, *, whole: bool
) -> None:
    """Keep what an answer says about the plan: of the chain, of the parts it refused, and of those that
    it refused before and gives now."""
    if source.name not in WITH_PLANS:
        return
    said = {part: words for part, words in answer.refused.items() if part not in request.refused}
    if whole:
        said |= dict.fromkeys(_refused(source, settings, request).keys() - answer.refused.keys(), "")
    if answer.outcome is Outcome.NOT_ENTITLED:
        said[CHAIN] = answer.reason
    elif answer.frame.height and CHAIN not in answer.refused:
        said[CHAIN] = ""
    for part, words in said.items():
        step = "the other vendors' chains are used" if part == CHAIN else "the rest of its chain is used"
        entitlements.note(
            Workspace.of(settings).lake,
            Entitlement(
                vendor=source.name,
                dataset=WITH_PLANS[source.name],
                schema=part,
                mode="historical",
                environment=request.environment,
                trade_date=request.trade_date,
                entitled=not words,
                text=words,
                step=step if words else "",
                address=source.base_url,
                data_from=request.trade_date if words and part != CHAIN else None,
            ),
            run_id=request.run_id,
        )


def _is_free(source: MeteredSource, request: ChainRequest, exchange: VendorSession) -> bool:
    try:
        return source.price(request, exchange) == 0
    except NotConfigured:
        return True  # it will say so, and ask nothing
    except SourceError:
        return False  # an unknown price; its outcome is told if it is needed


def _is_whole(answer: ChainAnswer, exchange: VendorSession) -> bool:
    """Whether asking again would bring the same: ok, or partial although every question was answered.

    That nothing is listed is an answer too, as of a series that has expired today.
    """
    if answer.outcome is not Outcome.PARTIAL:
        return answer.outcome is Outcome.OK
    answered = (Outcome.OK, Outcome.EMPTY)
    return exchange.remaining() > 0 and all(fetch.outcome in answered for fetch in exchange.fetches)


def _ask(
    source: Source,
    request: ChainRequest,
    exchange: VendorSession,
    ask: Callable[[ChainRequest, VendorSession], ChainAnswer],
) -> Asked:
    started = exchange.clock.monotonic()
    try:
        answer = ask(request, exchange)
    except SourceError as error:
        answer = failed(source.name, request, error)
    finally:
        exchange.close()
    answer = without_secrets(answer, exchange.secrets)
    elapsed = exchange.clock.monotonic() - started
    return Asked(answer, request.series, elapsed, exchange.frame(), dict(exchange.used))


def time_allowed(settings: Settings, request: ChainRequest) -> float:
    """Seconds a vendor may take: NQ_SOURCE_DEADLINE_S for every product that is asked for."""
    return settings.source_deadline_s * len({one.root_info.product.code for one in request.series})


def exchange_for(
    source: Source,
    settings: Settings,
    request: ChainRequest,
    *,
    refresh: bool = False,
    replay: Mapping[str, str] | None = None,
    original: bool = False,
) -> VendorSession:
    """The exchange of one vendor for one request; with `replay`, one that answers from the archive."""
    clock = settings.clock
    scope = Scope(
        source=source.name,
        environment=settings.environment,
        run_id=request.run_id,
        trade_date=request.trade_date,
        snapshot_ts=request.snapshot_ts,
        base_url=source.base_url,
        secrets=settings.secrets_of(source.name),
    )
    lifetime = Lifetime(clock, settings.cache_open_s, settings.cache_closed_s)
    deadline = clock.monotonic() + time_allowed(settings, request)
    parts = (scope, source.policy, clock, _archive(settings), lifetime, _state_dir(settings), deadline)
    if replay is None:
        return VendorSession(*parts, refresh=refresh)
    return ArchivedSession(*parts, answers=replay, original=original)


def _answer_key(source: Source, settings: Settings, request: ChainRequest) -> str:
    """Everything that shapes an answer: the vendor's own settings, the place, the question, the instant."""
    return answer_key(
        {
            "source": source.name,
            "base_url": source.base_url,
            "settings": _own_settings(settings, source.name),
            "window": settings.chain_window,
            "trade_date": request.trade_date,
            "series": [series.key for series in request.series],
            "codes": request.vendor_codes,
            "pinned": settings.now,
        }
    )


def _own_settings(settings: Settings, source: str) -> dict[str, Any]:
    """A vendor's own settings that shape a chain, without the secrets, as JSON has them."""
    aside = {name for name, value in settings if isinstance(value, SecretStr)} | {"databento_gateway"}
    own = {name for name in type(settings).model_fields if name.startswith(source)} - aside
    return settings.model_dump(mode="json", include=own)


def _unwon(
    sources: Sequence[Source], asked: Mapping[str, Asked], settings: Settings, request: ChainRequest
) -> tuple[Series, ...]:
    """The series that no native source has a chain of yet."""
    decisions = _decide(settings, sources, request, asked)
    won = set(decisions.filter("won")["series"])
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
    pricing: Iterable[pl.DataFrame] = (),
) -> Snapshot:
    """The run's record; fetches, answers, vendors' rows, the winner's rows, the reasons; then the catalog."""
    lake, run_id = Workspace.of(settings).lake, request.run_id
    ordered = {s.name: asked[s.name] for s in sources if s.name in asked}
    decisions = _decide(settings, sources, request, ordered) if choose else DECISIONS.empty()
    answers = {name: part.answer for name, part in ordered.items()}
    chain = failover.chosen(answers, decisions)
    # In the order of writing: what was asked (and paid) first, so that no row of a run that dies
    # between two tables speaks of a request nobody made.
    tables = {
        FETCHES: pl.concat([FETCHES.empty(), *(part.fetches for part in ordered.values()), *pricing]),
        ANSWERS: _answers(request, ordered),
        SOURCE_CHAIN: pl.concat([SOURCE_CHAIN.empty(), *(a.frame for a in answers.values())]),
        OPTION_CHAIN: chain,
        DECISIONS: decisions,
    }
    # The record comes first: killed after it, the run can be completed from the archive.
    if record_run:
        _archive(settings).write_run(run_id, _run_record(settings, request, ordered))
    written = lake.append_all(tables.items(), run_id=run_id)
    try:
        export_spend(settings, lake, run_id=run_id)
    except LakeError as error:
        written.failures.append(error)
    catalog.publish(Workspace.of(settings).lake)
    written.check()  # what a damaged table lacks of this run is in the archive
    return Snapshot(request, ordered, skipped, decisions, chain, written.rows)


def _answers(request: ChainRequest, asked: Mapping[str, Asked]) -> pl.DataFrame:
    """What each vendor's answer came to, as rows of `ANSWERS`."""
    rows = [
        {
            "run_id": request.run_id,
            "answered_at": datetime.now(UTC),
            "trade_date": request.trade_date,
            "environment": request.environment,
            "source": name,
            "outcome": str(part.answer.outcome),
            "reason": part.answer.reason or None,
            "contracts": part.answer.frame.height,
            "series": part.answer.frame["series"].n_unique(),
            "dropped": part.answer.dropped.total(),
            "dropped_by_reason": _json(part.answer.dropped),
            "controls": _json(part.answer.controls),
            "cached": part.answer.cached,
            "elapsed_s": part.elapsed_s,
        }
        for name, part in asked.items()
    ]
    return pl.DataFrame(rows, infer_schema_length=None) if rows else ANSWERS.empty()


def _json(mapping: Mapping[str, Any]) -> str | None:
    return orjson.dumps(mapping, option=orjson.OPT_SORT_KEYS).decode() if mapping else None


def _run_record(settings: Settings, request: ChainRequest, asked: Mapping[str, Asked]) -> dict[str, Any]:
    """What `replay_snapshot` needs to ask the archive the same questions."""
    record = _begun_record(settings, request, {name: part.series for name, part in asked.items()})
    for name, part in asked.items():
        record["sources"][name] |= {"refused": dict(part.answer.refused), "used": dict(part.used)}
    return record


def _begun_record(
    settings: Settings, request: ChainRequest, series: Mapping[str, Sequence[Series]], choose: bool = True
) -> dict[str, Any]:
    """The record of a run by what each vendor is to be asked, before there is an answer."""
    return {
        "request": {
            "trade_date": request.trade_date.isoformat(),
            "snapshot_ts": to_ns(request.snapshot_ts),
            "moment": to_ns(request.moment),
            "series": [one.key for one in request.series],
            "vendor_codes": dict(request.vendor_codes),
        },
        "choose": choose,
        "sources": {
            name: {
                "series": [one.key for one in own],
                "settings": _own_settings(settings, name),
                "refused": {},
                "used": {},
            }
            for name, own in series.items()
        },
    }


def _archive(settings: Settings) -> RawArchive:
    return Workspace.of(settings).archive


def _state_dir(settings: Settings) -> Path:
    return Workspace.of(settings).cache
