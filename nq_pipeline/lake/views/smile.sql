CREATE VIEW smile AS
SELECT smile.*, product_of(smile.root) AS product
FROM iv_smile AS smile
SEMI JOIN option_chain_latest AS latest USING (trade_date, series, source, snapshot_ts_ns)
