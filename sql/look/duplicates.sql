-- Which targets does the teacher say for many sources?
--
-- A row is one of the n texts that stand as candidates of the most sources, at least two: of how
-- many, in how many of them it was selected, and three of these sources.
--
-- Parameters: n, rows.
CREATE MACRO duplicates(n := 20) AS TABLE
WITH texts AS (
    SELECT text AS target, sample_id, bool_or(selected) AS selected
    FROM candidates
    LEFT JOIN verdicts USING (sample_id, rank)
    WHERE text IS NOT NULL
    GROUP BY text, sample_id
),
said AS (
    SELECT
        target, count(*) AS sources, count(*) FILTER (selected) AS selected,
        min(sample_id, 3) AS few
    FROM texts
    GROUP BY target
    HAVING count(*) > 1
    ORDER BY sources DESC, target
    LIMIT n
),
shown AS (
    SELECT target, sources, selected, unnest(few) AS sample_id FROM said
)
SELECT target, sources, selected, list(source ORDER BY sample_id) AS some_sources
FROM shown
JOIN samples USING (sample_id)
GROUP BY target, sources, selected
ORDER BY sources DESC, target;
