CREATE VIEW continuous AS
WITH bars AS (
    SELECT * FROM future_bars
    QUALIFY row_number() OVER (PARTITION BY trade_date, raw_symbol ORDER BY made_from) = 1
), days AS (
    SELECT product, trade_date,
        min(expiration_ns) FILTER (expiration > closed_at) AS nearest,
        arg_max(expiration_ns, (volume, -expiration_ns)) FILTER (expiration > closed_at) AS most_traded
    FROM bars GROUP BY ALL
), held AS (
    SELECT product, trade_date, 'expiry' AS roll_rule, nearest AS expiration_ns FROM days
    UNION ALL
    SELECT product, trade_date, 'volume', greatest(nearest, max(most_traded) OVER before)
    FROM days
    WINDOW before AS (
        PARTITION BY product ORDER BY trade_date ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    )
), prices AS (
    SELECT product, roll_rule, bars.*, earlier.close AS previous_close
    FROM held
    JOIN bars USING (product, trade_date, expiration_ns)
    LEFT JOIN bars AS earlier
        ON earlier.raw_symbol = bars.raw_symbol AND earlier.trade_date = bars.previous_trade_date
), gaps_at_rolls AS (
    SELECT *,
        raw_symbol <> lag(raw_symbol) OVER by_date AS rolls,
        CASE WHEN lag(trade_date) OVER by_date = previous_trade_date
            THEN previous_close - lag(close) OVER by_date END AS price_gap
    FROM prices
    WINDOW by_date AS (PARTITION BY product, roll_rule ORDER BY trade_date)
), adjusted AS (
    SELECT *,
        CASE WHEN count(*) FILTER (rolls AND price_gap IS NULL) OVER later = 0
            THEN coalesce(sum(price_gap) FILTER (rolls) OVER later, 0) END AS adjustment
    FROM gaps_at_rolls
    WINDOW later AS (
        PARTITION BY product, roll_rule ORDER BY trade_date ROWS BETWEEN 1 FOLLOWING AND UNBOUNDED FOLLOWING
    )
)
SELECT product, roll_rule, trade_date, previous_trade_date, raw_symbol, expiration,
    open, high, low, close, volume, previous_close, adjustment,
    open + adjustment AS adjusted_open,
    high + adjustment AS adjusted_high,
    low + adjustment AS adjusted_low,
    close + adjustment AS adjusted_close,
    expiration_ns
FROM adjusted
ORDER BY product, roll_rule, trade_date
