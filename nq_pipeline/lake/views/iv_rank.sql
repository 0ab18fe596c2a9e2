CREATE VIEW iv_rank AS
WITH closes AS (
    SELECT product, trade_date, source, snapshot_ts, snapshot_ts_ns, atm_iv AS atm_iv_30
    FROM constant_maturity
    WHERE days = 30 AND atm_iv IS NOT NULL
    QUALIFY row_number() OVER (PARTITION BY product, trade_date ORDER BY snapshot_ts_ns DESC, source) = 1
), histories AS (
    SELECT *, list(atm_iv_30) OVER (
        PARTITION BY product ORDER BY trade_date ROWS BETWEEN 251 PRECEDING AND CURRENT ROW
    ) AS history
    FROM closes
)
SELECT product, trade_date, source, snapshot_ts, atm_iv_30,
    len(history) AS days,
    list_min(history) AS low,
    list_max(history) AS high,
    CASE WHEN days >= 20 THEN (atm_iv_30 - low) / nullif(high - low, 0) END AS iv_rank,
    CASE WHEN days >= 20
        THEN len(list_filter(history, lambda iv: iv < atm_iv_30)) / (days - 1) END AS iv_percentile,
    snapshot_ts_ns
FROM histories
ORDER BY product, trade_date
