"""When the daily settlements of a trade date are determined and published.

The product table has the hours (`Product.settlements`, `Product.settlement_delay`).
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from nq_pipeline.market import sessions
from nq_pipeline.market.products import Product


def settled_at(trade_date: date, product: Product) -> datetime:
    """When the settlements of a trade date are determined, in UTC; `NoSession` if it is not a trade date.

    Never later than the session's close, which on some days comes before `DailySettlement.short_day`.
    """
    session = sessions.session(trade_date)
    hours = next(hours for hours in reversed(product.settlements) if hours.since <= trade_date)
    zone = ZoneInfo(product.timezone)

    def instant(at: time) -> datetime:
        return datetime.combine(trade_date, at, zone).astimezone(UTC)

    if session.close < instant(hours.at):
        return min(instant(hours.short_day), session.close)
    following = sessions.current_session(sessions.next_open(session.close))
    if hours.month_end and following.trade_date.month != trade_date.month:
        return instant(hours.month_end)
    return instant(hours.at)


def published_at(trade_date: date, product: Product) -> datetime:
    """When the first settlements of a trade date are published, in UTC."""
    return settled_at(trade_date, product) + product.settlement_delay


def newest_published(moment: datetime, product: Product) -> date:
    """The newest trade date whose settlements are published at a moment."""
    session = sessions.current_session(moment)
    while published_at(session.trade_date, product) > moment:
        session = sessions.current_session(session.open - timedelta(seconds=1))
    return session.trade_date
