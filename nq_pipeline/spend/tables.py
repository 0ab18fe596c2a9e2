"""The ledger's lines. They are appended and never changed: the database refuses changes.

Reserved and spent amounts are the sums of `reserved_usd` and `spent_usd`; the state of a reservation
follows from its lines. A reservation has one `reserved` line and at most one that closes it, which a
unique index enforces. The list of open reservations is an index, so that finding them does not read a
year of lines.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Dialect

from nq_pipeline.errors import LedgerError
from nq_pipeline.spend.money import MOST, NANO


class Kind(StrEnum):
    """The kind of a ledger line."""

    SUBSCRIPTION = "subscription"
    RESERVED = "reserved"
    COMMITTED = "committed"
    RELEASED = "released"
    RECONCILED = "reconciled"
    CORRECTED = "corrected"
    REFUSED = "refused"
    BUDGET = "budget"
    CLOCK = "clock"


CLOSING = (Kind.COMMITTED, Kind.RELEASED, Kind.RECONCILED)
"""Lines that close a reservation and release what it held."""
METERED = (Kind.RESERVED, *CLOSING, Kind.CORRECTED)
"""Lines that reserve or spend money on metered requests."""

FIRST = "first recorded"
"""The reason of a budget's first line."""


class Usd(sa.types.TypeDecorator[Decimal]):
    """Dollars as an integer of billionths: exact in every database, also under SUM."""

    impl = sa.BigInteger
    cache_ok = True

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> int | None:
        if value is None:
            return None
        nano = value / NANO
        if abs(value) >= MOST or nano != int(nano):
            raise LedgerError(
                f"{value} USD is not a whole number of billionths below {MOST}; nothing was booked"
            )
        return int(nano)

    def process_result_value(self, value: Any, dialect: Dialect) -> Decimal | None:
        return None if value is None else int(value) * NANO


class Instant(sa.types.TypeDecorator[datetime]):
    """An aware instant, stored in UTC also where the database has no time zones."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the ledger; its fields are the columns of `LINES`, which says what they are."""

    line_id: int
    environment: str
    kind: Kind
    recorded_at: datetime
    booked_at: datetime
    day: date
    zone: str
    reservation_id: str | None
    vendor: str | None
    purpose: str | None
    dataset: str | None
    schema: str | None
    mode: str | None
    description: str | None
    run_id: str | None
    reserved_usd: Decimal
    spent_usd: Decimal
    priced_usd: Decimal | None
    bytes: int | None
    unit_price_usd: Decimal | None
    priced_at: datetime | None
    request_id: str | None
    setting: str | None
    value: str | None
    reason: str | None
    boot: str | None
    uptime_us: int | None


_TEXT = sa.String()
_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
metadata = sa.MetaData()

LINES = sa.Table(
    "nq_spend_lines",
    metadata,
    sa.Column("line_id", _NUMBER, primary_key=True, autoincrement=True, comment="order of the lines"),
    sa.Column("environment", _TEXT, nullable=False, comment="sandbox or live"),
    sa.Column("kind", _TEXT, nullable=False, comment=", ".join(Kind)),
    sa.Column("recorded_at", Instant, nullable=False, comment="by the machine's clock"),
    sa.Column("booked_at", Instant, nullable=False, comment="when the money counts"),
    sa.Column(
        "day",
        sa.Date(),
        nullable=False,
        comment="date of booked_at in zone; a fee: the first of its month",
    ),
    sa.Column("zone", _TEXT, nullable=False, comment="zone of the budgets at that time"),
    sa.Column("reservation_id", _TEXT, comment="the reservation it belongs to"),
    sa.Column("vendor", _TEXT),
    sa.Column("purpose", _TEXT),
    sa.Column("dataset", _TEXT),
    sa.Column("schema", _TEXT),
    sa.Column("mode", _TEXT, comment="as in Databento's list_unit_prices"),
    sa.Column("description", _TEXT, comment="what was requested"),
    sa.Column("run_id", _TEXT),
    sa.Column("reserved_usd", Usd, nullable=False, comment="money held; negative where a line releases it"),
    sa.Column("spent_usd", Usd, nullable=False),
    sa.Column("priced_usd", Usd, comment="the vendor's quoted price"),
    sa.Column("bytes", _NUMBER, comment="billable: as priced when reserved, as sent when committed"),
    sa.Column("unit_price_usd", Usd, comment="per GiB"),
    sa.Column("priced_at", Instant, comment="when the vendor quoted it"),
    sa.Column("request_id", _TEXT, comment="fetches.request_id"),
    sa.Column("setting", _TEXT, comment="a changed budget's setting"),
    sa.Column("value", _TEXT, comment="a changed budget's new value"),
    sa.Column("reason", _TEXT),
    sa.Column("boot", _TEXT, comment="boot of the machine that wrote the line"),
    sa.Column("uptime_us", _NUMBER, comment="how long that boot had lasted, microseconds"),
)

OPEN = sa.Table(
    "nq_spend_open",
    metadata,
    sa.Column("environment", _TEXT, primary_key=True),
    sa.Column("reservation_id", _TEXT, primary_key=True),
)
