CREATE VIEW roll_dates AS
SELECT product, roll_rule, trade_date,
    lag(raw_symbol) OVER by_date AS from_symbol,
    raw_symbol AS to_symbol,
    CASE WHEN lag(trade_date) OVER by_date = previous_trade_date
        THEN previous_close - lag(close) OVER by_date END AS price_gap
FROM continuous
WINDOW by_date AS (PARTITION BY product, roll_rule ORDER BY trade_date)
QUALIFY from_symbol <> to_symbol
