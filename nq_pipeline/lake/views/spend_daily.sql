-- All lines of a reservation have its day, so that the reserved amount nets to zero when it is closed.
CREATE VIEW spend_daily AS
SELECT
    day,
    vendor,
    coalesce(purpose, 'plan') AS purpose,
    sum(spent_usd) AS spent_usd,
    sum(reserved_usd) AS reserved_usd,
    count(*) FILTER (kind = 'reserved') AS requests,
    count(*) FILTER (kind = 'refused') AS refused,
    sum(sum(spent_usd)) OVER (PARTITION BY date_trunc('month', day) ORDER BY day) AS month_usd,
    zone
FROM spend
WHERE vendor IS NOT NULL
GROUP BY day, vendor, purpose, zone
