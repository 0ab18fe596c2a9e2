"""Tables computed once per trade date."""

from __future__ import annotations

from nq_pipeline.lake.tables.table import (
    CONTRACT_KEY,
    DATE,
    ENVIRONMENT,
    FLOAT,
    INSTANT,
    INT,
    OPTION_TYPE,
    ROOT,
    RUN_ID,
    SERIES,
    STRIKE,
    TEXT,
    UNDERLYING_CLASS,
    Table,
    required,
)

OPEN_INTEREST_CHANGE = Table(
    name="open_interest_change",
    version=1,
    meaning="How the open interest of a contract changed on a trade date: the difference of two settled "
    "figures of the same vendor. One row per vendor, trade date and contract that has both.",
    columns=(
        required("source", TEXT, "vendor of both figures"),
        ENVIRONMENT,
        required("trade_date", DATE, "CME session date whose trading made the change"),
        required("previous_trade_date", DATE, "the trade date before it, of previous_open_interest"),
        UNDERLYING_CLASS,
        ROOT,
        SERIES,
        CONTRACT_KEY,
        OPTION_TYPE,
        STRIKE,
        required("open_interest", INT, "open contracts at the end of trade_date"),
        required("previous_open_interest", INT, "open contracts at the end of previous_trade_date"),
        required("open_interest_change", INT, "open_interest less previous_open_interest, contracts"),
        required(
            "figure",
            TEXT,
            "chain: the vendor's chains of the next trade date, 10:00 to 17:00 CT; statistics: the last of "
            "the exchange's figures, bought",
        ),
        required("known_at", INSTANT, "when the vendor showed open_interest"),
        RUN_ID,
    ),
    key=("source", "trade_date", "contract_key"),
    order=("series", "option_type", "strike", "contract_key"),
    pruning_column="known_at",
)

FUTURE_BARS = Table(
    name="future_bars",
    version=1,
    meaning="Bars of the regular trading hours (08:30–15:00 CT) of each future: one row per trade date, "
    "future and data they were made from, and only of hours that are complete.",
    columns=(
        required("made_from", TEXT, "trades (captured or bought) or ohlcv-1m (bought)"),
        ENVIRONMENT,
        required("trade_date", DATE, "CME session date"),
        required("previous_trade_date", DATE, "the trade date with regular trading hours before it"),
        required("product", TEXT, "what the future is on: NQ, ES, GC"),
        required("raw_symbol", TEXT, "exchange symbol, NQM5"),
        required("expiration", INSTANT, "when trading in the future ends"),
        required("opened_at", INSTANT, "start of the regular trading hours"),
        required("closed_at", INSTANT, "their end; earlier on a day of early close"),
        required("open", FLOAT, "first price, points"),
        required("high", FLOAT, "highest price, points"),
        required("low", FLOAT, "lowest price, points"),
        required("close", FLOAT, "last price, points"),
        required("volume", INT, "contracts traded in these hours"),
        RUN_ID,
    ),
    key=("made_from", "trade_date", "raw_symbol"),
    order=("trade_date", "raw_symbol", "made_from"),
    pruning_column="closed_at",
)
