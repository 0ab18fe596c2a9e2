CREATE VIEW market_history AS
WITH front AS (
    SELECT trade_date, snapshot_ts_ns, source, product_of(root) AS product,
        arg_min(
            {front_series: series, atm_iv: atm_iv, expected_move: expected_move_straddle,
             risk_reversal_25: risk_reversal_25, butterfly_25: butterfly_25, skew_slope: skew_slope},
            (expiration, series)
        ) AS first
    FROM series_metrics WHERE forward IS NOT NULL AND years > 0
    GROUP BY ALL
),
fixed AS (
    SELECT trade_date, snapshot_ts_ns, source, product,
        max(atm_iv) FILTER (days = 7) AS atm_iv_7,
        max(atm_iv) FILTER (days = 14) AS atm_iv_14,
        max(atm_iv) FILTER (days = 30) AS atm_iv_30,
        max(atm_iv) FILTER (days = 60) AS atm_iv_60,
        max(atm_iv) FILTER (days = 90) AS atm_iv_90
    FROM constant_maturity
    GROUP BY ALL
)
SELECT levels.*, first.front_series, first.atm_iv,
    atm_iv_7, atm_iv_14, atm_iv_30, atm_iv_60, atm_iv_90,
    first.expected_move, first.risk_reversal_25, first.butterfly_25, first.skew_slope
FROM gamma_levels AS levels
LEFT JOIN front USING (trade_date, snapshot_ts_ns, source, product)
LEFT JOIN fixed USING (trade_date, snapshot_ts_ns, source, product)
