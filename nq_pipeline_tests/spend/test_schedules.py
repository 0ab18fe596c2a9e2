"""Any schedule of spending, crashing and turning of clocks against a model that counts money by true time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from itertools import count
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from nq_pipeline.errors import OverBudget
from nq_pipeline.settings import Settings
from nq_pipeline.spend.ledger import Ledger, Reservation, open_ledger
from nq_pipeline.spend.tables import LINES
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.ledger_machine import Machine, charge, size_of
from nq_pipeline_tests.testing.ledgers import FreshLedger

FOR_METERED = Decimal(21)
"""200 USD less the plan's 179."""
DAILY = Decimal(10)
ZONES = ("UTC", "America/Chicago", "Asia/Tokyo", "Pacific/Kiritimati", "Pacific/Pago_Pago")

USD = st.integers(0, 9 * 10**9).map(lambda nano: Decimal(nano).scaleb(-9))
WHICH = st.integers(0, 5)
SPENDING = (
    st.tuples(st.just("reserve"), USD),
    st.tuples(st.just("reserve"), st.sampled_from([Decimal("0.5"), Decimal(3), Decimal(7), Decimal(10)])),
    st.tuples(st.just("commit"), st.tuples(WHICH, st.fractions(0, 1, max_denominator=8))),
    st.tuples(st.just("commit"), st.tuples(WHICH, st.just(1))),
    st.tuples(st.just("release"), WHICH),
    st.tuples(st.just("reconcile"), st.tuples(WHICH, st.fractions(0, 1, max_denominator=8))),
)
CRASHING = st.tuples(st.just("crash"), st.tuples(st.integers(0, 12), st.one_of(SPENDING)))
RESTART = st.tuples(st.just("restart"), st.none())
PASSING = st.tuples(st.just("advance"), st.integers(1, 36))
JUMP = st.tuples(st.just("jump"), st.sampled_from([-400, -31, -11, -1, 0, 1, 8, 21, 31, 400]))
ZONE = st.tuples(st.just("zone"), st.sampled_from(ZONES))


Begin = Callable[..., "Model"]


class Crash(BaseException):
    """The process dies: whatever transaction was running is rolled back."""


@contextmanager
def crash_at(statement: int) -> Iterator[None]:
    """Die before the n-th statement to a database, or when it is to commit, if so many there are."""
    left = statement

    def count(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Crash

    sa.event.listen(sa.Engine, "before_cursor_execute", count)
    sa.event.listen(sa.Engine, "commit", count)
    try:
        yield
    except Crash:
        pass
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", count)
        sa.event.remove(sa.Engine, "commit", count)


@dataclass
class Held:
    reservation: Reservation
    day: date
    spent: Decimal | None = None


class Model:
    """Drives a ledger and counts what it lets through by the true day; `look` reads its lines."""

    def __init__(self, given: Settings, look: sa.Connection) -> None:
        self.settings, self.machine, self.look = given, Machine(), look
        self.held: list[Held] = []
        self.ledger = self.open()

    def open(self) -> Ledger:
        return open_ledger(self.settings, clock=self.machine, boot=self.machine.boot)

    def step(self, kind: str, detail: Any) -> None:
        getattr(self, kind)(detail)
        self.check()

    def reserve(self, usd: Decimal) -> None:
        try:
            reservation = self.ledger.reserve(charge(usd))
        except OverBudget as refused:
            assert usd > 0 and "NQ_BUDGET_" in str(refused)
        else:
            self.held.append(Held(reservation, self.machine.time.date()))

    def commit(self, detail: tuple[int, Any]) -> None:
        which, share = detail
        if one := self.pick(which):
            usd = self.ledger.commit(
                one.reservation, billed_bytes=int(share * size_of(one.reservation.reserved_usd))
            )
            if one.spent is None:
                assert usd <= one.reservation.reserved_usd
                one.spent = usd

    def release(self, which: int) -> None:
        if (one := self.pick(which)) and one.spent is None:
            self.ledger.release(one.reservation, "the vendor refused it")
            one.spent = Decimal(0)

    def reconcile(self, detail: tuple[int, Any]) -> None:
        which, share = detail
        if (one := self.pick(which)) and one.spent is None:
            usd = (one.reservation.reserved_usd * share.numerator / share.denominator).quantize(
                Decimal("1e-9")
            )
            self.ledger.reconcile(one.reservation.id, usd, "seen on the invoice")
            one.spent = usd

    def pick(self, which: int) -> Held | None:
        """One that a process still knows of; a released or reconciled one is not committed again."""
        free = [one for one in self.held if one.spent is None] or self.held[-1:]
        return free[which % len(free)] if free and free[0].spent is None else None

    def crash(self, detail: tuple[int, tuple[str, Any]]) -> None:
        statement, (kind, what) = detail
        before = {one.reservation.id for one in self.held}
        with crash_at(statement):
            getattr(self, kind)(what)
        self.ledger = self.open()
        # What became of it stands in the ledger alone.
        left = {one.id: one for one in self.ledger.open_reservations()}
        new = [one for one in left.values() if one.id not in before]
        known = {one.reservation.id for one in self.held}
        assert len(new) <= 1
        self.held += [Held(one, self.machine.time.date()) for one in new if one.id not in known]
        for one in self.held:
            if one.spent is None and one.reservation.id not in left:
                one.spent = self.spent_on(one.reservation.id)

    def restart(self, _: None) -> None:
        self.ledger = self.open()

    def advance(self, hours: int) -> None:
        if self.machine.time + timedelta(hours=hours) < Machine().time + timedelta(days=15):
            self.machine.advance(hours=hours)

    def jump(self, days: int) -> None:
        self.machine.error = timedelta(days=days)

    def zone(self, name: str) -> None:
        self.settings = self.settings.with_values(budget_timezone=name)
        self.ledger = self.open()

    def spent_on(self, reservation_id: str) -> Decimal:
        return sum(
            (x.spent_usd for x in self.ledger.lines() if x.reservation_id == reservation_id), Decimal(0)
        )

    def check(self) -> None:
        """Never a billionth too much, and never a billionth forgotten."""
        reserved = sum((one.reservation.reserved_usd for one in self.held if one.spent is None), Decimal(0))
        spent = sum((one.spent for one in self.held if one.spent is not None), Decimal(0))
        assert reserved + spent <= FOR_METERED
        assert self.booked() == (reserved, spent)

    def booked(self) -> tuple[Decimal, Decimal]:
        """What the lines hold and spend, straight from the database."""
        sums = (
            sa.func.coalesce(sa.func.sum(column), 0) for column in (LINES.c.reserved_usd, LINES.c.spent_usd)
        )
        own = (LINES.c.environment == self.settings.environment, LINES.c.kind != "subscription")
        reserved, spent = self.look.execute(sa.select(*sums).where(*own)).one()
        return reserved, spent

    def check_open(self) -> None:
        held = {one.reservation.id for one in self.held if one.spent is None}
        assert {one.id for one in self.ledger.open_reservations()} == held

    def check_days(self) -> None:
        reserved = sum((one.reservation.reserved_usd for one in self.held if one.spent is None), Decimal(0))
        days: dict[date, Decimal] = defaultdict(Decimal)
        for one in self.held:
            days[one.day] += one.spent or Decimal(0)
        assert all(spent <= DAILY for spent in days.values())
        assert days[self.machine.time.date()] + reserved <= DAILY


def schedules(*steps: Any) -> Any:
    return st.lists(st.one_of(steps), min_size=1, max_size=25)


IN_ORDER = schedules(*SPENDING, *SPENDING, CRASHING, RESTART, PASSING)
TURNED = schedules(*SPENDING, *SPENDING, CRASHING, RESTART, PASSING, JUMP, JUMP, ZONE)


def keep_month_and_day(model: Model, steps: list[tuple[str, Any]]) -> None:
    for kind, detail in steps:
        model.step(kind, detail)
        model.check_days()
    model.check_open()


def keep_the_month(model: Model, steps: list[tuple[str, Any]]) -> None:
    """The true time stays in one month, so all that was let through belongs to it."""
    for kind, detail in steps:
        model.step(kind, detail)
    model.check_open()


def run(examples: int, steps: Any, keeps: Callable[[Model, Any], None], begin: Begin, **more: Any) -> None:
    @settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(steps)
    def schedule(steps: Any) -> None:
        keeps(begin(**more), steps)

    schedule()


@pytest.fixture
def begin(fresh: FreshLedger) -> Iterator[Begin]:
    """A machine with an empty ledger at each call: an environment of its own in one database."""
    own = fresh()
    open_ledger(own)
    url = f"sqlite:///{Workspace.of(own).ledger}"
    if own.spend.ledger_url:
        url = own.spend.ledger_url.get_secret_value().replace("postgresql:", "postgresql+psycopg:")
    engine, numbers = sa.create_engine(url, isolation_level="AUTOCOMMIT"), count()

    def model(**more: Any) -> Model:
        values = own.with_values(ledger_url=SecretStr(url), **more)
        return Model(values.model_copy(update={"environment": f"schedule-{next(numbers)}"}), look)

    with engine.connect() as look:
        yield model
    engine.dispose()


MONTH_AND_DAY = (IN_ORDER, keep_month_and_day)
MONTH = (TURNED, keep_the_month)


@pytest.mark.timeout(600)
def test_no_schedule_with_crashes_exceeds_a_budget(begin: Begin) -> None:
    run(10, *MONTH_AND_DAY, begin)


@pytest.mark.timeout(600)
def test_no_turning_of_the_clock_or_the_zone_frees_money(begin: Begin) -> None:
    run(10, *MONTH, begin, budget_daily_usd=Decimal(1_000))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_schedules_with_crashes_anywhere(begin: Begin) -> None:
    run(10_000, *MONTH_AND_DAY, begin)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_turnings_of_the_clock_or_the_zone(begin: Begin) -> None:
    run(10_000, *MONTH, begin, budget_daily_usd=Decimal(1_000))


def test_a_crash_is_injected_at_the_named_step(begin: Begin) -> None:
    model = begin()
    for statement in range(40):
        model.step("crash", (statement, ("reserve", Decimal("0.1"))))
    lines = model.ledger.lines()
    assert 0 < sum(line.kind == "reserved" for line in lines) < 40
