CREATE VIEW smile AS
SELECT smile.*
FROM iv_smile AS smile
SEMI JOIN option_chain_latest AS latest USING (trade_date, series, source, snapshot_ts_ns)
