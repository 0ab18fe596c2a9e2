-- optopsy reads one quote of a contract and day, tells contracts apart by underlying, side,
-- expiration and strike, and cannot use a row without bid, ask and delta. Its fills by liquidity refuse
-- integers that may be missing, so volume and open interest are DOUBLE.
CREATE VIEW optopsy_chain AS
SELECT
    underlying AS underlying_symbol,
    lower(option_type) AS option_type,
    expiration_date AS expiration,
    trade_date AS quote_date,
    strike, bid, ask, delta, underlying_price,
    gamma, theta, vega, implied_volatility,
    volume::DOUBLE AS volume, open_interest::DOUBLE AS open_interest
FROM (
    SELECT * FROM option_chain_priced
    WHERE underlying_class = 'future'
    QUALIFY row_number() OVER (
        PARTITION BY trade_date, contract_key ORDER BY snapshot_ts_ns DESC, selected_at_ns DESC, source) = 1
)
WHERE bid IS NOT NULL AND ask IS NOT NULL AND delta IS NOT NULL AND underlying IS NOT NULL
