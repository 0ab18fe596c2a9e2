CREATE MACRO chain_history(key) AS TABLE
SELECT *, product_of(root) AS product FROM option_chain WHERE contract_key = key ORDER BY snapshot_ts_ns, selected_at_ns, source
