-- A proxy's series has another name than the one it stood in for, so no later decision on it
-- comes; it leaves the view as soon as a native source has won in a later run. In its own run a
-- native source may have won another product.
CREATE VIEW option_chain_latest AS
WITH winner AS (
    SELECT series, source, snapshot_ts_ns, decided_at_ns
    FROM decisions
    WHERE won AND trade_date = (SELECT max(trade_date) FROM decisions WHERE won)
    QUALIFY row_number() OVER (PARTITION BY series ORDER BY decided_at_ns DESC, rank) = 1
), chain AS (
    SELECT rows.*, winner.decided_at_ns
    FROM option_chain AS rows JOIN winner USING (series, source, snapshot_ts_ns)
    WHERE rows.trade_date = (SELECT max(trade_date) FROM decisions WHERE won)
)
SELECT * EXCLUDE (decided_at_ns), product_of(root) AS product FROM chain
QUALIFY underlying_class = 'future'
    OR decided_at_ns >= coalesce(max(decided_at_ns) FILTER (WHERE underlying_class = 'future') OVER (), 0)
