"""The budgets of the settings, and how much of each is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal

from nq_pipeline.settings import Settings
from nq_pipeline.spend.money import ZERO, format_usd


@dataclass(frozen=True, slots=True)
class Budgets:
    """The caps in USD. `monthly_usd` includes the plan's fee, all others are for metered requests.

    The caps by vendor and by purpose are monthly.
    """

    plan_name: str
    plan_usd: Decimal
    monthly_usd: Decimal
    daily_usd: Decimal
    by_vendor: Mapping[str, Decimal]
    by_purpose: Mapping[str, Decimal]
    warn: float
    zone: str

    @classmethod
    def of(cls, settings: Settings) -> Budgets:
        return cls(
            plan_name=settings.spend.plan_name,
            plan_usd=settings.spend.plan_monthly_usd,
            monthly_usd=settings.spend.budget_monthly_usd,
            daily_usd=settings.spend.budget_daily_usd,
            by_vendor=_pairs(settings.spend.budget_by_vendor),
            by_purpose=_pairs(settings.spend.budget_by_purpose),
            warn=settings.spend.budget_warn,
            zone=settings.spend.budget_timezone,
        )

    def recorded(self) -> dict[str, str]:
        """The settings whose changes the ledger records, with their values."""
        return {
            "NQ_PLAN_MONTHLY_USD": f"{self.plan_usd.normalize():f}",
            "NQ_BUDGET_MONTHLY_USD": f"{self.monthly_usd.normalize():f}",
            "NQ_BUDGET_DAILY_USD": f"{self.daily_usd.normalize():f}",
            "NQ_BUDGET_BY_VENDOR": _written(self.by_vendor),
            "NQ_BUDGET_BY_PURPOSE": _written(self.by_purpose),
            "NQ_BUDGET_TIMEZONE": self.zone,
        }


@dataclass(frozen=True, slots=True)
class Usage:
    """How much of the budgets is used, for one vendor and purpose or in total, USD.

    Attributes
    ----------
    month, day
        Metered requests that are paid for.
    reserved
        Held by open reservations of any age: they count in every month and day until closed.
    """

    month: Decimal = ZERO
    day: Decimal = ZERO
    reserved: Decimal = ZERO

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.month + other.month, self.day + other.day, self.reserved + other.reserved)


@dataclass(frozen=True, slots=True)
class Cap:
    """One budget: how much of it is used, and the setting that raises it.

    `fees` is the part of the limit that the plan uses; the rest is for metered requests.
    """

    name: str
    setting: str
    limit: Decimal
    fees: Decimal
    spent: Decimal
    reserved: Decimal

    @property
    def left(self) -> Decimal:
        """Never below zero, also when the budget was lowered below what is spent."""
        return max(ZERO, self.limit - self.fees - self.spent - self.reserved)

    @property
    def share(self) -> float:
        """The used share of the budget for metered requests; 1 is all of it."""
        used, room = self.spent + self.reserved, self.limit - self.fees
        return float(used / room) if room > 0 else float(used > 0)

    def sentence(self) -> str:
        parts = [
            f"{format_usd(usd)} {what}"
            for usd, what in ((self.fees, "the plan"), (self.spent, "spent"), (self.reserved, "reserved"))
            if usd
        ]
        used = f" ({', '.join(parts)})" if parts else ""
        return f"{format_usd(self.left)} is left of {self.name} of {format_usd(self.limit)}{used}"


def sum_usage(usage: Mapping[tuple[str, str], Usage], *, vendor: str = "", purpose: str = "") -> Usage:
    """The sum over (vendor, purpose), or of one vendor or purpose."""
    chosen = [
        use
        for (of_vendor, of_purpose), use in usage.items()
        if vendor in ("", of_vendor) and purpose in ("", of_purpose)
    ]
    return sum(chosen, Usage())


def caps(
    budgets: Budgets, fees: Decimal, usage: Mapping[tuple[str, str], Usage], *, vendor: str, purpose: str
) -> Iterator[Cap]:
    """The budgets that a charge of this vendor and purpose must fit, the widest first."""
    every = sum_usage(usage)
    month, day = "this month's budget", "today's budget"
    yield Cap(month, "NQ_BUDGET_MONTHLY_USD", budgets.monthly_usd, fees, every.month, every.reserved)
    yield Cap(day, "NQ_BUDGET_DAILY_USD", budgets.daily_usd, ZERO, every.day, every.reserved)
    for name, setting, limits, use in (
        (vendor, "NQ_BUDGET_BY_VENDOR", budgets.by_vendor, sum_usage(usage, vendor=vendor)),
        (purpose, "NQ_BUDGET_BY_PURPOSE", budgets.by_purpose, sum_usage(usage, purpose=purpose)),
    ):
        if (limit := limits.get(name)) is not None:
            yield Cap(f"{month} for {name}", setting, limit, ZERO, use.month, use.reserved)


def _pairs(pairs: tuple[str, ...]) -> dict[str, Decimal]:
    return {name: Decimal(usd) for name, _, usd in (pair.partition("=") for pair in pairs)}


def _written(limits: Mapping[str, Decimal]) -> str:
    return ",".join(f"{name}={usd.normalize():f}" for name, usd in sorted(limits.items()))
