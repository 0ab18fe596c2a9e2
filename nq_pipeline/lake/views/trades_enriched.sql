-- The underlying comes from the exchange's definitions of that trade date, bought or in Databento's chain,
-- or else from the row, which has it by CME's rule.
CREATE VIEW trades_enriched AS
WITH defined AS (
    SELECT trade_date, series, max(underlying) AS underlying
    FROM (
        SELECT trade_date, series, underlying FROM definition WHERE series IS NOT NULL
        UNION ALL
        SELECT trade_date, series, underlying FROM source_chain WHERE source = 'databento'
    )
    GROUP BY ALL
), optioned AS (
    SELECT trades.* REPLACE (coalesce(defined.underlying, trades.underlying) AS underlying)
    FROM trades
    LEFT JOIN defined ON defined.trade_date = trades.trade_date AND defined.series = trades.series
    WHERE trades.instrument_kind = 'option'
), futures AS (
    SELECT trade_date, raw_symbol, ts_event_ns, arg_max(price, (sequence, ordinal)) AS price
    FROM trades WHERE instrument_kind = 'future' AND price IS NOT NULL AND size > 0 AND is_misdated IS NOT TRUE
    GROUP BY ALL
)
SELECT
    optioned.*,
    CASE optioned.side WHEN 'B' THEN 'buy' WHEN 'A' THEN 'sell' END AS aggressor,
    futures.price AS underlying_price,
    make_timestamptz(futures.ts_event_ns // 1000) AS underlying_ts,
    optioned.strike / futures.price AS moneyness,
    CASE optioned.option_type WHEN 'C' THEN futures.price > optioned.strike
                              WHEN 'P' THEN futures.price < optioned.strike END AS in_the_money,
    futures.ts_event_ns AS underlying_ts_ns,
    product_of(optioned.root) AS product
FROM optioned ASOF LEFT JOIN futures
    ON futures.trade_date = optioned.trade_date AND futures.raw_symbol = optioned.underlying
    AND futures.ts_event_ns <= CASE WHEN optioned.is_misdated THEN optioned.ts_recv_ns
                                    ELSE optioned.ts_event_ns END
