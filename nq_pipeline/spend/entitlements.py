"""What the plans include, learned from the vendors' answers: per vendor, dataset, schema and mode.

Catalogues and price lists say what is sold, not what a plan includes; only an answer does. A refusal is
recorded with its text and is active for its trade date, so at most one request per schema and day is
wasted. The next trade date asks again, in case the plan has changed. Each vendor's package recognizes
its own refusals.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from typing import Literal

import polars as pl

from nq_pipeline.clock import real_now
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import ENTITLEMENTS
from nq_pipeline.market import sessions

Mode = Literal["live", "historical"]

WHOLE_CHAIN = "chain"
"""Stands in place of a schema for a vendor's whole chain."""

LOWEST_LIVE_SCHEMA = "trades"
"""Every live plan includes it; no lesser schema can replace it (`capture/schema_fallback.py`)."""


@dataclass(frozen=True, slots=True)
class Entitlement:
    """A vendor's answer about one schema.

    Attributes
    ----------
    dataset
        Databento's dataset, or the vendor's product where there is none.
    trade_date
        The trade date of the request, by its clock.
    text
        The vendor's text, its code included; empty when it was granted.
    step
        What the pipeline does about a refusal.
    address
        The base address that answered, where a vendor has several.
    data_from
        For history: the refusal is of this trade date and later ones; None is all of it.
    """

    vendor: str
    dataset: str
    schema: str
    mode: Mode
    environment: str
    trade_date: date
    entitled: bool
    text: str = ""
    step: str = ""
    address: str = ""
    data_from: date | None = None
    asked_at: datetime | None = None

    @property
    def ask_again(self) -> date | None:
        """The first trade date on which to ask again; None when it is granted."""
        return (
            None
            if self.entitled
            else sessions.trade_date(sessions.next_open(sessions.session(self.trade_date).close))
        )

    def refuses(self, today: date) -> bool:
        """Whether it is a refusal that is active on a trade date."""
        return self.ask_again is not None and today < self.ask_again


def record_entitlement(lake: Lake, answer: Entitlement, *, run_id: str = "") -> None:
    """Record a vendor's answer, unless it repeats the newest grant."""
    known = _newest(lake, answer.vendor, answer.dataset, answer.schema, answer.mode, answer.address)
    if known is not None and answer.entitled and known.entitled:
        return
    row = {name: getattr(answer, name) for name in ENTITLEMENTS.schema} | {
        "asked_at": answer.asked_at or real_now(),
        "text": answer.text or None,
        "step": answer.step or None,
    }
    lake.append(ENTITLEMENTS, pl.DataFrame([row], schema=ENTITLEMENTS.schema), run_id=run_id)


def active_refusal(
    lake: Lake,
    vendor: str,
    dataset: str,
    schema: str,
    mode: Mode,
    today: date,
    *,
    address: str = "",
    data_of: date | None = None,
) -> Entitlement | None:
    """The refusal that is active on a trade date; None when a request may be sent.

    `data_of` is the trade date of the requested data, where that is another.
    """
    newest = _newest(lake, vendor, dataset, schema, mode, address)
    if newest is None or not newest.refuses(today):
        return None
    older = data_of is not None and newest.data_from is not None and data_of < newest.data_from
    return None if older else newest


def active_refusals(
    lake: Lake, vendor: str, dataset: str, mode: Mode, today: date, *, address: str = ""
) -> dict[str, Entitlement]:
    """Every refusal of a vendor that is active on a trade date, by schema."""
    wanted = (vendor, dataset, mode, address)
    return {
        one.schema: one
        for one in newest_entitlements(lake)
        if (one.vendor, one.dataset, one.mode, one.address) == wanted and one.refuses(today)
    }


def newest_entitlements(lake: Lake) -> list[Entitlement]:
    """The newest answer of every vendor, dataset, schema, mode and address, in that order."""
    newest = (
        lake.scan(ENTITLEMENTS)
        .sort("asked_at")
        .group_by("vendor", "dataset", "schema", "mode", "address", maintain_order=True)
        .last()
        .sort("vendor", "dataset", "schema", "mode", "asked_at")
        .collect()
    )
    return [_entitlement(row) for row in newest.iter_rows(named=True)]


def _newest(
    lake: Lake, vendor: str, dataset: str, schema: str, mode: Mode, address: str
) -> Entitlement | None:
    wanted = (vendor, dataset, schema, mode, address)
    return next(
        (
            e
            for e in newest_entitlements(lake)
            if (e.vendor, e.dataset, e.schema, e.mode, e.address) == wanted
        ),
        None,
    )


def _entitlement(row: dict[str, object]) -> Entitlement:
    texts = {name: row[name] or "" for name in ("text", "step")}
    names = Entitlement.__dataclass_fields__.keys() - texts
    return Entitlement(**{name: row[name] for name in names}, **texts)  # type: ignore[arg-type]
