-- Whether the same source and target stand at a smaller (sample_id, rank). Equal digests of 128 bits
-- stand for equal texts: the window then holds 16 bytes of a row, not its texts.
WITH digested AS (
    SELECT
        sample_id, rank, c.text IS NULL AS failed,
        md5_number(concat(length(s.source), ' ', s.source, c.text)) AS content
    FROM candidates c
    JOIN samples s USING (sample_id)
)
SELECT
    sample_id,
    rank,
    CASE WHEN NOT failed THEN
        row_number() OVER (PARTITION BY content ORDER BY sample_id, rank) > 1
    END AS duplicate
FROM digested
