-- Input rows that could not be used, by reason.
SELECT reason, count(*) AS "rows"
FROM refused
GROUP BY reason
ORDER BY "rows" DESC, reason
