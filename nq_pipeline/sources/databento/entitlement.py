"""Refusals of Databento's history on record: schemas the plan does not include, from a trade date on."""

from __future__ import annotations

from datetime import date
from typing import Any

from nq_pipeline.market import sessions
from nq_pipeline.settings import Settings
from nq_pipeline.sources.databento.spec import DatabentoSettings
from nq_pipeline.spend import entitlements
from nq_pipeline.spend.entitlements import Entitlement
from nq_pipeline.workspace import Workspace


def standing_refusal(settings: Settings, schema: str, data_of: date | None = None) -> Entitlement | None:
    """Return the vendor's refusal of a schema's history while it still stands, else None.

    `data_of` is the requested trade date: a plan may include older days and not newer ones.
    """
    lake, today = Workspace.of(settings).lake, sessions.trade_date(settings.clock.now())
    dataset = settings.vendor(DatabentoSettings).dataset
    return entitlements.active_refusal(
        lake, "databento", dataset, schema, "historical", today, data_of=data_of
    )


def record_refusal(settings: Settings, schema: str, trade_date: date, text: str) -> None:
    """Record that a schema's history was refused from a trade date on."""
    step = "nothing of that trade date or later is requested"
    _record(settings, schema, entitled=False, text=text, step=step, data_from=trade_date)


def record_grant(settings: Settings, schema: str) -> None:
    """Record that a schema's history was delivered."""
    _record(settings, schema, entitled=True)


def _record(settings: Settings, schema: str, *, entitled: bool, **more: Any) -> None:
    entitlements.record_entitlement(
        Workspace.of(settings).lake,
        Entitlement(
            vendor="databento",
            dataset=settings.vendor(DatabentoSettings).dataset,
            schema=schema,
            mode="historical",
            environment=settings.environment,
            trade_date=sessions.trade_date(settings.clock.now()),
            entitled=entitled,
            **more,
        ),
    )
