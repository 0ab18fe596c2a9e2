"""The ledger: nothing metered is asked for before its worst-case price is reserved here.

    reserve ── the request is made ──► commit     what it cost, by the bytes that came
       │                         └───► release    it provably never left, or was refused before any data
       └─ neither (crash, cut download): stays open and counts against every month and day until a
          person says what the vendor billed: reconcile

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
from nq_pipeline.spend.database import open_copy, open_engine, transaction
from nq_pipeline.spend.money import ZERO, format_usd, is_amount, round_up
from nq_pipeline.spend.period import Boot, this_boot
from nq_pipeline.spend.statement import Statement, build_statement
from nq_pipeline.spend.tables import LINES, Kind, Line
from nq_pipeline.spend.transaction import LedgerTransaction

__all__ = ["Charge", "Ledger", "Mode", "Purpose", "Reservation", "Spending", "open_ledger"]

log = logging.getLogger(__name__)


class Spending:
    """A reservation in use; see `Ledger.spending`."""

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
    """The ledger of these settings, made or migrated where needed.

    Notes what changed in the budgets, books this month's fee and warns of reservations that are open.

    Parameters
    ----------
    clock
        Real time; the machine's clock when not given, never the pinned one.
    boot
        Tells how long this machine has been up.

    Raises
    ------
    LedgerError
        The database cannot be reached or is of a newer release.
    """
    ledger = Ledger(settings, clock=clock, boot=boot)
    if left := ledger.left_open():
        held = sum((reservation.reserved_usd for reservation in left), ZERO)
        log.warning(
            "%d reservation%s left open, %s held, the oldest since %s: `nq budget` lists them",
            len(left),
            " is" if len(left) == 1 else "s are",
            format_usd(held),
            f"{left[0].reserved_at:%Y-%m-%d %H:%M} UTC",
        )
    return ledger


def read_ledger(settings: Settings) -> Ledger:
    """The ledger for a statement, also where it cannot be written, as on a full disk: then a copy in
    memory is read, in which nothing is kept.

    Raises
    ------
    LedgerError, OSError
        It can neither be written nor read.
    """
    try:
        return Ledger(settings)
    except (LedgerError, OSError) as error:
        if (copy := open_copy(settings)) is None:
            raise
        log.warning("the ledger is read as it stands, since it cannot be written: %s", error)
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
        self._review = timedelta(hours=settings.budget_review_h)
        self._reason = settings.budget_reason
        self._clock, self._boot = clock or SystemClock(), boot
        self.is_copy = copy is not None
        self._engine = copy or open_engine(settings)
        with self._book() as book:
            book.note_settings(self._reason)

    # ── spending ────────────────────────────────────────────────────────────────────────────────

    def reserve(self, charge: Charge) -> Reservation:
        """Hold the price of a charge, durably, if it fits every budget. A refusal is recorded, too.

        What costs nothing is recorded and never refused.

        Raises
        ------
        OverBudget
            It does not fit, or its price is unknown: what was asked, what it would cost, what is
            left, which setting raises it.
        LedgerError
            The ledger cannot be written, so nothing may be asked.
        """
        check_amounts(charge)
        reservation_id = uuid.uuid4().hex[:12]
        with self._book() as book:
            if refusal := book.refusal(charge):
                book.add(Kind.REFUSED, **charge_columns(charge), reason=refusal)
            else:
                held = round_up(charge.cost_usd or ZERO)
                about = {"reservation_id": reservation_id, "reserved_usd": held}
                at = book.add(Kind.RESERVED, **charge_columns(charge), **about)
        if refusal:
            raise OverBudget(refusal)
        return Reservation(reservation_id, charge, at, held)

    def check(self, charge: Charge) -> str | None:
        """The sentence by which this charge would be refused now; None when it would fit."""
        check_amounts(charge)
        with self._book() as book:
            return book.refusal(charge)

    def commit(
        self, reservation: Reservation, *, billed_bytes: int, request_id: str | None = None
    ) -> Decimal:
        """Book what the request cost: the bytes that came, at the unit price. Again changes nothing.

        Without a unit price the vendor's price counts, by the share of the bytes where their
        number was known. What a person reconciled meanwhile, or was released, is corrected.

        Returns
        -------
        Decimal
            USD.
        """
        if billed_bytes < 0:
            raise LedgerError(f"a download of {billed_bytes} bytes cannot be committed")
        cost = actual_cost(reservation.charge, billed_bytes)
        about = {"bytes": billed_bytes, "request_id": request_id}
        with self._book() as book:
            trail = book.trail(reservation.id)
            if trail.closed is None:
                book.close(trail, Kind.COMMITTED, spent_usd=cost, **about)
            elif trail.closed.kind == Kind.COMMITTED:
                return trail.spent_usd
            else:
                book.correct(trail, cost, reason=f"data came after it was {trail.closed.kind}", **about)
        return cost

    def release(self, reservation: Reservation, reason: str) -> None:
        """Give back what was held. Only where the request provably brought no data: it never left, or
        the vendor refused it before sending any.

        Raises
        ------
        LedgerError
            It is committed already.
        """
        with self._book() as book:
            trail = book.trail(reservation.id)
            if trail.closed is None:
                book.close(trail, Kind.RELEASED, reason=reason)
            elif trail.closed.kind == Kind.COMMITTED:
                raise LedgerError(f"reservation {reservation.id} is committed and cannot be released")

    @contextmanager
    def spending(self, charge: Charge) -> Iterator[Spending]:
        """Reserve, and commit or release inside. Left without either, the reservation stays open."""
        yield Spending(self, self.reserve(charge))

    # ── reviewing ───────────────────────────────────────────────────────────────────────────────

    def left_open(self, older_than: timedelta = timedelta(0)) -> list[Reservation]:
        """Reservations neither committed nor released nor reconciled, the oldest first."""
        with self._book() as book:
            # Where the clock was set back, what was reserved before has the age zero.
            return [
                reservation_from_line(line)
                for line in book.open_lines()
                if max(timedelta(0), book.now - line.booked_at) >= older_than
            ]

    def due_for_review(self) -> list[Reservation]:
        """Reservations that are open for longer than NQ_BUDGET_REVIEW_H."""
        return self.left_open(self._review)

    def reconcile(self, reservation_id: str, cost_usd: Decimal, reason: str) -> None:
        """Book what a person found that the vendor billed for a reservation.

        Closes an open one; of a closed one the difference is booked as a correction. The money
        counts in the month and on the day of the reservation.

        Raises
        ------
        LedgerError
            There is no such reservation, or no reason, or the amount makes no sense.
        """
        if not reason.strip():
            raise LedgerError("say why: a reconciliation is kept with its reason")
        if not is_amount(cost_usd):
            raise LedgerError(f"{cost_usd} USD cannot have been billed; write 0 or more")
        cost = round_up(cost_usd)
        with self._book() as book:
            trail = book.trail(reservation_id)
            if trail.closed is None:
                book.close(trail, Kind.RECONCILED, spent_usd=cost, reason=reason)
            else:
                book.correct(trail, cost, reason=reason)

    def trust_clock(self, reason: str) -> None:
        """Take the machine's clock as right from now on, on a person's word.

        Needed after the clock itself was wrong: what it stamped later than now counts as of now,
        and this boot's time is counted from here.
        """
        if not reason.strip():
            raise LedgerError("say why: it is kept with its reason")
        now = self._clock.now()
        with self._book() as book:
            book.add(Kind.CLOCK, recorded_at=now, booked_at=now, reason=reason)

    def month(self, at: datetime | None = None) -> Statement:
        """Everything about the calendar month of `at`; of the running one when not given."""
        with self._book() as book:
            now, zone = book.now, self.budgets.zone
            first = period.day_of(at or now, zone).replace(day=1)
            running = first == period.day_of(now, zone).replace(day=1)
            began, ends = period.month_bounds(first, zone)
            lines = book.lines_between(
                book.month_began if running else began, None if running else ends, fee_month=first
            )
            return build_statement(
                lines,
                book.open_lines(),
                self.budgets,
                environment=self.environment,
                month=first,
                now=now,
                clock=self._clock.now(),
                day_began=book.day_began if running else ends,
                review=self._review,
            )

    @property
    def began(self) -> datetime:
        """When the first line was written."""
        with self._book() as book:
            return book.began

    def lines(self, after: int = 0) -> list[Line]:
        """All lines whose number is higher, in order."""
        with self._book() as book:
            return book.find(LINES.c.line_id > after)

    @contextmanager
    def _book(self) -> Iterator[LedgerTransaction]:
        with transaction(self._engine) as connection:
            book = LedgerTransaction(
                connection, self.environment, self.budgets, self._clock.now(), self._boot()
            )
            yield book
