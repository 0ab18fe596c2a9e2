CREATE VIEW volatility_cone AS
SELECT product, estimator, window_days,
    min(volatility) AS minimum,
    quantile_cont(volatility, 0.10) AS quantile_10,
    quantile_cont(volatility, 0.25) AS quantile_25,
    quantile_cont(volatility, 0.50) AS quantile_50,
    quantile_cont(volatility, 0.75) AS quantile_75,
    quantile_cont(volatility, 0.90) AS quantile_90,
    max(volatility) AS maximum,
    arg_max(volatility, trade_date) AS current,
    max(trade_date) AS trade_date,
    count(*) AS days
FROM realized_volatility
GROUP BY ALL
ORDER BY product, estimator, window_days
