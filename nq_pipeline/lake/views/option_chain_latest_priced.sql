CREATE VIEW option_chain_latest_priced AS
SELECT priced.*
FROM option_chain_priced AS priced
SEMI JOIN option_chain_latest AS latest USING (trade_date, source, snapshot_ts_ns, contract_key)
