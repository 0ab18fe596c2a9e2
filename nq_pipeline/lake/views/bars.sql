-- In whole microseconds since 1970, so that a bar does not depend on the reader's time zone.
CREATE MACRO bars(width) AS TABLE
SELECT
    trade_date,
    make_timestamptz(epoch_us(ts_event) // epoch_us(width::INTERVAL) * epoch_us(width::INTERVAL)) AS bar_start,
    raw_symbol, instrument_kind, contract_key,
    arg_min(price, (ts_event_ns, sequence, ordinal)) AS open,
    max(price) AS high,
    min(price) AS low,
    arg_max(price, (ts_event_ns, sequence, ordinal)) AS close,
    sum(size)::BIGINT AS volume,
    coalesce(sum(size) FILTER (side = 'B'), 0)::BIGINT AS buy_volume,
    coalesce(sum(size) FILTER (side = 'A'), 0)::BIGINT AS sell_volume,
    count(*) AS trades,
    sum(price * size) / sum(size) AS vwap
FROM trades
WHERE price IS NOT NULL
GROUP BY ALL
