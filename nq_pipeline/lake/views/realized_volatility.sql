-- A window of n trade dates has n returns, each of one future, so that a roll is no return.
CREATE VIEW realized_volatility AS
WITH returns AS (
    SELECT product, trade_date, raw_symbol,
        ln(close / previous_close) AS daily,
        ln(open / previous_close) AS overnight,
        ln(close / open) AS intraday,
        ln(high / low) ** 2 AS squared_range,
        ln(high / close) * ln(high / open) + ln(low / close) * ln(low / open) AS rogers_satchell,
        row_number() OVER by_date AS number,
        coalesce(lag(trade_date) OVER by_date = previous_trade_date, false) AS follows
    FROM continuous
    WHERE roll_rule = 'volume'
    WINDOW by_date AS (PARTITION BY product ORDER BY trade_date)
), unbroken AS (
    SELECT *, count(*) FILTER (NOT follows) OVER (PARTITION BY product ORDER BY trade_date) AS run FROM returns
), windows AS (
    SELECT unnest([5, 10, 20, 30, 60])::BIGINT AS window_days
), measured AS (
    SELECT today.product, today.trade_date, today.raw_symbol, window_days,
        var_samp(day.daily) AS daily,
        var_samp(day.overnight) AS overnight,
        var_samp(day.intraday) AS intraday,
        avg(day.rogers_satchell) AS rogers_satchell,
        avg(day.squared_range) / (4 * ln(2)) AS parkinson,
        0.34 / (1.34 + (window_days + 1) / (window_days - 1)) AS k
    FROM unbroken AS today
    CROSS JOIN windows
    JOIN unbroken AS day
        ON day.product = today.product AND day.number BETWEEN today.number - window_days + 1 AND today.number
    GROUP BY ALL
    HAVING count(day.daily) = window_days AND count(DISTINCT day.run) = 1
), variances AS (
    SELECT product, trade_date, raw_symbol, window_days, daily AS close_to_close, parkinson,
        overnight + k * intraday + (1 - k) * rogers_satchell AS yang_zhang
    FROM measured
)
SELECT product, trade_date, estimator, window_days, sqrt(252 * variance) AS volatility, raw_symbol
FROM (UNPIVOT variances ON close_to_close, parkinson, yang_zhang INTO NAME estimator VALUE variance)
ORDER BY product, trade_date, estimator, window_days
