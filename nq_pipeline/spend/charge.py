"""A charge and the reservation that holds its money."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal

from nq_pipeline.errors import LedgerError
from nq_pipeline.spend.money import ZERO, cost_of, is_amount, round_up
from nq_pipeline.spend.tables import Line

Purpose = Literal["chains", "backfill", "gap_repair", "verify"]
Mode = Literal["historical-streaming", "historical"]
"""Names of `metadata.list_unit_prices`; `historical` is the batch download."""


@dataclass(frozen=True, slots=True)
class Charge:
    """A request about to be sent, at its worst-case cost.

    Attributes
    ----------
    description
        One line: symbols, from, to. No secret: it is stored and shown.
    cost_usd
        The price the vendor quotes; 0 when the plan includes it, None when it quotes none.
    billable_bytes
        The vendor's `get_billable_size`.
    unit_price_usd
        USD per GiB (2**30 bytes).
    priced_at
        When the vendor quoted it.
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


def check_amounts(charge: Charge) -> None:
    """Raise `LedgerError` for an invalid amount; NaN would otherwise pass every comparison."""
    for name, usd in (("cost", charge.cost_usd), ("unit price", charge.unit_price_usd)):
        if usd is not None and not is_amount(usd):
            raise LedgerError(
                f"the {name} of {charge} is {usd} USD, which is not a price; no request was sent"
            )


def actual_cost(charge: Charge, billed_bytes: int) -> Decimal:
    """What a charge costs in USD after this many bytes were received."""
    cost = charge.cost_usd or ZERO
    if cost == 0:
        return ZERO
    if charge.unit_price_usd is not None:
        return cost_of(billed_bytes, charge.unit_price_usd)
    if charge.billable_bytes:
        return round_up(cost * billed_bytes / charge.billable_bytes)
    return round_up(cost)


def charge_columns(charge: Charge) -> dict[str, Any]:
    """The columns of a charge."""
    return {
        "vendor": charge.vendor,
        "purpose": charge.purpose,
        "dataset": charge.dataset,
        "schema": charge.schema,
        "mode": charge.mode,
        "description": charge.description,
        "run_id": charge.run_id,
        "priced_usd": None if charge.cost_usd is None else round_up(charge.cost_usd),
        "bytes": charge.billable_bytes,
        "unit_price_usd": None if charge.unit_price_usd is None else round_up(charge.unit_price_usd),
        "priced_at": charge.priced_at,
    }


def reservation_from_line(line: Line) -> Reservation:
    """The reservation of a `reserved` line."""
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
