-- What are the worst targets?
--
-- A row is one of the n targets with the lowest value of a signal, or the highest: its key, the
-- value, source and target, the rules it failed. A candidate whose signal is NULL is no row.
--
-- Parameters: n, rows; signal, its name; highest, whether a high value is bad; among, which targets:
-- selected, kept, rejected or all.
CREATE MACRO worst(n := 20, signal := 'mean_logprob', highest := false, among := 'selected') AS TABLE
WITH measured AS (
    SELECT sample_id, rank, struct_extract(s, signal) AS value FROM signals s
),
ranked AS (
    SELECT sample_id, rank, value, reasons
    FROM measured
    JOIN verdicts USING (sample_id, rank)
    WHERE value IS NOT NULL AND CASE among
        WHEN 'selected' THEN selected
        WHEN 'kept' THEN kept
        WHEN 'rejected' THEN NOT kept
        WHEN 'all' THEN true
        ELSE error('among is selected, kept, rejected or all')::BOOLEAN
    END
    ORDER BY
        CASE WHEN highest THEN value END DESC,
        CASE WHEN NOT highest THEN value END,
        sample_id, rank
    LIMIT n
)
SELECT sample_id, rank, value, s.source, c.text AS target, reasons
FROM ranked
JOIN candidates c USING (sample_id, rank)
JOIN samples s USING (sample_id)
ORDER BY
    CASE WHEN highest THEN value END DESC,
    CASE WHEN NOT highest THEN value END,
    sample_id, rank;
