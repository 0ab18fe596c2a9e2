-- A window has ended when the capture has a later record or ended later.
CREATE VIEW pressure AS
WITH dated AS (
    SELECT *, CASE WHEN is_misdated THEN ts_recv ELSE ts_event END AS moment FROM trades
), windows AS (
    SELECT
        environment, trade_date,
        make_timestamptz(epoch_us(moment) // 300_000_000 * 300_000_000) AS window_start,
        root, series, contract_key, option_type, strike,
        coalesce(sum(size) FILTER (side = 'B'), 0)::BIGINT AS buy_volume,
        coalesce(sum(size) FILTER (side = 'A'), 0)::BIGINT AS sell_volume,
        coalesce(sum(size) FILTER (side = 'N'), 0)::BIGINT AS undefined_volume,
        count(*) AS trades,
        avg(size) AS average_size
    FROM dated
    WHERE instrument_kind = 'option' AND action = 'T' AND size > 0 AND contract_key IS NOT NULL
    GROUP BY ALL
), captured AS (
    SELECT trade_date, max(moment) AS until
    FROM (SELECT trade_date, moment FROM dated UNION ALL SELECT trade_date, ended_at FROM sessions)
    GROUP BY trade_date
), gap AS (
    SELECT trade_date, first_ts, last_ts FROM gaps
    QUALIFY row_number() OVER (PARTITION BY gap_id ORDER BY revision DESC) = 1 AND state <> 'verified'
)
SELECT
    windows.*,
    buy_volume / nullif(sell_volume, 0) AS buy_sell_ratio,
    (buy_volume - sell_volume) / nullif(buy_volume + sell_volume, 0) AS imbalance,
    CASE WHEN buy_volume > sell_volume THEN 'B' WHEN sell_volume > buy_volume THEN 'A' END AS dominant_side,
    window_start + INTERVAL 5 MINUTES <= captured.until AND NOT EXISTS (
        FROM gap
        WHERE gap.trade_date = windows.trade_date
          AND gap.first_ts < windows.window_start + INTERVAL 5 MINUTES
          AND (gap.last_ts IS NULL OR gap.last_ts > windows.window_start)
    ) AS is_whole,
    product_of(root) AS product
FROM windows JOIN captured USING (trade_date)
