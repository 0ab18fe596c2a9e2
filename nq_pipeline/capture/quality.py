"""How good the capture of a trade date is, judged from what the lake holds of it.

Reads gaps, sessions, refusals and the newest trade, so it works at any time: during a capture, after one
has died, or without any. Nothing here knows Dagster.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

import polars as pl

from nq_pipeline.capture.gap_store import GapStore
from nq_pipeline.capture.gaps import CLOCK_SKEW, LOOK_BACK, UNRESOLVED, Gap, session_windows
from nq_pipeline.capture.schema_fallback import FALLBACK_ORDER, SchemaFallback
from nq_pipeline.clock import from_ns
from nq_pipeline.finding import Finding
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import SESSIONS, TRADES
from nq_pipeline.market import sessions
from nq_pipeline.market.sessions import Window, in_chicago
from nq_pipeline.settings import Settings
from nq_pipeline.sources.databento.spec import DatabentoSettings
from nq_pipeline.workspace import Workspace

LATE, STALE = timedelta(minutes=2), timedelta(minutes=10)
"""Without a new trade for this long in an open market, something may be wrong, or is. Our own judgement:
NQ futures trade many times a minute in regular hours, and rarely only in the quietest hours of the night."""
BEHIND = timedelta(seconds=60)
"""How far publishing may lag, and how long a capture may take to start, before records count as missing."""
ENOUGH = 0.99
"""The share of the window that must be proven for a warning instead of an error."""

Span = tuple[datetime, datetime]


@dataclass(frozen=True, slots=True)
class CaptureDay:
    """The state of the capture of one trade date."""

    trade_date: date
    now: datetime  # by the capture's clock
    window: Sequence[Span]  # the spans of the trade date to capture
    gaps: Sequence[Gap] = ()
    newest: datetime | None = None  # `ts_event` of the newest published trade; None without any
    proven: datetime | None = None  # up to when a session proved everything; None without any
    missing: Sequence[str] = ()  # roots always listed of which the gateway named no instrument
    wanted: Mapping[str, str] = field(default_factory=dict)  # `options` and `futures` to the schema wanted
    refused: Mapping[str, str] = field(default_factory=dict)  # schema refused to the gateway's text
    refusal: str = ""  # why nothing is streamed at all, in a sentence

    @property
    def elapsed(self) -> list[Span]:
        """The part of the window that has passed."""
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
    return max(s.trade_date for s in around if (spans := session_windows(s, window)) and spans[0][0] <= now)


def read_capture_day(
    settings: Settings, now: datetime, trade_date: date, *, missing: Sequence[str] = (), refusal: str = ""
) -> CaptureDay:
    """Read the state of the capture of a trade date.

    `missing` and `refusal` are what a capture knows and the lake does not.
    """
    dataset = settings.vendor(DatabentoSettings).dataset
    lake, session = Workspace.of(settings).lake, sessions.session(trade_date)
    gaps = GapStore(lake, dataset=dataset, run_id="").gaps(session.open - LOOK_BACK)
    endless = settings.capture.window == "always"
    wanted = {"options": settings.capture.options_schema, "futures": settings.capture.futures_schema}
    ended = (
        lake.scan(SESSIONS, [trade_date])
        .filter(pl.col("dataset") == dataset)
        .sort("ended_at")
        .select(pl.col("proven_ts").dt.epoch("ns"), "missing")
        .collect()
    )
    proven = ended["proven_ts"].max()
    last_missing = ended["missing"].last() if ended.height else None
    return CaptureDay(
        trade_date=trade_date,
        now=now,
        window=session_windows(session, settings.capture.window),
        gaps=[gap for gap in gaps if _touches(gap, session, endless=endless)],
        newest=_newest(lake, trade_date, now),
        proven=from_ns(proven) if isinstance(proven, int) else None,
        missing=tuple(missing) or tuple(str(last_missing).split(",") if last_missing else ()),
        wanted=wanted,
        refused=SchemaFallback(lake, dataset, wanted).refused(trade_date),
        refusal=refusal,
    )


def _touches(gap: Gap, session: sessions.Session, *, endless: bool) -> bool:
    """Whether a gap has a part of a session. One without an end lasts until its window closes, if it does."""
    begins = sessions.trade_date(from_ns(gap.first_ns))
    goes_on = endless if gap.last_ns is None else from_ns(gap.last_ns) > session.open
    return begins == session.trade_date or (begins < session.trade_date and goes_on)


def _newest(lake: Lake, trade_date: date, now: datetime) -> datetime | None:
    """The instant of the newest trade, by its receipt if its own time is far from that."""
    files = lake.manifest(TRADES).of({trade_date})
    newest = max((from_ns(file.since_max) for file in files), default=None)
    if newest is None or newest <= now + CLOCK_SKEW:
        return newest
    moment = pl.when("is_misdated").then("ts_recv").otherwise("ts_event").dt.epoch("ns").max()
    return from_ns(int(lake.scan(TRADES, {trade_date}).select(moment).collect().item()))


def judge_capture(day: CaptureDay) -> dict[str, Finding]:
    """The findings by the name of their check."""
    return {
        "gaps": judge_gaps(day),
        "entitlement": judge_entitlement(day),
        "freshness": judge_freshness(day),
        "completeness": judge_completeness(day),
    }


def judge_gaps(day: CaptureDay) -> Finding:
    """Whether every gap was filled and counted."""
    disputed = [gap for gap in day.gaps if gap.is_disputed]
    unresolved = [gap for gap in day.gaps if gap.state in UNRESOLVED and not gap.is_disputed]
    verified = [gap for gap in day.gaps if gap.state == "verified"]
    lost = len(day.gaps) - len(unresolved) - len(verified)
    differ = [gap for gap in verified if gap.is_verified_but_differs]
    number = lost or len(unresolved) or len(differ) or len(day.gaps)
    gaps = f"{number} gap{'' if number == 1 else 's'} on {day.trade_date}"
    if not day.gaps:
        sentence = f"{day.trade_date} has no gap"
    elif lost:
        sentence = f"{gaps} cannot be filled"
    elif unresolved:
        sentence = f"{gaps} not yet proven to be filled"
    elif differ:
        sentence = f"the lake has more or fewer rows than counted in {gaps}"
    else:
        sentence = f"{gaps}, filled and counted"
    return Finding(
        passed=not lost and not unresolved and not differ,
        sentence=sentence,
        severity="error" if lost else "warn",
        numbers={
            "open_gaps": len(unresolved),
            "verified_gaps": len(verified),
            "unfillable_gaps": lost - len(disputed),
            "disputed_gaps": len(disputed),
        },
        table=_table(day.gaps) if day.gaps else None,
    )


def judge_entitlement(day: CaptureDay) -> Finding:
    """Whether the wanted schemas are streamed."""
    if day.refusal:
        return Finding(passed=False, sentence=day.refusal, severity="error")
    below, table = [], []
    for what, wanted in day.wanted.items():
        steps = FALLBACK_ORDER[FALLBACK_ORDER.index(wanted) :]
        given = next((schema for schema in steps if schema not in day.refused), None)
        texts = dict.fromkeys(day.refused[schema] for schema in steps if schema in day.refused)
        table.append({"of": what, "wanted": wanted, "in force": given, "refused": "; ".join(texts)})
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
    """Whether trades arrive while the window is open."""
    if day.newest is None:
        elapsed = _total(day.elapsed)
        sentence = f"no trade for {day.trade_date} has been published"
        return Finding(elapsed <= LATE, sentence, severity="error" if elapsed > STALE else "warn")
    newest = f"the newest trade is from {in_chicago(day.newest)}"
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
    """How much of the window so far is proven complete, and whether every root was named."""
    elapsed, unproven = day.elapsed, [gap for gap in day.gaps if gap.state != "verified"]
    holes = [(from_ns(g.first_ns), day.now if g.last_ns is None else from_ns(g.last_ns)) for g in unproven]
    reached = max((at for at in (day.newest, day.proven) if at), default=None)
    end = elapsed[-1][1] if elapsed else day.now
    if _total(elapsed) > BEHIND and (reached is None or end - reached > BEHIND):
        holes.append((reached or day.window[0][0], end))
    total = _total(elapsed).total_seconds()
    lost = sum(_covered(span, holes) for span in elapsed)
    share = 1.0 - lost / total if total else 1.0
    sentence = f"{share:.2%} of the window so far is proven complete" if total else "the window just opened"
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
            "from": _chicago_time(gap.first_ns),
            "to": _chicago_time(gap.last_ns),
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


def _total(spans: Sequence[Span]) -> timedelta:
    return sum(((b - a) for a, b in spans), timedelta())


def _covered(span: Span, holes: Sequence[Span]) -> float:
    """Seconds of a span that lie in some holes, which may overlap."""
    seconds, done = 0.0, span[0]
    for a, b in sorted(holes):
        a, b = max(a, done), min(b, span[1])
        if a < b:
            seconds += (b - a).total_seconds()
            done = b
    return seconds


def _chicago_time(ns: int | None) -> str:
    return "" if ns is None else from_ns(ns).astimezone(sessions.CHICAGO).strftime("%H:%M:%S CT")
