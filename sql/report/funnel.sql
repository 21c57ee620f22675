-- Sources to learn from, and how many of them are left at each step. Verdicts come with judging.
SELECT step, sources
FROM (
    SELECT 1 AS place, 'sources' AS step, count(*) AS sources
    FROM samples
    WHERE split IN ('train', 'unlabeled')
    UNION ALL
    SELECT 2, 'with a candidate', count(DISTINCT sample_id) FROM candidates WHERE error IS NULL
    UNION ALL
    SELECT 3, 'with a candidate kept', count(DISTINCT sample_id) FILTER (kept)
    FROM verdicts
    HAVING count(*) > 0
    UNION ALL
    SELECT 4, 'with a pseudolabel', count(DISTINCT sample_id) FILTER (selected)
    FROM verdicts
    HAVING count(*) > 0
)
ORDER BY place
