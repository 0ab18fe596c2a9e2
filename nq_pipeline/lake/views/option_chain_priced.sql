-- The volatility and Greeks of a row come from one source, because mixed ones would contradict each other.
CREATE VIEW option_chain_priced AS
SELECT
    chain.* REPLACE (
        CASE WHEN priced.model IS NULL THEN chain.implied_volatility ELSE priced.implied_volatility END
            AS implied_volatility,
        CASE WHEN priced.model IS NULL THEN chain.delta ELSE priced.delta END AS delta,
        CASE WHEN priced.model IS NULL THEN chain.gamma ELSE priced.gamma END AS gamma,
        CASE WHEN priced.model IS NULL THEN chain.theta ELSE priced.theta END AS theta,
        CASE WHEN priced.model IS NULL THEN chain.vega ELSE priced.vega END AS vega
    ),
    CASE WHEN priced.model IS NOT NULL THEN 'computed'
         WHEN chain.implied_volatility IS NOT NULL THEN 'vendor' END AS iv_source,
    chain.implied_volatility AS vendor_implied_volatility,
    priced.* EXCLUDE (
        source, environment, snapshot_ts, snapshot_ts_ns, trade_date, series, contract_key, run_id,
        implied_volatility, delta, gamma, theta, vega
    ),
    product_of(chain.root) AS product
FROM option_chain AS chain LEFT JOIN option_pricing AS priced
    ON priced.trade_date = chain.trade_date AND priced.snapshot_ts_ns = chain.snapshot_ts_ns
    AND priced.source = chain.source AND priced.contract_key = chain.contract_key
