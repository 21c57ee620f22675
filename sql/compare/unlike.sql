-- In how many sources two test sets differ: one lacks it, or it has another text or reference.
SELECT
    count(*) AS sources,
    count(*) FILTER (
        a.source IS DISTINCT FROM b.source OR a.gold IS DISTINCT FROM b.gold
    ) AS unlike
FROM ours a
FULL JOIN theirs b USING (sample_id)
