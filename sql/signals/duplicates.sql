-- Whether the same source and target stand at a smaller (sample_id, rank).
SELECT
    sample_id,
    rank,
    CASE WHEN text IS NOT NULL THEN
        row_number() OVER (PARTITION BY source, text ORDER BY sample_id, rank) > 1
    END AS duplicate
FROM candidates
JOIN samples USING (sample_id)
