CREATE VIEW openbb_chain AS
SELECT chain.* EXCLUDE (trade_date, snapshot_ts, source, series, contract_key, snapshot_ts_ns)
FROM openbb_history AS chain
SEMI JOIN option_chain_latest AS latest
    ON latest.trade_date = chain.trade_date AND latest.snapshot_ts_ns = chain.snapshot_ts_ns
    AND latest.source = chain.source AND latest.contract_key = chain.contract_key
WHERE chain.trade_date = (SELECT max(trade_date) FROM decisions WHERE won)
