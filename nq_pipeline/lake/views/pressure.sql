-- A window that a filled gap touched has several rows; trades are only ever added.
CREATE VIEW pressure AS
WITH gap AS (
    SELECT environment, trade_date, first_ts, last_ts FROM gaps
    QUALIFY row_number() OVER (PARTITION BY gap_id ORDER BY revision DESC) = 1 AND state <> 'verified'
)
SELECT
    windows.*,
    NOT EXISTS (
        FROM gap
        WHERE gap.environment = windows.environment AND gap.trade_date = windows.trade_date
          AND gap.first_ts < windows.window_start + INTERVAL 5 MINUTES
          AND (gap.last_ts IS NULL OR gap.last_ts > windows.window_start)
    ) AS is_whole
FROM trade_pressure AS windows
QUALIFY row_number() OVER (PARTITION BY environment, window_start_ns, contract_key ORDER BY trades DESC) = 1
