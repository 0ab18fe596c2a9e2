-- The trade date and its files are found from the literal `ts`, so a year of snapshots costs a week's.
-- A session opens on the evening before its trade date, around a holiday up to three days before.
-- As in option_chain_latest, a proxy leaves when a native source has won since.
CREATE MACRO option_chain_asof(ts, newest_per_contract := false, lookback := INTERVAL 7 DAYS) AS TABLE
WITH seen AS (
    SELECT trade_date, series, source, snapshot_ts_ns, max(selected_at_ns) AS selected_at_ns
    FROM option_chain
    WHERE trade_date BETWEEN (ts::TIMESTAMPTZ AT TIME ZONE 'UTC' - lookback)::DATE
                         AND (ts::TIMESTAMPTZ AT TIME ZONE 'UTC' + INTERVAL 4 DAYS)::DATE
      AND snapshot_ts <= ts::TIMESTAMPTZ AND as_of <= ts::TIMESTAMPTZ AND expiration > ts::TIMESTAMPTZ
    GROUP BY trade_date, series, source, snapshot_ts_ns
    QUALIFY trade_date = max(trade_date) OVER ()
), current AS (
    SELECT * FROM seen
    QUALIFY newest_per_contract OR row_number() OVER (
        PARTITION BY series ORDER BY snapshot_ts_ns DESC, selected_at_ns DESC, source) = 1
)
SELECT rows.*, product_of(rows.root) AS product
FROM option_chain AS rows JOIN current USING (trade_date, series, source, snapshot_ts_ns)
WHERE rows.trade_date BETWEEN (ts::TIMESTAMPTZ AT TIME ZONE 'UTC' - lookback)::DATE
                          AND (ts::TIMESTAMPTZ AT TIME ZONE 'UTC' + INTERVAL 4 DAYS)::DATE
  AND rows.as_of <= ts::TIMESTAMPTZ
QUALIFY (NOT newest_per_contract OR row_number() OVER (
    PARTITION BY contract_key ORDER BY snapshot_ts_ns DESC, rows.selected_at_ns DESC, source) = 1)
AND (underlying_class = 'future' OR NOT coalesce((snapshot_ts_ns, rows.selected_at_ns)
    < max((snapshot_ts_ns, rows.selected_at_ns)) FILTER (underlying_class = 'future') OVER (), false))
