"""The statement of a month, made from the ledger's lines without the database.

Text, JSON, checks and plots all show this one value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal

from nq_pipeline.spend import period
from nq_pipeline.spend.budgets import Budgets, Cap, Usage, caps
from nq_pipeline.spend.money import ZERO, format_usd, round_up
from nq_pipeline.spend.tables import FIRST, METERED, Kind, Line

RECURRING = {"chains"}
"""Purposes that schedules repeat, so a projection extends them; a person starts each of the others once."""
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class SpendingDay:
    """One day of the month, for a plot.

    Attributes
    ----------
    metered_usd
        Spent on the day; 0 on future days.
    cumulative_usd
        The plan's fee and all metered requests up to the end of the day; on future days at the
        projected pace.
    projected
        Whether the day is in the future.
    """

    day: date
    metered_usd: Decimal
    cumulative_usd: Decimal
    projected: bool


@dataclass(frozen=True, slots=True)
class SpendingPart:
    """What one purpose or vendor cost."""

    metered_usd: Decimal
    reserved_usd: Decimal
    requests: int
    cap_usd: Decimal | None


@dataclass(frozen=True, slots=True)
class UnitPrice:
    """The price of a schema per GiB (2**30 bytes), as the vendor last quoted it."""

    vendor: str
    schema: str
    mode: str
    usd: Decimal
    at: datetime
    age: timedelta


@dataclass(frozen=True, slots=True)
class OpenReservation:
    """A reservation that is not yet committed, released or reconciled."""

    id: str
    reserved_usd: Decimal
    reserved_at: datetime
    age: timedelta
    review: bool
    vendor: str
    purpose: str
    dataset: str
    schema: str
    description: str
    run_id: str


@dataclass(frozen=True, slots=True)
class Statement:
    """A calendar month in the budgets' zone. Amounts in USD.

    Attributes
    ----------
    as_of
        The moment of the statement, by the ledger's clock.
    clock_ahead
        How far the machine's clock is ahead of the ledger's.
    running
        Whether it is the current month.
    plan_usd, plan_prorated_usd
        The fee booked for the month, and its share for the elapsed days (for information: the fee
        counts in full).
    metered_usd, reserved_usd
        Paid, and held by open reservations.
    remaining_usd, remaining_today_usd
        What may still be spent this month, and today.
    projected_usd
        The expected total at the end of the month: the fee, metered and reserved amounts, and chains at
        their pace so far. It expects no more backfills, repairs or verifications.
    """

    environment: str
    month: date
    zone: str
    as_of: datetime
    clock_ahead: timedelta
    running: bool
    budgets: Budgets
    plan_usd: Decimal
    plan_prorated_usd: Decimal
    metered_usd: Decimal
    reserved_usd: Decimal
    today_usd: Decimal
    remaining_usd: Decimal
    remaining_today_usd: Decimal
    projected_usd: Decimal
    by_purpose: Mapping[str, SpendingPart]
    by_vendor: Mapping[str, SpendingPart]
    prices: tuple[UnitPrice, ...]
    days: tuple[SpendingDay, ...]
    open: tuple[OpenReservation, ...]
    lines: tuple[Line, ...]

    @property
    def spent_usd(self) -> Decimal:
        """The plan's fee and all metered requests."""
        return self.plan_usd + self.metered_usd

    @property
    def refusals(self) -> tuple[Line, ...]:
        return tuple(line for line in self.lines if line.kind == Kind.REFUSED)

    @property
    def changes(self) -> tuple[Line, ...]:
        """Changes of budgets and corrections that a person made, with their reasons."""
        kinds = (Kind.BUDGET, Kind.CORRECTED, Kind.RECONCILED, Kind.CLOCK)
        return tuple(line for line in self.lines if line.kind in kinds and line.reason != FIRST)

    @property
    def caps(self) -> tuple[Cap, ...]:
        """Every budget of the month and how much of it is used."""
        month, day = caps(
            self.budgets,
            self.plan_usd,
            {("", ""): Usage(self.metered_usd, self.today_usd, self.reserved_usd)},
            vendor="",
            purpose="",
        )
        month_of = "this month's budget for"
        own = [
            Cap(f"{month_of} {name}", setting, part.cap_usd, ZERO, part.metered_usd, part.reserved_usd)
            for setting, parts in (
                ("NQ_BUDGET_BY_VENDOR", self.by_vendor),
                ("NQ_BUDGET_BY_PURPOSE", self.by_purpose),
            )
            for name, part in parts.items()
            if part.cap_usd is not None
        ]
        return (month, day, *own) if self.running else (month, *own)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences about what needs a person's attention; empty when nothing does."""
        return tuple(_warnings(self))


def build_statement(
    lines: Sequence[Line],
    open_lines: Sequence[Line],
    budgets: Budgets,
    *,
    environment: str,
    month: date,
    now: datetime,
    clock: datetime,
    day_began: datetime,
    review: timedelta,
) -> Statement:
    """Build the statement of a month.

    Parameters
    ----------
    lines
        Lines booked in the month, and its fees.
    open_lines
        All open reservations, of any age.
    month
        Its first day.
    now, clock
        The moment by the ledger's clock, and by the machine's.
    day_began
        When the current day began.
    """
    began, ends = period.month_bounds(month, budgets.zone)
    running = began <= now < ends
    held = list(open_lines) if running else [line for line in open_lines if line in lines]
    plan = sum((line.spent_usd for line in lines if line.kind == Kind.SUBSCRIPTION), ZERO)
    metered_lines = [line for line in lines if line.kind in METERED]
    metered = _spent(metered_lines)
    reserved = sum((line.reserved_usd for line in held), ZERO)
    today = _spent([line for line in metered_lines if line.booked_at >= day_began]) if running else ZERO
    gone = min(now, ends) - began if now > began else timedelta(0)
    recurring = _spent([line for line in metered_lines if line.purpose in RECURRING])
    left_over = ends - now if running else timedelta(0)
    to_come = round_up(recurring * _ratio(left_over, max(gone, timedelta(days=1))))
    left = max(ZERO, budgets.monthly_usd - plan - metered - reserved) if running else ZERO
    return Statement(
        environment=environment,
        month=month,
        zone=budgets.zone,
        as_of=now,
        clock_ahead=max(timedelta(0), clock - now),
        running=running,
        budgets=budgets,
        plan_usd=plan,
        plan_prorated_usd=round_up(plan * _ratio(gone, ends - began)),
        metered_usd=metered,
        reserved_usd=reserved,
        today_usd=today,
        remaining_usd=left,
        remaining_today_usd=min(left, max(ZERO, budgets.daily_usd - today - reserved)) if running else ZERO,
        projected_usd=plan + metered + reserved + to_come,
        by_purpose=_parts("purpose", metered_lines, held, budgets.by_purpose),
        by_vendor=_parts("vendor", metered_lines, held, budgets.by_vendor),
        prices=tuple(_prices(lines, now)),
        days=tuple(_days(metered_lines, plan, to_come, month, now, budgets.zone)),
        open=tuple(_open(line, now, review) for line in held),
        lines=tuple(lines),
    )


def _ratio(part: timedelta, whole: timedelta) -> Decimal:
    return Decimal(part // _MICROSECOND) / Decimal(whole // _MICROSECOND)


def _spent(lines: Sequence[Line]) -> Decimal:
    return sum((line.spent_usd for line in lines), ZERO)


def _parts(
    column: str, lines: Sequence[Line], held: Sequence[Line], limits: Mapping[str, Decimal]
) -> dict[str, SpendingPart]:
    names = {str(getattr(line, column)) for line in (*lines, *held)} | set(limits)
    own = {name: [line for line in lines if getattr(line, column) == name] for name in sorted(names)}
    return {
        name: SpendingPart(
            metered_usd=_spent(of_name),
            reserved_usd=sum((line.reserved_usd for line in held if getattr(line, column) == name), ZERO),
            requests=sum(line.kind == Kind.RESERVED for line in of_name),
            cap_usd=limits.get(name),
        )
        for name, of_name in own.items()
    }


def _prices(lines: Sequence[Line], now: datetime) -> list[UnitPrice]:
    newest: dict[tuple[str, str, str], UnitPrice] = {}
    for line in lines:
        if line.unit_price_usd is not None and line.priced_at is not None:
            key = str(line.vendor), str(line.schema), str(line.mode)
            if key not in newest or newest[key].at <= line.priced_at:
                age = max(timedelta(0), now - line.priced_at)
                newest[key] = UnitPrice(*key, line.unit_price_usd, line.priced_at, age)
    return [newest[key] for key in sorted(newest)]


def _days(
    lines: Sequence[Line], plan: Decimal, to_come: Decimal, month: date, now: datetime, zone: str
) -> Iterator[SpendingDay]:
    today = period.day_of(now, zone)
    every = [month + timedelta(days=n) for n in range((period.next_month(month) - month).days)]
    spent = dict.fromkeys(every, ZERO)
    for line in lines:
        # After a change of zone or clock, a line's day may lie outside the month it counts in.
        spent[min(max(line.day, every[0]), every[-1])] += line.spent_usd
    ahead = sum(day > today for day in every)
    cumulative = plan
    for day in every:
        cumulative += spent[day]
        if day > today:
            cumulative += round_up(to_come / ahead)
        yield SpendingDay(day, spent[day], cumulative, day > today)


def _open(line: Line, now: datetime, review: timedelta) -> OpenReservation:
    age = max(timedelta(0), now - line.booked_at)
    return OpenReservation(
        id=str(line.reservation_id),
        reserved_usd=line.reserved_usd,
        reserved_at=line.booked_at,
        age=age,
        review=age >= review,
        vendor=str(line.vendor),
        purpose=str(line.purpose),
        dataset=str(line.dataset),
        schema=str(line.schema),
        description=str(line.description),
        run_id=str(line.run_id),
    )


def _warnings(month: Statement) -> Iterator[str]:
    if month.clock_ahead > period.LEEWAY:
        yield (
            f"the machine's clock is {month.clock_ahead} ahead of its uptime, so budgets count as of the "
            "earlier moment; if the clock is right, run nq budget trust-clock"
        )
    for cap in month.caps:
        if cap.spent + cap.reserved > 0 and cap.share >= month.budgets.warn:
            yield f"{cap.share:.0%} of {cap.name} is used: {cap.sentence()}"
    if month.projected_usd > month.budgets.monthly_usd:
        yield (
            f"at this rate the month comes to {format_usd(month.projected_usd)}, more than "
            f"{format_usd(month.budgets.monthly_usd)}: requests will be refused (NQ_BUDGET_MONTHLY_USD)"
        )
    if overdue := [one for one in month.open if one.review]:
        held = sum((one.reserved_usd for one in overdue), ZERO)
        yield (
            f"{format_usd(held)} is held by {len(overdue)} reservation(s) open for too long: look up what "
            "the vendor billed for them, then run nq budget reconcile"
        )
