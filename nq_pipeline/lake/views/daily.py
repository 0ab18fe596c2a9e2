"""Views of trade dates: the continuous future, its realized volatility, the rank of implied volatility."""

from __future__ import annotations

from nq_pipeline.lake.tables.table import DATE, FLOAT, INSTANT, INT, PRODUCT, TEXT, Column
from nq_pipeline.lake.views.view import View

_PRODUCT = Column("product", TEXT, "what the future is on: NQ, ES, GC")
_TRADE_DATE = Column("trade_date", DATE, "CME session date")
_ROLL_RULE = Column(
    "roll_rule",
    TEXT,
    "expiry: the nearest future until the day before it expires; volume: the future that traded most on the "
    "trade date before (on the first one the nearest), never an earlier one again",
)
_ESTIMATOR = Column("estimator", TEXT, "close_to_close, parkinson or yang_zhang")
_WINDOW = Column("window_days", INT, "trade dates in the window: 5, 10, 20, 30 or 60")

DAILY_VIEWS = (
    View(
        "continuous",
        "The continuous future: one row per product, roll rule and trade date, from future_bars. Prices are "
        "those of the future held. The adjusted ones add the price gaps of all later rolls (difference, not "
        "ratio), so that they change with each roll and can be negative.",
        (
            _PRODUCT,
            _ROLL_RULE,
            _TRADE_DATE,
            Column("previous_trade_date", DATE, "the trade date with regular trading hours before it"),
            Column("raw_symbol", TEXT, "the future held, NQM5"),
            Column("expiration", INSTANT, "when trading in it ends"),
            *(
                Column(name, FLOAT, f"{name} of regular trading hours, points")
                for name in ("open", "high", "low")
            ),
            Column("close", FLOAT, "last price of regular trading hours, points"),
            Column("volume", INT, "contracts traded in regular trading hours"),
            Column(
                "previous_close", FLOAT, "the same future's close of previous_trade_date; null when unknown"
            ),
            Column("adjustment", FLOAT, "points to add; null when the gap of a later roll is unknown"),
            *(
                Column(f"adjusted_{name}", FLOAT, f"back-adjusted {name}, points")
                for name in ("open", "high", "low", "close")
            ),
        ),
    ),
    View(
        "roll_dates",
        "When the continuous future changes from one future to the next.",
        (
            _PRODUCT,
            _ROLL_RULE,
            Column("trade_date", DATE, "the first trade date of the new future"),
            Column("from_symbol", TEXT, "the future held before"),
            Column("to_symbol", TEXT, "the future held from then on"),
            Column(
                "price_gap", FLOAT, "close of the new less the old on the trade date before; null if unknown"
            ),
        ),
    ),
    View(
        "realized_volatility",
        "Realized volatility of the future that traded most (continuous, by volume): one row per product, "
        "trade date, estimator and window with complete bars. Annualized with 252 trade dates.",
        (
            _PRODUCT,
            _TRADE_DATE,
            _ESTIMATOR,
            _WINDOW,
            Column("volatility", FLOAT, "per year, as a fraction"),
            Column("raw_symbol", TEXT, "the future held on trade_date"),
        ),
    ),
    View(
        "volatility_cone",
        "The volatility cone: quantiles of realized_volatility over all trade dates, by window.",
        (
            _PRODUCT,
            _ESTIMATOR,
            _WINDOW,
            Column("minimum", FLOAT, "lowest, as a fraction"),
            *(
                Column(f"quantile_{percent}", FLOAT, f"{percent} % of the trade dates are below")
                for percent in (10, 25, 50, 75, 90)
            ),
            Column("maximum", FLOAT, "highest"),
            Column("current", FLOAT, "of the newest trade date"),
            Column("trade_date", DATE, "the newest trade date"),
            Column("days", INT, "trade dates with a value"),
        ),
    ),
    View(
        "iv_rank",
        "How high implied volatility is in its own history: one row per product and trade date, from the ATM "
        "IV at 30 days (constant_maturity) of each trade date's newest snapshot, over at most 252 of them.",
        (
            Column("product", TEXT, PRODUCT.meaning),
            _TRADE_DATE,
            Column("source", TEXT, "vendor of the snapshot"),
            Column("snapshot_ts", INSTANT, "the snapshot"),
            Column("atm_iv_30", FLOAT, "ATM IV at 30 days, as a fraction"),
            Column("days", INT, "trade dates of the history with a value, this one included"),
            Column("low", FLOAT, "lowest of them"),
            Column("high", FLOAT, "highest of them"),
            Column("iv_rank", FLOAT, "(atm_iv_30 − low) / (high − low), from 0 to 1; null under 20 days"),
            Column("iv_percentile", FLOAT, "share of the other days that were lower; null under 20 days"),
        ),
    ),
)
"""In order of creation: each reads the ones before it."""
