"""The ledger within one database transaction: its lines, the used part of the budgets, new lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import sqlalchemy as sa

from nq_pipeline.errors import LedgerError
from nq_pipeline.spend import period
from nq_pipeline.spend.budgets import Budgets, Usage, caps
from nq_pipeline.spend.charge import Charge
from nq_pipeline.spend.money import ZERO, format_usd, round_up
from nq_pipeline.spend.period import Boot
from nq_pipeline.spend.tables import CLOSING, FIRST, LINES, METERED, OPEN, Kind, Line

FEE_VENDOR = "databento"


@dataclass(frozen=True, slots=True)
class Trail:
    """The lines of a reservation: the first, the one that closed it, and what it cost so far."""

    opened: Line
    closed: Line | None
    spent_usd: Decimal

    def columns(self) -> dict[str, Any]:
        """The columns that every later line repeats; the money counts when it was reserved."""
        return {name: getattr(self.opened, name) for name in _REPEATED}


_REPEATED = (
    "booked_at", "day", "zone", "reservation_id", "vendor", "purpose", "dataset", "schema", "mode",
    "description", "run_id", "priced_usd", "unit_price_usd", "priced_at",
)  # fmt: skip


class LedgerTransaction:
    """The ledger within one `database.exclusive_transaction`. `Ledger` opens one for each of its methods."""

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
        assert first is not None  # opening a ledger writes its first line
        return first.recorded_at

    def book_fee_and_check(self, charge: Charge) -> str | None:
        """Book this month's plan fee if it is missing; return why the budgets do not cover a charge.

        None when they do. A charge of unknown or no cost is decided without the budgets and books nothing.
        """
        if charge.cost_usd is None:
            return f"{charge}: {charge.vendor} quoted no price, and a request without one is not sent"
        if charge.cost_usd == 0:
            return None
        self.book_fee()
        cost = round_up(charge.cost_usd)
        every = caps(self._budgets, self._fees(), self._usage(), vendor=charge.vendor, purpose=charge.purpose)
        exceeded = [cap for cap in every if cost > cap.left]
        if not exceeded:
            return None
        age = period.format_age(self.now - charge.priced_at)
        settings = " and ".join(dict.fromkeys(cap.setting for cap in exceeded))
        return (
            f"{charge} would cost {format_usd(cost)} (priced {age} ago), and only "
            f"{'; '.join(cap.sentence() for cap in exceeded)}; raise {settings} or ask for less"
        )

    def record_settings(self, reason: str) -> None:
        """Append a line for every budget that changed since the last one, and book this month's fee."""
        known = {line.setting: line.value or "" for line in self.select(LINES.c.kind == Kind.BUDGET)}
        for setting, value in self._budgets.recorded().items():
            if known.get(setting) != value:
                why = f"{reason} (was {known[setting] or 'unset'})" if setting in known else FIRST
                self.append(Kind.BUDGET, setting=setting, value=value, reason=why)
        self.book_fee()

    def book_fee(self) -> None:
        """Book this month's plan fee, or the difference after it changed."""
        due = self._budgets.plan_usd - self._fees()
        if due:
            first = period.day_of(self.now, self._budgets.zone).replace(day=1)
            name = self._budgets.plan_name
            about = {"vendor": FEE_VENDOR, "description": f"{name}, {first:%B %Y}", "day": first}
            self.append(Kind.SUBSCRIPTION, **about, spent_usd=due)

    def trail(self, reservation_id: str) -> Trail:
        """The trail of a reservation; `LedgerError` when there is none of this id."""
        lines = self.select(LINES.c.reservation_id == reservation_id)
        if not lines:
            raise LedgerError(f"there is no reservation {reservation_id}; `nq budget` lists the open ones")
        closed = next((line for line in lines if line.kind in CLOSING), None)
        return Trail(lines[0], closed, sum((line.spent_usd for line in lines), ZERO))

    def open_lines(self) -> list[Line]:
        """The `reserved` lines of open reservations."""
        open_ids = sa.select(OPEN.c.reservation_id).where(OPEN.c.environment == self._environment)
        return self.select(LINES.c.reservation_id.in_(open_ids))

    def lines_between(self, began: datetime, ends: datetime | None, *, fee_month: date) -> list[Line]:
        """Lines booked within a span, and the fees of a month."""
        span = self._since(began)
        if ends is not None:
            span &= LINES.c.booked_at < ends
        fee = (LINES.c.kind == Kind.SUBSCRIPTION) & (LINES.c.day == fee_month)
        return self.select(sa.or_(fee, span & (LINES.c.kind != Kind.SUBSCRIPTION)))

    def select(self, *conditions: sa.ColumnElement[bool]) -> list[Line]:
        rows = self._connection.execute(
            sa.select(LINES)
            .where(LINES.c.environment == self._environment, *conditions)
            .order_by(LINES.c.line_id)
        )
        return [_line(row._asdict()) for row in rows]

    def close(self, trail: Trail, kind: Kind, **columns: Any) -> None:
        """Append the line that closes a reservation and releases what it held."""
        self.append(kind, **trail.columns(), reserved_usd=-trail.opened.reserved_usd, **columns)

    def correct(self, trail: Trail, spent: Decimal, **columns: Any) -> None:
        """Append the difference between a closed reservation's cost and `spent`, if there is one."""
        if spent != trail.spent_usd:
            self.append(Kind.CORRECTED, **trail.columns(), spent_usd=spent - trail.spent_usd, **columns)

    def append(self, kind: Kind, **columns: Any) -> datetime:
        """Append a line; returns the moment at which its money counts."""
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

    # ── usage ───────────────────────────────────────────────────────────────────────────

    def _usage(self) -> Mapping[tuple[str, str], Usage]:
        """Spent this month and today, and reserved, by (vendor, purpose)."""
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
        usage = {(vendor, purpose): Usage(month, today) for vendor, purpose, month, today in spent}
        for line in self.open_lines():
            key = (str(line.vendor), str(line.purpose))
            usage[key] = usage.get(key, Usage()) + Usage(reserved=line.reserved_usd)
        return usage

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

    # ── time ─────────────────────────────────────────────────────────────────────────

    def _provable(self, now: datetime) -> datetime:
        if self._boot is None:
            return now
        of_this_boot = self._first(LINES.c.boot == self._boot.id)
        anchor = of_this_boot
        if self._trusted is not None and self._trusted.boot == self._boot.id:
            anchor = self._trusted
        if anchor is None or anchor.uptime_us is None:
            return now
        return period.latest_provable(
            now, self._boot, anchor.recorded_at, timedelta(microseconds=anchor.uptime_us)
        )

    def _stamp(self) -> datetime:
        """Now, but never earlier than a line that is already booked."""
        since = self._trusted.line_id if self._trusted else 0
        newest = self._connection.scalar(
            sa.select(sa.func.max(LINES.c.booked_at)).where(
                LINES.c.environment == self._environment, LINES.c.line_id >= since
            )
        )
        return max(self.now, newest) if newest else self.now

    def _since(self, began: datetime) -> sa.ColumnElement[bool]:
        """Lines booked at this moment or later. Lines that a wrong clock stamped too late count as of the
        moment a person corrected it."""
        later = LINES.c.booked_at >= began
        if self._trusted is None or self._trusted.recorded_at >= began:
            return later
        return later & (LINES.c.line_id >= self._trusted.line_id)

    def _zones(self) -> set[str]:
        """The zone of the budgets, and those it replaced within `ZONE_CHANGE`."""
        changed = self.select(*_ZONE_CHANGES, LINES.c.recorded_at >= self.now - period.ZONE_CHANGE)
        before = [self._last(*_ZONE_CHANGES, LINES.c.line_id < line.line_id) for line in changed]
        return {self._budgets.zone, *(str(line.value) for line in (*changed, *before) if line is not None)}

    def _last(self, *conditions: sa.ColumnElement[bool]) -> Line | None:
        return self._one(LINES.c.line_id.desc(), *conditions)

    def _first(self, *conditions: sa.ColumnElement[bool]) -> Line | None:
        return self._one(LINES.c.line_id, *conditions)

    def _one(self, order: sa.ColumnElement[Any], *conditions: sa.ColumnElement[bool]) -> Line | None:
        chosen = sa.select(LINES).where(LINES.c.environment == self._environment, *conditions)
        row = self._connection.execute(chosen.order_by(order).limit(1)).first()
        return _line(row._asdict()) if row else None


_ZONE_CHANGES = LINES.c.kind == Kind.BUDGET, LINES.c.setting == "NQ_BUDGET_TIMEZONE"
_FIELDS = [field.name for field in fields(Line)]


def _line(row: Mapping[str, Any]) -> Line:
    return Line(**{**{name: row[name] for name in _FIELDS}, "kind": Kind(row["kind"])})
