"""What the plans include, learnt from what vendors say: one record per vendor, dataset, schema and mode.

Catalogues and price lists tell what is sold, not what is granted; only an answer does. A refusal is
kept with its words and holds for its trade date, so that at most one call per schema and day is
wasted; the next trade date asks once more, in case the plan has changed. Which words are a refusal,
every vendor's own room knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Literal

import polars as pl

from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import ENTITLEMENTS
from nq_pipeline.market import sessions

Mode = Literal["live", "historical"]


WHOLE_CHAIN = "chain"
"""What a vendor's whole chain is kept under, in place of a schema."""
NAMES = ("vendor", "dataset", "schema", "mode", "address", "environment")

FALLBACK_ORDER = ("mbo", "mbp-1", "trades")
"""From most to least; trades follow from each of them, and every plan with live data has the last."""


@dataclass(frozen=True, slots=True)
class Entitlement:
    """What a vendor said about one schema.

    Attributes
    ----------
    dataset
        Databento's dataset, or the vendor's product where there is none.
    trade_date
        When, by the clock of whoever asked.
    text
        Its words, the code included; empty when it was simply given.
    step
        What was done about a refusal.
    address
        Who said so: a base address, where there is more than one to ask.
    data_from
        Of history, which may be granted up to yesterday: the refusal is of this trade date and later ones.
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
        """The first trade date on which it is worth asking again; None when it is granted."""
        return (
            None
            if self.entitled
            else sessions.trade_date(sessions.next_open(sessions.session(self.trade_date).close))
        )

    def refuses(self, today: date) -> bool:
        """Whether it is a refusal that is in force on a trade date."""
        return self.ask_again is not None and today < self.ask_again


def record_entitlement(lake: Lake, said: Entitlement, *, run_id: str = "") -> None:
    """Keep what a vendor said, durably, unless it is what is known already."""
    known = _newest(lake, said.vendor, said.dataset, said.schema, said.mode, said.address)
    if known is not None and said.entitled and known.entitled:
        return
    row = {
        **{
            name: getattr(said, name)
            for name in ("vendor", "dataset", "schema", "mode", "address", "environment")
        },
        "asked_at": said.asked_at or datetime.now(UTC),
        "trade_date": said.trade_date,
        "entitled": said.entitled,
        "text": said.text or None,
        "step": said.step or None,
        "data_from": said.data_from,
        "ask_again": said.ask_again,
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
    """The refusal in force on a trade date; None when there is none and asking is worth it.

    `data_of` is the trade date whose data are wanted, where that is another.
    """
    newest = _newest(lake, vendor, dataset, schema, mode, address)
    if newest is None or not newest.refuses(today):
        return None
    older = data_of is not None and newest.data_from is not None and data_of < newest.data_from
    return None if older else newest


def active_refusals(
    lake: Lake, vendor: str, dataset: str, mode: Mode, today: date, *, address: str = ""
) -> dict[str, Entitlement]:
    """Every refusal of a vendor that is in force on a trade date, by its schema."""
    asked = (vendor, dataset, mode, address)
    return {
        one.schema: one
        for one in newest_entitlements(lake)
        if (one.vendor, one.dataset, one.mode, one.address) == asked and one.refuses(today)
    }


def newest_entitlements(lake: Lake) -> list[Entitlement]:
    """The newest word on every vendor, dataset, schema and mode, in that order."""
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
    rows = (
        lake.scan(ENTITLEMENTS)
        .filter(vendor=vendor, dataset=dataset, schema=schema, mode=mode, address=address)
        .sort("asked_at")
        .last()
        .collect()
    )
    return _entitlement(rows.row(0, named=True)) if rows.height else None


def _entitlement(row: dict[str, object]) -> Entitlement:
    texts = {name: row[name] or "" for name in ("text", "step")}
    names = Entitlement.__dataclass_fields__.keys() - texts
    return Entitlement(**{name: row[name] for name in names}, **texts)  # type: ignore[arg-type]
