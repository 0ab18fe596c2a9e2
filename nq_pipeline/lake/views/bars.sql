-- In whole microseconds since 1970, so that a bar does not depend on the reader's time zone.
CREATE MACRO bars(width) AS TABLE
WITH dated AS (
    SELECT *, CASE WHEN is_misdated THEN ts_recv_ns ELSE ts_event_ns END AS moment_ns
    FROM trades WHERE price IS NOT NULL AND size > 0
)
SELECT
    trade_date,
    make_timestamptz(moment_ns // 1000 // epoch_us(width::INTERVAL) * epoch_us(width::INTERVAL)) AS bar_start,
    raw_symbol, instrument_kind, contract_key,
    arg_min(price, (moment_ns, sequence, ordinal)) AS open,
    max(price) AS high,
    min(price) AS low,
    arg_max(price, (moment_ns, sequence, ordinal)) AS close,
    sum(size)::BIGINT AS volume,
    coalesce(sum(size) FILTER (side = 'B'), 0)::BIGINT AS buy_volume,
    coalesce(sum(size) FILTER (side = 'A'), 0)::BIGINT AS sell_volume,
    count(*) AS trades,
    sum(price * size) / sum(size) AS vwap
FROM dated
GROUP BY ALL
