-- NOT MATERIALIZED: with the CTEs materialized, DuckDB 2.0.0 was seen to hang on a LIMIT over this view.
CREATE VIEW source_agreement AS
WITH newest AS NOT MATERIALIZED (
    SELECT * FROM source_chain
    WHERE trade_date = (SELECT max(trade_date) FROM source_chain)
    QUALIFY snapshot_ts_ns = max(snapshot_ts_ns) OVER (PARTITION BY source, series)
), quoted AS NOT MATERIALIZED (
    SELECT *, CASE WHEN bid <= ask THEN (bid + ask) / 2 END AS mid FROM newest
)
SELECT
    a.trade_date, a.series, a.contract_key,
    a.source, b.source AS other_source,
    a.as_of, b.as_of AS other_as_of,
    a.bid, a.ask, b.bid AS other_bid, b.ask AS other_ask,
    b.mid - a.mid AS mid_gap,
    a.bid <= b.ask AND b.bid <= a.ask AS quotes_overlap,
    CASE WHEN a.is_settlement AND b.is_settlement AND a.settlement_date = b.settlement_date
         THEN b.settlement - a.settlement END AS settlement_gap,
    b.volume - a.volume AS volume_gap,
    b.open_interest - a.open_interest AS open_interest_gap
FROM quoted AS a JOIN quoted AS b ON b.contract_key = a.contract_key AND b.source > a.source
