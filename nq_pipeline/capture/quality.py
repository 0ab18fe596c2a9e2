"""What can be said about the capture of one trade date, from what the lake holds of it.

Reads what the capture has put down (gaps, sessions, refusals, the newest trade), so it can be asked
at any time: while a capture runs, after one died, with none at all. Nothing here knows Dagster.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

import polars as pl

from nq_pipeline.capture.gaps import MAX_REPLAYS, UNRESOLVED, Gap, GapStore
from nq_pipeline.capture.schema_fallback import SchemaFallback
from nq_pipeline.clock import from_ns
from nq_pipeline.finding import Finding
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import SESSIONS, TRADES
from nq_pipeline.market import sessions
from nq_pipeline.market.sessions import Window, in_chicago
from nq_pipeline.settings import Settings
from nq_pipeline.sources.databento.spec import DatabentoSettings
from nq_pipeline.spend.entitlements import FALLBACK_ORDER
from nq_pipeline.workspace import Workspace

LATE, STALE = timedelta(minutes=2), timedelta(minutes=10)
"""Without a new trade for so long while the market is open, something may be, or is, wrong. Our own
judgement: NQ futures trade many times a minute in regular hours, seldom only in the quietest of the night."""
BEHIND = timedelta(seconds=60)
"""The end of what is published may lag so far behind the present without counting as missing, and a
capture may take so long to begin after the opening."""
CLOCKS = timedelta(minutes=1)
"""A trade may be so far ahead of our clock; later ones carry a time that is wrong."""
ENOUGH = 0.99
"""Share of the window that has to be proven for a warning instead of an error."""

Span = tuple[datetime, datetime]


@dataclass(frozen=True, slots=True)
class CaptureDay:
    """The capture of one trade date as it stands.

    Attributes
    ----------
    now
        By the capture's clock.
    window
        The spans of the trade date that are to be captured, to their ends.
    gaps
        The latest state of each.
    newest
        `ts_event` of the newest trade published; None without any.
    proven
        Up to where the last session that ended well had everything.
    missing
        Roots always listed that the gateway named no instrument of.
    wanted, refused
        Schema wanted of options and of futures; schema refused to what the gateway said.
    refusal
        Why nothing is streamed at all, in a sentence.
    """

    trade_date: date
    now: datetime
    window: Sequence[Span]
    gaps: Sequence[Gap] = ()
    newest: datetime | None = None
    proven: datetime | None = None
    missing: Sequence[str] = ()
    wanted: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    refusal: str = ""

    @property
    def elapsed(self) -> list[Span]:
        """The part of the window that lies behind us."""
        return [(a, min(b, self.now)) for a, b in self.window if a < self.now]

    @property
    def has_begun(self) -> bool:
        """Whether anything was captured, or found missing."""
        return bool(self.gaps or self.newest or self.proven)

    @property
    def is_open(self) -> bool:
        return any(a <= self.now < b for a, b in self.window)


def last_opened(now: datetime, window: Window) -> date:
    """The trade date whose window opened last."""
    around = sessions.sessions((now - timedelta(days=12)).date(), (now + timedelta(days=5)).date())
    return max(s.trade_date for s in around if (spans := window_spans(s, window)) and spans[0][0] <= now)


def window_spans(session: sessions.Session, window: Window) -> list[Span]:
    """What of a session is to be captured; `always` counts the hours in which the market trades."""
    if window == "rth":
        return [session.rth] if session.rth else []
    return list(session.segments)


def read_capture_day(
    settings: Settings, now: datetime, trade_date: date, *, missing: Sequence[str] = (), refusal: str = ""
) -> CaptureDay:
    """Read how the capture of a trade date stands.

    Parameters
    ----------
    missing, refusal
        What a running or ended capture knows and the lake does not.
    """
    dataset = settings.vendor(DatabentoSettings).dataset
    lake, session = Workspace.of(settings).lake, sessions.session(trade_date)
    book = GapStore(lake, dataset=dataset, environment=settings.environment, run_id="")
    wanted = {"options": settings.capture.options_schema, "futures": settings.capture.futures_schema}
    ended = (
        lake.scan(SESSIONS, [trade_date])
        .filter(pl.col("dataset") == dataset)
        .sort("ended_at")
        .select(pl.col("proven_ts").dt.epoch("ns"), "missing")
        .collect()
    )
    proven = ended["proven_ts"].max()
    named = ended["missing"].last() if ended.height else None
    return CaptureDay(
        trade_date=trade_date,
        now=now,
        window=window_spans(session, settings.capture.window),
        gaps=[g for g in book.gaps(session.open) if sessions.trade_date(from_ns(g.first_ns)) == trade_date],
        newest=_newest(lake, trade_date, now),
        proven=from_ns(proven) if isinstance(proven, int) else None,
        missing=tuple(missing) or tuple(str(named).split(",") if named else ()),
        wanted=wanted,
        refused=SchemaFallback(lake, dataset, wanted).refused(trade_date),
        refusal=refusal,
    )


def _newest(lake: Lake, trade_date: date, now: datetime) -> datetime | None:
    """When the newest trade was, by its own time unless that is far from its receipt."""
    files = lake.manifest(TRADES).of({trade_date})
    newest = max((from_ns(file.since_max) for file in files), default=None)
    if newest is None or newest <= now + CLOCKS:
        return newest
    moment = pl.when("is_misdated").then("ts_recv").otherwise("ts_event").dt.epoch("ns").max()
    return from_ns(int(lake.scan(TRADES, {trade_date}).select(moment).collect().item()))


def judge_capture(day: CaptureDay) -> dict[str, Finding]:
    """Every judgement, by the name of its check."""
    return {
        "gaps": gaps(day),
        "entitlement": judge_entitlement(day),
        "freshness": judge_freshness(day),
        "completeness": judge_completeness(day),
    }


def gaps(day: CaptureDay) -> Finding:
    """Whether every hole was filled and counted."""
    states: dict[str, list[Gap]] = {"open": [], "verified": [], "unfillable": [], "disputed": []}
    for gap in day.gaps:
        unresolved = gap.state in UNRESOLVED
        disputed = unresolved and gap.attempts >= MAX_REPLAYS
        states["disputed" if disputed else "open" if unresolved else gap.state].append(gap)
    numbers = {f"{state}_gaps": len(found) for state, found in states.items()}
    lost = len(states["unfillable"]) + len(states["disputed"])
    differ = [gap for gap in day.gaps if gap.is_verified_but_differs]
    if not day.gaps:
        sentence = f"{day.trade_date} has no gap"
    elif lost:
        sentence = f"{_count(lost, 'gap')} of {day.trade_date} cannot be filled"
    elif states["open"]:
        sentence = f"{_count(len(states['open']), 'gap')} of {day.trade_date} not yet proven to be filled"
    elif differ:
        sentence = f"the lake has other rows than counted of {_count(len(differ), 'gap')} of {day.trade_date}"
    else:
        sentence = f"{_count(len(day.gaps), 'gap')} of {day.trade_date}, filled and counted"
    return Finding(
        passed=not lost and not states["open"] and not differ,
        sentence=sentence,
        severity="error" if lost else "warn",
        numbers=numbers,
        table=_table(day.gaps) if day.gaps else None,
    )


def judge_entitlement(day: CaptureDay) -> Finding:
    """Whether the schemas that are wanted are those that come."""
    if day.refusal:
        return Finding(passed=False, sentence=day.refusal, severity="error")
    below, table = [], []
    for what, wanted in day.wanted.items():
        steps = FALLBACK_ORDER[FALLBACK_ORDER.index(wanted) :]
        given = next((schema for schema in steps if schema not in day.refused), None)
        table.append({"of": what, "wanted": wanted, "in force": given, "refused": _said(steps, day)})
        if given is None:
            sentence = f"the plan streams no schema of {what}: {day.refused[FALLBACK_ORDER[-1]]}"
            return Finding(passed=False, sentence=sentence, severity="error", table=pl.DataFrame(table))
        if given != wanted:
            below.append(f"{given} instead of {wanted} for {what}")
    streamed = ", ".join(f"{row['in force']} for {row['of']}" for row in table)
    return Finding(
        passed=not below,
        sentence=f"the plan allows {'; '.join(below)}" if below else f"as wanted: {streamed}",
        severity="warn",
        table=pl.DataFrame(table),
    )


def judge_freshness(day: CaptureDay) -> Finding:
    """Whether trades are coming while the window is open."""
    if day.newest is None:
        begun = _begun(day)
        sentence = f"no trade of {day.trade_date} was published"
        return Finding(begun <= LATE, sentence, severity="error" if begun > STALE else "warn")
    newest = f"the newest trade is of {in_chicago(day.newest)}"
    if not day.is_open:
        return Finding(passed=True, sentence=f"the window is closed; {newest}")
    age = day.now - day.newest
    return Finding(
        passed=age <= LATE,
        sentence=f"{newest}, {max(age.total_seconds(), 0):.0f} s old",
        severity="error" if age > STALE else "warn",
        numbers={"newest_age_s": round(age.total_seconds(), 3)},
    )


def judge_completeness(day: CaptureDay) -> Finding:
    """How much of the window so far is proven to be complete, and whether every root came."""
    elapsed, holes = day.elapsed, [_span(gap, day.now) for gap in day.gaps if gap.state != "verified"]
    reached = max((at for at in (day.newest, day.proven) if at), default=None)
    end = elapsed[-1][1] if elapsed else day.now
    if _begun(day) > BEHIND and (reached is None or end - reached > BEHIND):
        holes.append((reached or day.window[0][0], end))
    total = sum((b - a).total_seconds() for a, b in elapsed)
    lost = sum(_covered(span, holes) for span in elapsed)
    share = 1.0 - lost / total if total else 1.0
    sentence = f"{share:.2%} of the window so far is proven complete" if total else "the window begins"
    if day.missing:
        sentence = f"the gateway names no instrument of {', '.join(day.missing)}; {sentence}"
    return Finding(
        passed=lost == 0 and not day.missing,
        sentence=sentence,
        severity="error" if day.missing or share < ENOUGH else "warn",
        numbers={"proven_share": round(share, 6), "unproven_s": round(lost, 3)},
    )


def _table(found: Iterable[Gap]) -> pl.DataFrame:
    rows = [
        {
            "from": _moment(gap.first_ns),
            "to": "" if gap.last_ns is None else _moment(gap.last_ns),
            "schema": gap.schema,
            "state": gap.state,
            "cause": gap.cause,
            "filled by": gap.filled_by,
            "replayed": gap.replayed,
            "counted": gap.counted,
            "in the lake": gap.published,
            "reason": gap.reason,
        }
        for gap in sorted(found, key=lambda gap: gap.first_ns, reverse=True)
    ]
    return pl.DataFrame(rows, infer_schema_length=None)


def _span(gap: Gap, now: datetime) -> Span:
    return from_ns(gap.first_ns), now if gap.last_ns is None else from_ns(gap.last_ns)


def _covered(span: Span, holes: Sequence[Span]) -> float:
    """Seconds of a span that lie in holes, which may overlap."""
    seconds, done = 0.0, span[0]
    for a, b in sorted(holes):
        a, b = max(a, done), min(b, span[1])
        if a < b:
            seconds += (b - a).total_seconds()
            done = b
    return seconds


def _begun(day: CaptureDay) -> timedelta:
    return sum(((b - a) for a, b in day.elapsed), timedelta())


def _said(steps: Sequence[str], day: CaptureDay) -> str:
    return "; ".join(dict.fromkeys(day.refused[schema] for schema in steps if schema in day.refused))


def _moment(ns: int) -> str:
    return from_ns(ns).astimezone(sessions.CHICAGO).strftime("%H:%M:%S CT")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
