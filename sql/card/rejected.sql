-- Two candidates for each first reason to reject, the same ones every time.
SELECT source, text AS target, array_to_string(reasons, ', ') AS because
FROM rejects
JOIN samples USING (sample_id)
QUALIFY row_number() OVER (PARTITION BY reasons[1] ORDER BY md5(sample_id), rank) <= 2
ORDER BY reasons[1], md5(sample_id), rank
LIMIT 12
