-- Whether a candidate shares a band with one of a sample that comes before its own. `banded` holds the
-- candidates in the order of (sample_id, rank); `place` is how many of its sample stand before it.
WITH hashed AS (
    SELECT file_row_number AS "row", file_row_number - place AS sample, unnest(bands) AS hash
    FROM banded
),
shared AS (
    SELECT hash, min(sample) AS earliest FROM hashed GROUP BY hash HAVING min(sample) < max(sample)
),
near AS (
    SELECT DISTINCT "row" FROM hashed JOIN shared USING (hash) WHERE earliest < sample
)
SELECT
    sample_id,
    rank,
    CASE WHEN bands IS NOT NULL THEN "row" IS NOT NULL END AS near_duplicate,
    near_test
FROM banded
LEFT JOIN near ON "row" = file_row_number
