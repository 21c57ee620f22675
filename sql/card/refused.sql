-- Input rows that could not be used, by reason.
SELECT reason AS refused_because, count(*) AS input_rows
FROM refused
GROUP BY reason
ORDER BY input_rows DESC, reason
