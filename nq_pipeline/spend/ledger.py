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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal

import sqlalchemy as sa

from nq_pipeline.clock import Clock, SystemClock
from nq_pipeline.errors import LedgerError, OverBudget
from nq_pipeline.settings import Settings
from nq_pipeline.spend import period
from nq_pipeline.spend.budgets import Budgets, Use, caps
from nq_pipeline.spend.database import open_engine, transaction
from nq_pipeline.spend.money import ZERO, cost_of, is_amount, rounded_up, shown
from nq_pipeline.spend.period import Boot, this_boot
from nq_pipeline.spend.statement import Statement, statement
from nq_pipeline.spend.tables import CLOSING, FIRST, LINES, METERED, OPEN, Kind, Line

log = logging.getLogger(__name__)

Purpose = Literal["chains", "backfill", "gap_repair", "verify"]
Mode = Literal["historical-streaming", "historical"]
"""Names of `metadata.list_unit_prices`; `historical` is the batch download."""

FEE_VENDOR = "databento"


@dataclass(frozen=True, slots=True)
class Charge:
    """What is about to be asked, at its worst-case price.

    Attributes
    ----------
    description
        One line: symbols, from, to. No secret: it is kept and shown.
    cost_usd
        What the vendor says it costs; 0 when the plan includes it, None when it would not say.
    billable_bytes
        The vendor's `get_billable_size`.
    unit_price_usd
        USD per GiB (2**30 bytes).
    priced_at
        When the vendor said so.
    """

    vendor: str
    purpose: Purpose
    dataset: str
    schema: str
    mode: Mode
    description: str
    cost_usd: Decimal | None
    billable_bytes: int | None
    unit_price_usd: Decimal | None
    priced_at: datetime
    run_id: str

    def __str__(self) -> str:
        return f"{self.purpose} of {self.dataset} {self.schema} ({self.description})"


@dataclass(frozen=True, slots=True)
class Reservation:
    """Money held for a charge until it is committed, released or reconciled."""

    id: str
    charge: Charge
    reserved_at: datetime
    reserved_usd: Decimal


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
            shown(held),
            f"{left[0].reserved_at:%Y-%m-%d %H:%M} UTC",
        )
    return ledger


class Ledger:
    """Opened by `open_ledger`. Safe for any number of threads, processes and (PostgreSQL) machines."""

    def __init__(
        self, settings: Settings, *, clock: Clock | None = None, boot: Callable[[], Boot | None] = this_boot
    ) -> None:
        self.environment = settings.environment
        self.budgets = Budgets.of(settings)
        self._review = timedelta(hours=settings.budget_review_h)
        self._reason = settings.budget_reason
        self._clock, self._boot = clock or SystemClock(), boot
        self._engine = open_engine(settings)
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
        _check(charge)
        reservation_id = uuid.uuid4().hex[:12]
        with self._book() as book:
            if refusal := book.refusal(charge):
                book.add(Kind.REFUSED, **_of(charge), reason=refusal)
            else:
                held = rounded_up(charge.cost_usd or ZERO)
                line = _of(charge)
                at = book.add(Kind.RESERVED, **line, reservation_id=reservation_id, reserved_usd=held)
        if refusal:
            raise OverBudget(refusal)
        return Reservation(reservation_id, charge, at, held)

    def check(self, charge: Charge) -> str | None:
        """The sentence by which this charge would be refused now; None when it would fit."""
        _check(charge)
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
        cost = _actual(reservation.charge, billed_bytes)
        with self._book() as book:
            lines = book.lines_of(reservation.id)
            closed = next((line for line in lines if line.kind in CLOSING), None)
            spent = sum((line.spent_usd for line in lines), ZERO)
            if closed is not None and closed.kind == Kind.COMMITTED:
                return spent
            about = {"bytes": billed_bytes, "request_id": request_id, "booked_at": lines[0].booked_at}
            if closed is None:
                held = lines[0].reserved_usd
                book.add(Kind.COMMITTED, **_after(lines[0]), **about, reserved_usd=-held, spent_usd=cost)
            elif cost != spent:
                why = f"data came after it was {closed.kind}"
                book.add(Kind.CORRECTED, **_after(lines[0]), **about, spent_usd=cost - spent, reason=why)
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
            lines = book.lines_of(reservation.id)
            closed = next((line for line in lines if line.kind in CLOSING), None)
            if closed is None:
                held = lines[0].reserved_usd
                book.add(
                    Kind.RELEASED,
                    **_after(lines[0]),
                    booked_at=lines[0].booked_at,
                    reserved_usd=-held,
                    reason=reason,
                )
            elif closed.kind == Kind.COMMITTED:
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
                _reservation(line)
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
        cost = rounded_up(cost_usd)
        with self._book() as book:
            lines = book.lines_of(reservation_id)
            about = {**_after(lines[0]), "booked_at": lines[0].booked_at, "reason": reason}
            if any(line.kind in CLOSING for line in lines):
                spent = sum((line.spent_usd for line in lines), ZERO)
                if cost != spent:
                    book.add(Kind.CORRECTED, **about, spent_usd=cost - spent)
            else:
                held = lines[0].reserved_usd
                book.add(Kind.RECONCILED, **about, reserved_usd=-held, spent_usd=cost)

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
            return statement(
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
    def _book(self) -> Iterator[_Book]:
        with transaction(self._engine) as connection:
            book = _Book(connection, self.environment, self.budgets, self._clock.now(), self._boot())
            yield book


class _Book:
    """The ledger within one transaction, which runs alone."""

    def __init__(
        self, connection: sa.Connection, environment: str, budgets: Budgets, now: datetime, boot: Boot | None
    ) -> None:
        self._connection, self._environment, self._budgets = connection, environment, budgets
        self._boot = boot
        self._trusted = self._last(LINES.c.kind == Kind.CLOCK)
        self.now = self._provable(now.astimezone(UTC))
        zones = self._zones()
        self.day_began = period.day_began(self.now, zones)
        self.month_began = period.month_began(self.now, zones)

    @property
    def began(self) -> datetime:
        first = self._first()
        assert first is not None  # whoever opens a ledger writes to it
        return first.recorded_at

    def refusal(self, charge: Charge) -> str | None:
        if charge.cost_usd is None:
            return f"{charge}: {charge.vendor} gave no price, and what has none is not asked for"
        if charge.cost_usd == 0:
            return None
        self.book_fee()
        cost = rounded_up(charge.cost_usd)
        every = caps(self._budgets, self._fees(), self._uses(), vendor=charge.vendor, purpose=charge.purpose)
        tight = [cap for cap in every if cost > cap.left]
        if not tight:
            return None
        age = period.shown_age(self.now - charge.priced_at)
        what_raises = " and ".join(dict.fromkeys(cap.setting for cap in tight))
        return (
            f"{charge} would cost {shown(cost)} (priced {age} ago), and only "
            f"{'; '.join(cap.sentence() for cap in tight)}; raise {what_raises} or ask for less"
        )

    def note_settings(self, reason: str) -> None:
        """Append what changed in the budgets since they were last noted, and this month's fee."""
        for setting, value in self._budgets.recorded().items():
            last = self._last(*_noted(setting))
            if last is None or last.value != value:
                why = f"{reason} (was {last.value or 'unset'})" if last else FIRST
                self.add(Kind.BUDGET, setting=setting, value=value, reason=why)
        self.book_fee()

    def book_fee(self) -> None:
        """Bring this month's fee to what the plan costs."""
        due = self._budgets.plan_usd - self._fees()
        if due:
            first = period.day_of(self.now, self._budgets.zone).replace(day=1)
            name = self._budgets.plan_name
            about = {"vendor": FEE_VENDOR, "description": f"{name}, {first:%B %Y}", "day": first}
            self.add(Kind.SUBSCRIPTION, **about, spent_usd=due)

    def lines_of(self, reservation_id: str) -> list[Line]:
        """The lines of a reservation, its `reserved` line first."""
        lines = self.find(LINES.c.reservation_id == reservation_id)
        if not lines:
            raise LedgerError(f"there is no reservation {reservation_id}; `nq budget` lists the open ones")
        return lines

    def open_lines(self) -> list[Line]:
        """The `reserved` lines that nothing closed; an open reservation has no other."""
        listed = sa.select(OPEN.c.reservation_id).where(OPEN.c.environment == self._environment)
        return self.find(LINES.c.reservation_id.in_(listed))

    def lines_between(self, began: datetime, ends: datetime | None, *, fee_month: date) -> list[Line]:
        """Lines booked within a span, and the fees of a month."""
        span = self._since(began)
        if ends is not None:
            span &= LINES.c.booked_at < ends
        fee = (LINES.c.kind == Kind.SUBSCRIPTION) & (LINES.c.day == fee_month)
        return self.find(sa.or_(fee, span & (LINES.c.kind != Kind.SUBSCRIPTION)))

    def find(self, *conditions: sa.ColumnElement[bool]) -> list[Line]:
        rows = self._connection.execute(
            sa.select(LINES)
            .where(LINES.c.environment == self._environment, *conditions)
            .order_by(LINES.c.line_id)
        )
        return [_line(row._asdict()) for row in rows]

    def add(self, kind: Kind, **columns: Any) -> datetime:
        """Append a line; returns the moment its money counts at."""
        stamp = self._stamp()
        values = {
            "environment": self._environment,
            "kind": kind.value,
            "recorded_at": self.now,
            "booked_at": stamp,
            "zone": self._budgets.zone,
            "reserved_usd": ZERO,
            "spent_usd": ZERO,
            "boot": self._boot.id if self._boot else None,
            "uptime_us": self._boot.uptime // timedelta(microseconds=1) if self._boot else None,
            **columns,
        }
        booked_at: datetime = values["booked_at"]
        values.setdefault("day", period.day_of(booked_at, self._budgets.zone))
        self._connection.execute(LINES.insert().values(values))
        if kind == Kind.RESERVED:
            self._connection.execute(OPEN.insert().values(self._key(values)))
        elif kind in CLOSING:
            self._connection.execute(OPEN.delete().filter_by(**self._key(values)))
        return booked_at

    @staticmethod
    def _key(values: dict[str, Any]) -> dict[str, Any]:
        return {name: values[name] for name in ("environment", "reservation_id")}

    # ── what is taken ───────────────────────────────────────────────────────────────────────────

    def _uses(self) -> Mapping[tuple[str, str], Use]:
        """What is spent since the month and the day began, and held, by vendor and purpose."""
        day = sa.case((self._since(self.day_began), LINES.c.spent_usd), else_=0)
        spent = self._connection.execute(
            sa.select(
                LINES.c.vendor,
                LINES.c.purpose,
                sa.func.sum(LINES.c.spent_usd),
                sa.type_coerce(sa.func.sum(day), LINES.c.spent_usd.type),
            )
            .where(
                LINES.c.environment == self._environment,
                LINES.c.kind.in_(METERED),
                self._since(self.month_began),
            )
            .group_by(LINES.c.vendor, LINES.c.purpose)
        )
        uses = {(vendor, purpose): Use(month, today) for vendor, purpose, month, today in spent}
        for line in self.open_lines():
            key = (str(line.vendor), str(line.purpose))
            uses[key] = uses.get(key, Use()) + Use(reserved=line.reserved_usd)
        return uses

    def _fees(self) -> Decimal:
        first = period.day_of(self.now, self._budgets.zone).replace(day=1)
        booked = self._connection.scalar(
            sa.select(sa.func.sum(LINES.c.spent_usd)).where(
                LINES.c.environment == self._environment,
                LINES.c.kind == Kind.SUBSCRIPTION,
                LINES.c.day == first,
            )
        )
        return booked or ZERO

    # ── what time it is ─────────────────────────────────────────────────────────────────────────

    def _provable(self, now: datetime) -> datetime:
        if self._boot is None:
            return now
        of_this_boot = self._first(LINES.c.boot == self._boot.id)
        anchor = of_this_boot
        if self._trusted is not None and self._trusted.boot == self._boot.id:
            anchor = self._trusted
        if anchor is None or anchor.uptime_us is None:
            return now
        return period.provable(now, self._boot, anchor.recorded_at, timedelta(microseconds=anchor.uptime_us))

    def _stamp(self) -> datetime:
        """Now, but never before what was booked already."""
        since = self._trusted.line_id if self._trusted else 0
        newest = self._connection.scalar(
            sa.select(sa.func.max(LINES.c.booked_at)).where(
                LINES.c.environment == self._environment, LINES.c.line_id >= since
            )
        )
        return max(self.now, newest) if newest else self.now

    def _since(self, began: datetime) -> sa.ColumnElement[bool]:
        """Booked at this moment or later; what a wrong clock stamped later than it was counts as of
        the moment a person set it right."""
        later = LINES.c.booked_at >= began
        if self._trusted is None or self._trusted.recorded_at >= began:
            return later
        return later & (LINES.c.line_id >= self._trusted.line_id)

    def _zones(self) -> set[str]:
        """The zone of the budgets, and those it had until lately."""
        changed = self.find(*_NOTED_ZONE, LINES.c.recorded_at >= self.now - period.ZONE_CHANGE)
        before = [self._last(*_NOTED_ZONE, LINES.c.line_id < line.line_id) for line in changed]
        return {self._budgets.zone, *(str(line.value) for line in (*changed, *before) if line is not None)}

    def _last(self, *conditions: sa.ColumnElement[bool]) -> Line | None:
        return self._one(LINES.c.line_id.desc(), *conditions)

    def _first(self, *conditions: sa.ColumnElement[bool]) -> Line | None:
        return self._one(LINES.c.line_id, *conditions)

    def _one(self, order: sa.ColumnElement[Any], *conditions: sa.ColumnElement[bool]) -> Line | None:
        chosen = sa.select(LINES).where(LINES.c.environment == self._environment, *conditions)
        row = self._connection.execute(chosen.order_by(order).limit(1)).first()
        return _line(row._asdict()) if row else None


def _noted(setting: str) -> tuple[sa.ColumnElement[bool], ...]:
    """Picks the lines about a setting."""
    return LINES.c.kind == Kind.BUDGET, LINES.c.setting == setting


_NOTED_ZONE = _noted("NQ_BUDGET_TIMEZONE")


def _check(charge: Charge) -> None:
    """Amounts that make sense; a price that is no number would otherwise pass every comparison."""
    for name, usd in (("cost", charge.cost_usd), ("unit price", charge.unit_price_usd)):
        if usd is not None and not is_amount(usd):
            raise LedgerError(
                f"the {name} of {charge} is {usd} USD, which is no price; nothing was asked for"
            )


def _actual(charge: Charge, billed_bytes: int) -> Decimal:
    cost = charge.cost_usd or ZERO
    if cost == 0:
        return ZERO
    if charge.unit_price_usd is not None:
        return cost_of(billed_bytes, charge.unit_price_usd)
    if charge.billable_bytes:
        return rounded_up(cost * billed_bytes / charge.billable_bytes)
    return rounded_up(cost)


def _of(charge: Charge) -> dict[str, Any]:
    """The columns of a charge."""
    return {
        "vendor": charge.vendor,
        "purpose": charge.purpose,
        "dataset": charge.dataset,
        "schema": charge.schema,
        "mode": charge.mode,
        "description": charge.description,
        "run_id": charge.run_id,
        "priced_usd": None if charge.cost_usd is None else rounded_up(charge.cost_usd),
        "bytes": charge.billable_bytes,
        "unit_price_usd": None if charge.unit_price_usd is None else rounded_up(charge.unit_price_usd),
        "priced_at": charge.priced_at,
    }


_KEPT = ("zone", "reservation_id", "vendor", "purpose", "dataset", "schema", "mode", "description", "run_id")


def _after(line: Line) -> dict[str, Any]:
    """What a later line of a reservation says again."""
    return {
        name: getattr(line, name) for name in (*_KEPT, "priced_usd", "unit_price_usd", "priced_at", "day")
    }


def _reservation(line: Line) -> Reservation:
    charge = Charge(
        vendor=str(line.vendor),
        purpose=line.purpose,  # type: ignore[arg-type]
        dataset=str(line.dataset),
        schema=str(line.schema),
        mode=line.mode,  # type: ignore[arg-type]
        description=str(line.description),
        cost_usd=line.priced_usd,
        billable_bytes=line.bytes,
        unit_price_usd=line.unit_price_usd,
        priced_at=line.priced_at or line.recorded_at,
        run_id=str(line.run_id),
    )
    return Reservation(str(line.reservation_id), charge, line.booked_at, line.reserved_usd)


_FIELDS = [field.name for field in fields(Line)]


def _line(row: Mapping[str, Any]) -> Line:
    return Line(**{**{name: row[name] for name in _FIELDS}, "kind": Kind(row["kind"])})
