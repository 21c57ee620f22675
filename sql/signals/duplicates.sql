-- Whether the same prompt and target stand at a smaller (sample_id, rank). The prompt, not the source:
-- of two conversations that end in "Go on.", neither is the other's duplicate. Equal digests of 128
-- bits stand for equal texts: the window then holds 16 bytes of a row, not its texts.
WITH digested AS (
    SELECT
        sample_id, rank, c.text IS NULL AS failed,
        md5_number(concat(length(s.prompt), ' ', s.prompt, c.text)) AS content
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
