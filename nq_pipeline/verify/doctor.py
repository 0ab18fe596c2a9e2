"""What `nq doctor` shows: whether each vendor would answer, what plans include, and the market's state."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime

import polars as pl

from nq_pipeline.chains.ask import GRACE_S, open_session
from nq_pipeline.chains.request import build_request
from nq_pipeline.errors import SourceError, StoreError
from nq_pipeline.lake.tables import SESSIONS
from nq_pipeline.market import sessions
from nq_pipeline.market.sessions import in_chicago
from nq_pipeline.outcome import Outcome
from nq_pipeline.redaction import redact
from nq_pipeline.settings import Settings
from nq_pipeline.sources.base import ChainRequest, Probe, Source
from nq_pipeline.sources.registry import SOURCE_NAMES, VENDORS, load_source
from nq_pipeline.spend import entitlements
from nq_pipeline.transport.vendor_session import VendorSession
from nq_pipeline.workspace import Workspace

SILENT = (Outcome.UNAVAILABLE, Outcome.PARTIAL)
"""Outcomes that leave open whether the vendor is reachable."""

REMEDIES = {
    Outcome.NOT_CONFIGURED: "set what is missing, see .env.example",
    Outcome.NOT_ENTITLED: "choose a plan that includes it, or take the vendor out of NQ_SOURCES",
    Outcome.OVER_BUDGET: "see `nq budget`; raise the budget it names, or lower NQ_HORIZON_DAYS",
    Outcome.BLOCKED: "wait a quarter of an hour, or take the vendor out of NQ_SOURCES",
    Outcome.RATE_LIMITED: "wait a minute and try again",
    Outcome.BAD_PAYLOAD: "check the vendor's address in the settings; `nq settings` shows it",
    Outcome.UNAVAILABLE: "check the network and the vendor's address; `nq settings` shows it",
    Outcome.PARTIAL: "try again, or raise NQ_SOURCE_DEADLINE_S",
}


def probe_sources(
    settings: Settings, *, opener: Callable[[str, Settings], Source] = load_source
) -> Mapping[str, Probe]:
    """Send every vendor its cheapest free request, all at the same time, within the deadline.

    Returns the probe of each vendor, by name. `opener` opens a source by name.
    """
    probes: dict[str, Probe] = {}
    request = build_request(settings)

    def work(source: Source) -> None:
        probes[source.name] = _probe(source, settings, request)

    sources = [opener(name, settings) for name in SOURCE_NAMES]
    threads = [threading.Thread(target=work, args=(source,), daemon=True) for source in sources]
    for thread in threads:
        thread.start()
    end = settings.clock.monotonic() + settings.chains.source_deadline_s + GRACE_S
    for thread in threads:
        thread.join(max(0.0, end - settings.clock.monotonic()))
    silent = Probe(True, False, None, "no answer in time", REMEDIES[Outcome.PARTIAL])
    return {name: probes.get(name, silent) for name in SOURCE_NAMES}


def probe_store(settings: Settings) -> Probe | None:
    """Write, read and remove an object of NQ_LAKE_URL; None without an object store.

    Also checks that the store refuses to create an object twice, on which the commits of tables depend.
    """
    workspace = Workspace.of(settings)
    if workspace.remote is None:
        return None
    name, where = f"probe/{uuid.uuid4().hex}", workspace.remote.uri()
    try:
        workspace.remote.put_if_absent(name, b"first")
        created_twice = workspace.remote.put_if_absent(name, b"second")
        workspace.remote.delete([name])
    except StoreError as error:
        refused = "refuses access" in str(error)
        return Probe(True, refused, False if refused else None, str(error), REMEDIES[Outcome.UNAVAILABLE])
    if created_twice:
        detail = f"{where} creates an object that exists already: commits of two machines would be lost"
        return Probe(True, True, False, detail, "use a store with conditional writes (If-None-Match)")
    return Probe(True, True, True, f"{where} is writable")


def _probe(source: Source, settings: Settings, request: ChainRequest) -> Probe:
    session = open_session(source, settings, request)
    try:
        probe = probe_source(source, session)
    except Exception as fault:  # one faulty vendor must not hide the others
        detail, remedy = f"a fault of this program, {type(fault).__name__}: {fault}", "please report it"
        if isinstance(fault, OSError) and fault.filename is not None:
            detail = f"cannot use {fault.filename}: {fault.strerror}"
            remedy = "set NQ_DATA_DIR to a writable folder"
        probe = Probe(True, None, None, detail, remedy)
    finally:
        session.close()
    return replace(probe, detail=redact(probe.detail, session.secrets))


def probe_source(source: Source, session: VendorSession) -> Probe:
    """Probe one vendor; an error has the vendor's own remedy, or else the one for all vendors."""
    try:
        return source.probe(session)
    except SourceError as error:
        outcome = error.outcome
        configured = outcome is not Outcome.NOT_CONFIGURED
        entitled = False if outcome in (Outcome.NOT_ENTITLED, Outcome.OVER_BUDGET) else None
        reachable = outcome not in SILENT if configured else None
        remedy = VENDORS[source.name].remedies.get(outcome, REMEDIES.get(outcome, ""))
        return Probe(configured, reachable, entitled, str(error), remedy)


@dataclass(frozen=True, slots=True)
class PlanStep:
    """One step of what a vendor sells, and whether the plan has it."""

    vendor: str
    mode: entitlements.Mode
    schema: str
    adds: str  # empty for a schema that is not a known step
    entitled: bool | None = None  # None if it was never requested
    refusal: str = ""  # the vendor's text
    asked_at: datetime | None = None  # when the vendor answered
    ask_again: date | None = None  # the first trade date on which a refused step is requested again


def plan_steps(settings: Settings) -> list[PlanStep]:
    """What each vendor granted or refused, from stored answers; sends no request.

    The steps that the vendors' pages and users name come first, those of metered vendors before others.
    Refusals in force that are not a known step, such as a schema of a backfill, follow.
    """
    lake = Workspace.of(settings).lake
    answers = {(e.vendor, e.mode, e.schema): e for e in entitlements.newest_entitlements(lake)}
    specs = sorted(VENDORS.values(), key=lambda spec: spec.cost != "metered")
    known_steps = [PlanStep(spec.name, t.mode, t.schema, t.adds) for spec in specs for t in spec.plan_tiers]
    known = {(step.vendor, step.mode, step.schema) for step in known_steps}
    today = sessions.trade_date(settings.clock.now())
    others = [
        PlanStep(*key, "") for key, answer in answers.items() if key not in known and answer.refuses(today)
    ]
    streamed = (
        lake.scan(SESSIONS)
        .filter(pl.col("records") > 0)
        .select(pl.col("schemas").str.split(",").explode(), "ended_at")
        .group_by("schemas")
        .agg(pl.col("ended_at").max())
        .collect()
    )
    live = dict(streamed.iter_rows())
    steps = []
    for step in (*known_steps, *others):
        if answer := answers.get((step.vendor, step.mode, step.schema)):
            step = replace(step, entitled=answer.entitled, refusal=answer.text)
            step = replace(step, asked_at=answer.asked_at, ask_again=answer.ask_again)
        elif step.mode == "live" and step.schema in live:
            step = replace(step, entitled=True, asked_at=live[step.schema])
        steps.append(step)
    return steps


def market_state(now: datetime) -> str:
    """One sentence: open or closed, until when, and the trade date in force."""
    session = sessions.current_session(now)
    if sessions.is_open(now):
        regular = "regular hours" if sessions.is_open(now, "rth") else "outside regular hours"
        until = in_chicago(sessions.next_boundary(now))
        return f"open ({regular}), trade date {session.trade_date}, until {until}"
    return (
        f"closed, trade date {session.trade_date} was the last, opens {in_chicago(sessions.next_open(now))}"
    )
