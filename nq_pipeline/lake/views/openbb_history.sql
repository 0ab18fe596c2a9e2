-- Columns of OpenBB's standard model OptionsChainsData, without those no vendor here fills.
CREATE VIEW openbb_history AS
SELECT
    source, snapshot_ts, trade_date, series, contract_key,
    underlying AS underlying_symbol,
    underlying_price,
    coalesce(raw_symbol, contract_key) AS contract_symbol,
    trade_date AS eod_date,
    expiration_date AS expiration,
    expiration_date - trade_date AS dte,
    strike,
    CASE option_type WHEN 'C' THEN 'call' ELSE 'put' END AS option_type,
    multiplier AS contract_size,
    open_interest,
    volume,
    last AS last_trade_price,
    last_ts AS last_trade_time,
    bid, bid_size, quote_ts AS bid_time,
    ask, ask_size, quote_ts AS ask_time,
    CASE WHEN bid <= ask THEN (bid + ask) / 2 END AS mark,
    open, high, low,
    CASE WHEN settlement_date = trade_date THEN settlement END AS close,
    CASE WHEN settlement_date < trade_date THEN settlement END AS prev_close,
    change,
    implied_volatility, delta, gamma, theta, vega,
    snapshot_ts_ns
FROM option_chain_priced
