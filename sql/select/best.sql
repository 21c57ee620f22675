-- The candidate of lowest rank that is kept, for each sample that has one.
SELECT
    sample_id,
    rank,
    len(reasons) = 0 AS kept,
    kept AND rank = min(rank) FILTER (kept) OVER (PARTITION BY sample_id) AS selected,
    reasons
FROM judged
ORDER BY sample_id, rank
