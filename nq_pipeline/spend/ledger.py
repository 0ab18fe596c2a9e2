"""The ledger: no metered request is sent before its worst-case cost is reserved here.

    reserve ── the request is made ──► commit     what it cost, by the bytes received
       │                         └───► release    it provably never left, or was refused before any data
       └─ neither (crash, cut download): the reservation stays open and counts against every month and
          day until a person reconciles it with the vendor's bill

Amounts are exact decimals in USD. Time is real time, also where NQ_NOW pins the market's clock.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from decimal import Decimal

import sqlalchemy as sa

from nq_pipeline.clock import Clock, SystemClock
from nq_pipeline.errors import LedgerError, OverBudget
from nq_pipeline.settings import Settings
from nq_pipeline.spend import period
from nq_pipeline.spend.budgets import Budgets
from nq_pipeline.spend.charge import (
    Charge,
    Mode,
    Purpose,
    Reservation,
    actual_cost,
    charge_columns,
    check_amounts,
    reservation_from_line,
)
from nq_pipeline.spend.database import exclusive_transaction, open_copy, open_engine, refuse_older_copy
from nq_pipeline.spend.ledger_transaction import LedgerTransaction
from nq_pipeline.spend.money import ZERO, format_usd, is_amount, round_up
from nq_pipeline.spend.period import Boot, this_boot
from nq_pipeline.spend.statement import Statement, build_statement
from nq_pipeline.spend.tables import LINES, Kind, Line

__all__ = ["Charge", "Ledger", "Mode", "Purpose", "Reservation", "Spending", "open_ledger"]

log = logging.getLogger(__name__)


class Spending:
    """An open reservation to commit or release; see `Ledger.spending`."""

    def __init__(self, ledger: Ledger, reservation: Reservation) -> None:
        self.reservation = reservation
        self._ledger = ledger

    def commit(self, *, billed_bytes: int, request_id: str | None = None) -> Decimal:
        return self._ledger.commit(self.reservation, billed_bytes=billed_bytes, request_id=request_id)

    def release(self, reason: str) -> None:
        self._ledger.release(self.reservation, reason)


def open_ledger(
    settings: Settings, *, clock: Clock | None = None, boot: Callable[[], Boot | None] = this_boot
) -> Ledger:
    """Open the ledger of these settings; create or migrate its tables where needed.

    Records changed budgets, books this month's fee and warns of open reservations.

    Parameters
    ----------
    clock
        Real time; the machine's clock when not given, never the pinned one.
    boot
        Returns how long this machine has been up.

    Raises
    ------
    LedgerError
        The database cannot be reached or was written by a newer release, or lacks lines that were exported.
    """
    refuse_older_copy(settings)
    ledger = Ledger(settings, clock=clock, boot=boot)
    if left := ledger.open_reservations():
        log.warning(
            "open reservations: %d, %s held, the oldest since %s: `nq budget` lists them",
            len(left),
            format_usd(sum((reservation.reserved_usd for reservation in left), ZERO)),
            f"{left[0].reserved_at:%Y-%m-%d %H:%M} UTC",
        )
    return ledger


def read_ledger(settings: Settings) -> Ledger:
    """Open the ledger for a statement. Where it cannot be written (a full disk), a copy in memory is read.

    Raises
    ------
    LedgerError, OSError
        It can be neither written nor read.
    """
    try:
        return Ledger(settings)
    except (LedgerError, OSError) as error:
        if (copy := open_copy(settings)) is None:
            raise
        log.warning("the ledger cannot be written and is only read: %s", error)
        return Ledger(settings, copy=copy)


class Ledger:
    """Opened by `open_ledger`. Safe for any number of threads, processes and (PostgreSQL) machines."""

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock | None = None,
        boot: Callable[[], Boot | None] = this_boot,
        copy: sa.Engine | None = None,
    ) -> None:
        self.environment = settings.environment
        self.budgets = Budgets.of(settings)
        self._review = timedelta(hours=settings.spend.budget_review_h)
        self._reason = settings.spend.budget_reason
        self._clock, self._boot = clock or SystemClock(), boot
        self.is_copy = copy is not None
        self._engine = copy or open_engine(settings)
        with self._begin() as tx:
            tx.record_settings(self._reason)

    # ── spending ────────────────────────────────────────────────────────────────────────────────

    def reserve(self, charge: Charge) -> Reservation:
        """Reserve the cost of a charge, durably, if it fits every budget. A refusal is recorded, too.

        The check and the write run in one exclusive database transaction, so no other reservation can use the
        same money in between. A charge that costs nothing is recorded and never refused.

        Raises
        ------
        OverBudget
            It does not fit, or its price is unknown. The message names the request, its cost, what is
            left and the setting that raises it.
        LedgerError
            The ledger cannot be written, so the request must not be sent.
        """
        check_amounts(charge)
        reservation_id = uuid.uuid4().hex[:12]
        with self._begin() as tx:
            if refusal := tx.book_fee_and_check(charge):
                tx.append(Kind.REFUSED, **charge_columns(charge), reason=refusal)
            else:
                held = round_up(charge.cost_usd or ZERO)
                about = {"reservation_id": reservation_id, "reserved_usd": held}
                at = tx.append(Kind.RESERVED, **charge_columns(charge), **about)
        if refusal:
            raise OverBudget(refusal)
        return Reservation(reservation_id, charge, at, held)

    def check(self, charge: Charge) -> str | None:
        """Why this charge would be refused now; None when it fits every budget. Reserves nothing."""
        check_amounts(charge)
        with self._begin() as tx:
            return tx.book_fee_and_check(charge)

    def commit(
        self, reservation: Reservation, *, billed_bytes: int, request_id: str | None = None
    ) -> Decimal:
        """Book what the request cost: the bytes received at the unit price. A second call changes nothing.

        Without a unit price the vendor's quoted price counts, scaled by the bytes received where the
        quote gave their number. A reservation that was reconciled or released meanwhile is corrected.

        Returns
        -------
        Decimal
            USD.
        """
        if billed_bytes < 0:
            raise LedgerError(f"a download of {billed_bytes} bytes cannot be committed")
        cost = actual_cost(reservation.charge, billed_bytes)
        about = {"bytes": billed_bytes, "request_id": request_id}
        with self._begin() as tx:
            trail = tx.trail(reservation.id)
            if trail.closed is None:
                tx.close(trail, Kind.COMMITTED, spent_usd=cost, **about)
            elif trail.closed.kind == Kind.COMMITTED:
                return trail.spent_usd
            else:
                tx.correct(trail, cost, reason=f"data arrived after it was {trail.closed.kind}", **about)
        return cost

    def release(self, reservation: Reservation, reason: str) -> None:
        """Release what was reserved. Only where the request provably brought no data: it was never sent, or
        the vendor refused it before sending any.

        Raises
        ------
        LedgerError
            The reservation is already committed.
        """
        with self._begin() as tx:
            trail = tx.trail(reservation.id)
            if trail.closed is None:
                tx.close(trail, Kind.RELEASED, reason=reason)
            elif trail.closed.kind == Kind.COMMITTED:
                raise LedgerError(f"reservation {reservation.id} is committed and cannot be released")

    @contextmanager
    def spending(self, charge: Charge) -> Iterator[Spending]:
        """Reserve a charge for the block, which commits or releases it; otherwise it stays open."""
        yield Spending(self, self.reserve(charge))

    # ── reviewing ───────────────────────────────────────────────────────────────────────────────

    def open_reservations(self, older_than: timedelta = timedelta(0)) -> list[Reservation]:
        """Reservations not yet committed, released or reconciled, the oldest first."""
        with self._begin() as tx:
            # After a clock was set back, an age may be negative; it counts as zero.
            return [
                reservation_from_line(line)
                for line in tx.open_lines()
                if max(timedelta(0), tx.now - line.booked_at) >= older_than
            ]

    def due_for_review(self) -> list[Reservation]:
        """Reservations open for longer than NQ_BUDGET_REVIEW_H."""
        return self.open_reservations(self._review)

    def reconcile(self, reservation_id: str, cost_usd: Decimal, reason: str) -> None:
        """Book the amount that the vendor billed for a reservation, as a person found it.

        Closes an open reservation; for a closed one it books the difference as a correction. The amount
        counts in the month and on the day of the reservation.

        Raises
        ------
        LedgerError
            There is no such reservation, no reason is given, or the amount is invalid.
        """
        if not reason.strip():
            raise LedgerError("give a reason: a reconciliation is recorded with it")
        if not is_amount(cost_usd):
            raise LedgerError(f"{cost_usd} USD cannot have been billed; write 0 or more")
        cost = round_up(cost_usd)
        with self._begin() as tx:
            trail = tx.trail(reservation_id)
            if trail.closed is None:
                tx.close(trail, Kind.RECONCILED, spent_usd=cost, reason=reason)
            else:
                tx.correct(trail, cost, reason=reason)

    def trust_clock(self, reason: str) -> None:
        """Accept the machine's clock as right from now on, on a person's word.

        Needed after the clock was wrong: lines stamped later than now count as of now, and the time of
        this boot is counted from here.
        """
        if not reason.strip():
            raise LedgerError("give a reason: the change is recorded with it")
        now = self._clock.now()
        with self._begin() as tx:
            tx.append(Kind.CLOCK, recorded_at=now, booked_at=now, reason=reason)

    def month(self, at: datetime | None = None) -> Statement:
        """The statement of the calendar month of `at`; of the current month by default."""
        with self._begin() as tx:
            now, zone = tx.now, self.budgets.zone
            first = period.day_of(at or now, zone).replace(day=1)
            running = first == period.day_of(now, zone).replace(day=1)
            began, ends = period.month_bounds(first, zone)
            lines = tx.lines_between(
                tx.month_began if running else began, None if running else ends, fee_month=first
            )
            return build_statement(
                lines,
                tx.open_lines(),
                self.budgets,
                environment=self.environment,
                month=first,
                now=now,
                clock=self._clock.now(),
                day_began=tx.day_began if running else ends,
                review=self._review,
            )

    @property
    def began(self) -> datetime:
        """When the first line was written."""
        with self._begin() as tx:
            return tx.began

    def lines(self, after: int = 0) -> list[Line]:
        """All lines with a higher number, in order."""
        with self._begin() as tx:
            return tx.select(LINES.c.line_id > after)

    @contextmanager
    def _begin(self) -> Iterator[LedgerTransaction]:
        with exclusive_transaction(self._engine) as connection:
            now = self._clock.now()
            yield LedgerTransaction(connection, self.environment, self.budgets, now, self._boot())
