"""A statement as text for a terminal, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from nq_pipeline.spend.money import format_usd
from nq_pipeline.spend.period import format_age
from nq_pipeline.spend.statement import OpenReservation, SpendingPart, Statement, UnitPrice
from nq_pipeline.spend.tables import Kind, Line

LATEST = 5
"""How many refusals and changes the text shows; the JSON and the table `spend` have all."""


def statement_text(month: Statement) -> str:
    """The month on one screen: totals, parts, open reservations, refusals, warnings."""
    return "\n".join(_lines(month))


def statement_json(month: Statement) -> dict[str, Any]:
    """All of the statement. Amounts are texts, exact to a billionth of a dollar."""
    return {
        "environment": month.environment,
        "month": f"{month.month:%Y-%m}",
        "timezone": month.zone,
        "as_of": month.as_of,
        "running": month.running,
        "plan": {
            "name": month.budgets.plan_name,
            "usd": month.plan_usd,
            "prorated_usd": month.plan_prorated_usd,
        },
        "metered_usd": month.metered_usd,
        "reserved_usd": month.reserved_usd,
        "today_usd": month.today_usd,
        "total_usd": month.spent_usd + month.reserved_usd,
        "remaining_usd": month.remaining_usd,
        "remaining_today_usd": month.remaining_today_usd,
        "projected_usd": month.projected_usd,
        "budgets": month.budgets.recorded(),
        "by_purpose": {name: asdict(part) for name, part in month.by_purpose.items()},
        "by_vendor": {name: asdict(part) for name, part in month.by_vendor.items()},
        "prices": [{**asdict(price), "age": price.age.total_seconds()} for price in month.prices],
        "days": [asdict(day) for day in month.days],
        "open": [{**asdict(one), "age": one.age.total_seconds()} for one in month.open],
        "refusals": [_event(line) for line in month.refusals],
        "changes": [_event(line) for line in month.changes],
        "warnings": month.warnings,
    }


def _lines(month: Statement) -> Iterator[str]:
    zone = ZoneInfo(month.zone)
    if month.running:
        yield f"{month.month:%B %Y}, as of {month.as_of.astimezone(zone):%d %b %H:%M} {month.zone}"
    else:
        yield f"{month.month:%B %Y} ({month.zone})"
    yield ""
    yield from _table(list(_sums(month)), right=(1,))
    for heading, parts in (("purpose", month.by_purpose), ("vendor", month.by_vendor)):
        if len(parts) > 1 or any(part.cap_usd is not None for part in parts.values()):
            yield ""
            columns = (heading, "metered", "reserved", "requests", "cap")
            yield from _table([columns, *map(_part, parts.items())], right=(1, 2, 3, 4))
    if month.prices:
        yield from ("", "Prices per GiB, as the vendor last quoted them:")
        yield from _table([_price(price) for price in month.prices], right=(1,))
    if largest := _largest(month):
        yield from ("", "Largest:")
        rows = [(f"  {_when(one.booked_at, zone)}", _exact(one.spent_usd), _what(one)) for one in largest]
        yield from _table(rows, right=(1,))
    if month.open:
        yield from (
            "",
            "Open reservations: in progress or interrupted. These count until the vendor's bill is",
        )
        yield "looked up and booked: nq budget reconcile ID --usd AMOUNT --reason WHERE"
        yield from _table([_open(one) for one in month.open], right=(1,))
    for title, lines in (("Refused", month.refusals), ("Changed", month.changes)):
        if lines:
            yield from (
                "",
                f"{title}, {len(lines)}" + (f", the last {LATEST}:" if len(lines) > LATEST else ":"),
            )
            yield from (f"  {_when(line.recorded_at, zone)}  {_describe(line)}" for line in lines[-LATEST:])
    if month.warnings:
        yield ""
        yield from (f"WARNING: {warning}" for warning in month.warnings)


def _sums(month: Statement) -> Iterator[Sequence[str]]:
    budgets = month.budgets
    fee = "flat fee" if month.plan_usd or not budgets.plan_usd else "no fee is booked in this month"
    if month.running and month.plan_usd:
        fee = f"flat fee; {_cents(month.plan_prorated_usd)} of it for the month so far"
    yield budgets.plan_name, _cents(month.plan_usd), fee
    today = f"; {_cents(month.today_usd)} of it today" * month.running
    yield "Metered", _cents(month.metered_usd), f"billed by the byte{today}"
    held = f"held for {len(month.open)} request(s) whose bill is not known" if month.open else ""
    yield "Reserved", _cents(month.reserved_usd), held
    total = month.spent_usd + month.reserved_usd
    yield "Total", _cents(total), f"of a budget of {_cents(budgets.monthly_usd)}" * month.running
    if month.running:
        today = f"{_cents(month.remaining_today_usd)} of it today, of a day's {_cents(budgets.daily_usd)}"
        yield "Remaining", _cents(month.remaining_usd), f"for metered requests; {today}"
        yield (
            "Projected",
            _cents(month.projected_usd),
            "at the end of the month, at the current rate of chains",
        )


def _part(item: tuple[str, SpendingPart]) -> Sequence[str]:
    name, part = item
    cap = "" if part.cap_usd is None else _exact(part.cap_usd)
    return name, _exact(part.metered_usd), _exact(part.reserved_usd), f"{part.requests:,}", cap


def _price(price: UnitPrice) -> Sequence[str]:
    by = " as a batch job" * (price.mode == "historical")
    return f"  {price.schema}{by}", _cents(price.usd), f"{format_age(price.age)} ago"


def _open(one: OpenReservation) -> Sequence[str]:
    since = format_age(one.age) + (", for review" if one.review else "")
    what = f"{one.purpose} {one.schema}: {one.description} (run {one.run_id})"
    return f"  {one.id}", _exact(one.reserved_usd), since, what


def _largest(month: Statement) -> list[Line]:
    paid = [line for line in month.lines if line.kind in (Kind.COMMITTED, Kind.RECONCILED) and line.spent_usd]
    return sorted(paid, key=lambda line: line.spent_usd, reverse=True)[:LATEST]


def _table(rows: Sequence[Sequence[str]], *, right: Sequence[int]) -> Iterator[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _what(line: Line) -> str:
    return f"{line.purpose} {line.schema}: {line.description} (run {line.run_id})"


def _describe(line: Line) -> str:
    if line.kind == Kind.BUDGET:
        return f"{line.setting} is {line.value or 'unset'}: {line.reason}"
    if line.kind in (Kind.RECONCILED, Kind.CORRECTED):
        return f"{line.reservation_id} {line.kind} by {format_usd(line.spent_usd)}: {line.reason}"
    return str(line.reason)


_EVENT = (
    "kind", "recorded_at", "reservation_id", "purpose", "schema", "description", "run_id", "priced_usd",
    "spent_usd", "setting", "value", "reason",
)  # fmt: skip


def _event(line: Line) -> dict[str, Any]:
    return {name: value for name in _EVENT if (value := getattr(line, name)) is not None}


def _when(moment: datetime, zone: ZoneInfo) -> str:
    return f"{moment.astimezone(zone):%d %b %H:%M}"


def _cents(usd: Decimal) -> str:
    return f"${usd:,.2f}"


def _exact(usd: Decimal) -> str:
    """In a column of small amounts."""
    return f"${usd:,.6f}"
