-- Which sources were left without a target, and why?
--
-- A row is one of n sources none of whose candidates was kept: how many candidates it had, every rule
-- that any of them failed and how many did, the source, and the teacher's best.
--
-- Parameters: n, rows, in the order of their ids.
CREATE MACRO untargeted(n := 20) AS TABLE
WITH lost AS (
    SELECT
        sample_id, count(*) AS candidates,
        list_histogram(flatten(list(reasons))) AS reasons
    FROM verdicts
    GROUP BY sample_id
    HAVING NOT bool_or(kept)
    ORDER BY sample_id
    LIMIT n
)
SELECT
    sample_id, candidates, reasons, s.source, COALESCE(c.text, c.error) AS best
FROM lost
JOIN samples s USING (sample_id)
JOIN candidates c USING (sample_id)
WHERE c.rank = 0
ORDER BY sample_id;
