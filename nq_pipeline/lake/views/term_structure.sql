CREATE VIEW term_structure AS
SELECT metrics.*, product_of(metrics.root) AS product
FROM series_metrics AS metrics
SEMI JOIN option_chain_latest AS latest USING (trade_date, series, source, snapshot_ts_ns)
