"""Build the request of a snapshot: the given series, or those that the settings choose."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import count

from nq_pipeline.errors import SettingsError
from nq_pipeline.market import sessions
from nq_pipeline.market.contracts import ROOTS, Series
from nq_pipeline.market.listing import expiration_date, expirations, far_expirations
from nq_pipeline.market.products import select_products
from nq_pipeline.settings import Settings
from nq_pipeline.sources.base import ChainRequest
from nq_pipeline.sources.registry import VENDORS, load_object


def build_request(
    settings: Settings,
    *,
    run_id: str | None = None,
    series: Sequence[str] = (),
    scheduled: datetime | None = None,
    source: str | None = None,
) -> ChainRequest:
    """Build the request for the given series, or for all expirations within the horizon.

    With NQ_FAR_EXPIRATIONS the default also has the next monthly and quarterly ones beyond it.

    Parameters
    ----------
    series
        Series keys (`Q1B-2025-07-01`), or with `source` that vendor's own codes (`MM1N5`).
    scheduled
        The scheduled time of a scheduled run; the age of its answers counts from there.

    Raises `SettingsError` when a series or product is unknown, a series has expired, or nothing expires
    within the horizon.
    """
    now = settings.clock.pinned or scheduled or settings.clock.now()
    session = sessions.current_session(now)
    codes: dict[str, str] = {}
    wanted: set[Series] = set()
    for text in map(str.strip, series):
        parsed, code = _parse_series(text, source, session.trade_date, settings)
        if parsed.expiration_date < session.trade_date:
            raise SettingsError(
                f"{text!r} expired on {parsed.expiration_date}, so no vendor lists it any more; "
                f"the next {parsed.root} is {_next_series(parsed.root, session.trade_date)}"
            )
        wanted.add(parsed)
        if code:
            codes[parsed.key] = code
    if not series:
        wanted = _within_horizon(settings, session.trade_date)
    return ChainRequest(
        trade_date=session.trade_date,
        snapshot_ts=now.astimezone(UTC),
        moment=sessions.chain_moment(now, settings.chains.window).astimezone(UTC),
        series=tuple(sorted(wanted, key=lambda s: (s.expiration_date, s.root))),
        run_id=run_id or uuid.uuid4().hex,
        environment=settings.environment,
        vendor_codes=codes,
    )


def _parse_series(
    text: str, source: str | None, trade_date: date, settings: Settings
) -> tuple[Series, str | None]:
    """The series of a key, or of a vendor's own code together with that code."""
    of_code = VENDORS[source].series_of_code if source else None
    try:
        parsed = Series.parse(text)
    except ValueError as error:
        if of_code is None:
            coded = [f"`--source {name}`" for name, spec in VENDORS.items() if spec.series_of_code]
            raise SettingsError(f"{error}, or give the vendor's own code with {' or '.join(coded)}") from None
    else:
        if parsed.root not in ROOTS:
            raise SettingsError(
                f"{text!r}: {parsed.root} is not a root of options on futures; choose from {', '.join(ROOTS)}"
            )
        day = parsed.expiration_date
        listed = expiration_date(parsed.root, *parsed.contract_month)
        if listed not in (None, day):
            raise SettingsError(
                f"{text!r}: {parsed.root} expires on {listed} in {day:%B %Y}; "
                f"write {replace(parsed, expiration_date=listed).key}"
            )
        return parsed, None
    series: Series = load_object(of_code)(text, trade_date, settings)
    return series, text


def _next_series(root: str, trade_date: date) -> Series:
    """The next series of a root that expires on this trade date or later."""
    months = (trade_date.year * 12 + trade_date.month - 1 + ahead for ahead in count())
    days = (expiration_date(root, month // 12, month % 12 + 1) for month in months)
    return Series(root, next(day for day in days if day and day >= trade_date))


def _within_horizon(settings: Settings, trade_date: date) -> set[Series]:
    products = select_products(settings.products)
    last_day = trade_date + timedelta(days=settings.chains.horizon_days)
    found = {s for product in products for s in expirations(product.code, trade_date, last_day)}
    if settings.chains.far_expirations:
        found |= {s for product in products for s in far_expirations(product.code, last_day)}
    if not found:
        raise SettingsError(f"nothing expires from {trade_date} to {last_day}; raise NQ_HORIZON_DAYS")
    return found
