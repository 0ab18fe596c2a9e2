-- SVI with one or two hyperbolas; the formula is that of `market/svi.py`.
CREATE VIEW surface_fit AS
WITH fitted AS (
    SELECT smile.*, sqrt(greatest(0, a + b * (rho * (log_moneyness - m) + sqrt((log_moneyness - m) ** 2 + sigma ** 2))
        + coalesce(b_2 * (rho * (log_moneyness - m_2) + sqrt((log_moneyness - m_2) ** 2 + sigma_2 ** 2)), 0))
        / smile.years) AS fitted_volatility
    FROM iv_smile AS smile
    LEFT JOIN surface_slices AS slices USING (trade_date, source, snapshot_ts_ns, series)
)
SELECT *, fitted_volatility - implied_volatility AS error, error / iv_uncertainty AS error_widths,
    abs(error_widths) <= 1 AS inside, product_of(root) AS product
FROM fitted
