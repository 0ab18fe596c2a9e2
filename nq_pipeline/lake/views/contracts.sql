CREATE VIEW contracts AS
SELECT
    contract_key,
    any_value(underlying_class) AS underlying_class,
    any_value(root) AS root,
    any_value(series) AS series,
    any_value(option_type) AS option_type,
    any_value(strike) AS strike,
    arg_max(expiration, snapshot_ts_ns) AS expiration,
    any_value(expiration_date) AS expiration_date,
    any_value(settlement_style) AS settlement_style,
    any_value(exercise_style) AS exercise_style,
    any_value(multiplier) AS multiplier,
    arg_max(underlying, snapshot_ts_ns) AS underlying,
    arg_max(raw_symbol, snapshot_ts_ns) AS raw_symbol,
    min(snapshot_ts) AS first_seen,
    max(snapshot_ts) AS last_seen,
    list_sort(list(DISTINCT source)) AS sources,
    product_of(any_value(root)) AS product
FROM source_chain
GROUP BY contract_key
