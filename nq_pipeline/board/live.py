"""Follows the stream and keeps the feed's sections up to date."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import date, datetime
from time import monotonic
from typing import Any

import duckdb
import numpy as np
import polars as pl

from nq_pipeline.board.feed import TAPE_TRADES, Feed
from nq_pipeline.board.history import (
    PublishedTrades,
    read_chain_volatility,
    read_gaps,
    read_last_chain,
    read_published_trades,
)
from nq_pipeline.board.market_clock import read_market_clock
from nq_pipeline.board.trades import FuturePrices, StrikeVolumes, board_rows, tape_columns
from nq_pipeline.board.volatility import LiveQuotes, quote_rows
from nq_pipeline.capture.log.segments import Position
from nq_pipeline.charts.theme import SANDBOX
from nq_pipeline.clock import Clock
from nq_pipeline.errors import BadCursor, LakeError, LedgerError, StoreError, TooSlow
from nq_pipeline.lake import catalog
from nq_pipeline.market import sessions
from nq_pipeline.settings import Settings
from nq_pipeline.sources.databento.spec import DatabentoSettings
from nq_pipeline.spend.ledger import read_ledger
from nq_pipeline.stream.batch import Batch, Cursor
from nq_pipeline.stream.hub import Hub
from nq_pipeline.workspace import Workspace

FIGURES_S, VOLATILITY_S, CLOCK_S, SPEND_S = 0.25, 2.0, 2.0, 15.0
"""How often each is shown, seconds."""
RATE_S, LAG_S = 10.0, 60.0
"""Seconds over which the rates and the lag are measured."""
REPLAY_MS = 10_000
"""A record that is older than this when it comes was replayed, and says nothing about the lag."""

_UNREADABLE = (LakeError, StoreError, OSError, duckdb.Error, pl.exceptions.PolarsError)
"""Errors of the lake; the board continues without its rows."""


class LiveBoard:
    """The figures of one board. `run` it on the feed's event loop.

    Parameters
    ----------
    clock
        The clock of the capture: in the sandbox the stand-in gateway's.
    note
        What else to say at the top of the page.
    capture_end
        Why the capture that this board started has ended; empty while it runs. None without such a capture.
    """

    def __init__(
        self,
        settings: Settings,
        hub: Hub,
        feed: Feed,
        *,
        clock: Clock,
        note: str = "",
        capture_end: Callable[[], str] | None = None,
    ) -> None:
        self._settings, self._hub, self._feed, self._clock = settings, hub, feed, clock
        self._capture_end = capture_end
        self._workspace = Workspace.of(settings)
        self._log = self._workspace.capture / settings.vendor(DatabentoSettings).dataset
        self._day = sessions.trade_date(clock.now())
        self._futures, self._strikes = FuturePrices(), StrikeVolumes()
        self._quotes = LiveQuotes(settings.pricing.risk_free_rate)
        self._new: list[pl.DataFrame] = []
        self._arrivals: deque[tuple[float, int, int]] = deque()  # monotonic seconds, trades, quotes
        self._lags: deque[tuple[float, float]] = deque()  # monotonic seconds, milliseconds
        self._trades = self._newest = 0
        self._schemas: dict[str, str] = {}
        self._status: dict[str, Any] = {}
        self._chain_volatility: dict[str, Any] = {}
        self._lake_changed = asyncio.Event()
        self._problem = self._skipped = ""
        sandbox = SANDBOX if settings.environment == "sandbox" else ""
        board = {"products": settings.products, "sandbox": sandbox, "note": note, "tape": TAPE_TRADES}
        self._feed.set("board", board)
        self._show_clock()

    async def run(self) -> None:
        """Follow the stream until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow())
            tasks.create_task(self._read_lake())
            tasks.create_task(_every(CLOCK_S, self._show_clock))
            tasks.create_task(_every(FIGURES_S, self._show_figures))
            tasks.create_task(_every(VOLATILITY_S, self._show_volatility))
            tasks.create_task(_every(SPEND_S, self._show_spend))

    # ── the stream ──────────────────────────────────────────────────────────────────────────────

    async def _follow(self) -> None:
        cursor = await self._begin()
        while True:
            try:
                async for batch in self._hub.subscribe(cursor):
                    self._receive(batch)
                    cursor = batch.cursor or cursor
            except TooSlow:
                continue  # nothing is lost: the cursor is that of the last batch
            except BadCursor as error:
                self._skipped = str(error)
                cursor = self._after_unreadable(cursor)

    def _after_unreadable(self, cursor: Cursor) -> Cursor:
        """The next segment of the log, or the head where there is none; the page says what is missing."""
        head, following = self._hub.head, Position(min(cursor.trades, cursor.quotes).segment + 1, 0)
        if following > min(head.trades, head.quotes):
            return head.move(event=cursor.event)
        return cursor.move(trades=max(cursor.trades, following), quotes=max(cursor.quotes, following))

    async def _begin(self) -> Cursor:
        """Start from what the lake has; returns the cursor from which the stream continues."""
        head = self._hub.head
        try:
            known = await asyncio.to_thread(read_published_trades, self._log, self._workspace.lake, self._day)
        except _UNREADABLE as error:
            self._problem = str(error)
            return head
        self._start_day(self._day, known)
        return head.move(trades=known.position, quotes=known.position)

    def _start_day(self, day: date, known: PublishedTrades | None = None) -> None:
        self._day, self._futures, self._strikes = day, FuturePrices(), StrikeVolumes()
        self._skipped = ""
        self._new.clear()
        self._lake_changed.set()
        if known:
            self._futures, self._strikes = known.futures, known.strikes
            self._quotes.add(known.quotes)
            self._add_to_tape(known.newest)

    def _receive(self, batch: Batch) -> None:
        match batch.type:
            case "trades":
                rows = board_rows(batch.frame)
                self._count(batch.frame, trades=rows.height)
                self._add_to_tape(rows)
                if (newest := rows["trade_date"].max()) is not None and newest > self._day:  # type: ignore[operator]
                    self._start_day(newest)  # type: ignore[arg-type]
                self._new.append(rows.filter(pl.col("trade_date") == self._day))
            case "quotes":
                self._count(batch.frame, quotes=batch.frame.height)
                self._quotes.add(quote_rows(batch.frame))
                self._schemas["option"] = "mbp-1"
            case "status":
                self._status = batch.frame.row(0, named=True)
            case _:
                self._lake_changed.set()

    def _add_to_tape(self, rows: pl.DataFrame) -> None:
        if rows.height:
            self._feed.add_trades(tape_columns(rows), rows.height)
            self._trades += rows.height
            self._newest = max(self._newest, rows.select(pl.col("time").max()).item())
            kinds = rows.select("instrument_kind", "source_schema").unique("instrument_kind", keep="last")
            self._schemas |= {
                kind: schema for kind, schema in kinds.iter_rows() if kind in ("option", "future")
            }

    def _count(self, frame: pl.DataFrame, *, trades: int = 0, quotes: int = 0) -> None:
        at, now_ms = monotonic(), self._clock.now().timestamp() * 1e3
        self._arrivals.append((at, trades, quotes))
        lags = now_ms - frame["ts_recv"].dt.epoch("us") / 1e3
        live = lags.filter(lags < REPLAY_MS)
        if len(live):
            self._lags.append((at, live.max()))  # type: ignore[arg-type]
        for entries, seconds in ((self._arrivals, RATE_S), (self._lags, LAG_S)):
            while entries and entries[0][0] < at - seconds:
                entries.popleft()

    # ── the sections ────────────────────────────────────────────────────────────────────────────

    def _show_clock(self) -> None:
        now = self._clock.now()
        market = read_market_clock(now)
        offset = now.astimezone(sessions.CHICAGO).utcoffset()
        assert offset is not None
        instants = {
            name: value.timestamp() * 1e3 for name, value in market.items() if isinstance(value, datetime)
        }
        self._feed.set("clock", {**market, **instants, "offset": offset.total_seconds() * 1e3})

    def _show_figures(self) -> None:
        new, self._new = self._new, []
        rows = pl.concat(new) if new else None
        if rows is not None and rows.height:
            self._futures.add(rows)
            self._strikes.add(rows)
        latest = self._futures.latest()
        prices = {row["product"]: row["last"] for row in latest}
        self._feed.set("future", latest)
        self._feed.set("price", self._futures.lines())
        self._feed.set("strikes", self._strikes.spans(int(self._clock.now().timestamp() * 1e3), prices))
        self._show_capture()

    def _show_capture(self) -> None:
        at = monotonic()
        recent = [entry for entry in self._arrivals if entry[0] >= at - RATE_S]
        lags = [lag for arrived, lag in self._lags if arrived >= at - LAG_S]
        p50, p99 = np.percentile(lags, [50, 99]).tolist() if lags else (None, None)
        self._feed.set(
            "capture",
            {
                "running": self._status.get("is_capturing", False),
                "ended": self._capture_end() if self._capture_end else "",
                "trades": self._trades,
                "rate": sum(trades for _, trades, _ in recent) / RATE_S,
                "quotes": sum(quotes for _, _, quotes in recent) / RATE_S,
                "lag": {"p50": p50, "p99": p99} if lags else None,
                "newest": self._newest,
                "schemas": self._schemas,
                "failure": self._problem or self._status.get("failure"),
                "skipped": self._skipped,
            },
        )

    async def _show_volatility(self) -> None:
        live = await asyncio.to_thread(self._quotes.measure, self._clock.now(), self._futures.points)
        self._feed.set("volatility", {**self._chain_volatility, **live})

    async def _read_lake(self) -> None:
        """Show gaps and the last chain, now and whenever either has changed."""
        while True:
            self._lake_changed.clear()
            try:
                sections = await asyncio.to_thread(_read_lake, self._workspace, self._day)
            except _UNREADABLE as error:
                self._problem = str(error)
            else:
                self._problem = ""
                self._chain_volatility = sections.pop("volatility")
                for name, value in sections.items():
                    self._feed.set(name, value)
            await self._lake_changed.wait()

    async def _show_spend(self) -> None:
        self._feed.set("spend", await asyncio.to_thread(_read_spend, self._settings))


def _read_lake(workspace: Workspace, day: date) -> dict[str, Any]:
    with catalog.connect(workspace.lake) as lake:
        chains, volatility = read_last_chain(lake), read_chain_volatility(lake)
        return {"gaps": read_gaps(lake, day), "chain": chains, "volatility": volatility}


def _read_spend(settings: Settings) -> dict[str, Any]:
    try:
        month = read_ledger(settings).month()
    except LedgerError as error:
        return {"problem": str(error)}
    amounts = {
        "metered": month.metered_usd,
        "reserved": month.reserved_usd,
        "left": month.remaining_usd,
        "left_today": month.remaining_today_usd,
        "budget": month.budgets.monthly_usd,
        "plan": month.plan_usd,
    }
    return {**{name: float(usd) for name, usd in amounts.items()}, "plan_name": month.budgets.plan_name}


async def _every(seconds: float, work: Callable[[], Awaitable[None] | None]) -> None:
    """Do something now and every so many seconds."""
    while True:
        if (waiting := work()) is not None:
            await waiting
        await asyncio.sleep(seconds)
