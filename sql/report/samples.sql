-- The worst and the median samples, by similarity to gold and by confidence, and sources left
-- without a target: $n of each. A sample stands for its selected candidate, or its first one.
WITH chosen AS (
    SELECT
        sample_id, arg_min(rank, (NOT coalesce(selected, false), rank)) AS rank,
        coalesce(bool_or(selected), false) AS targeted
    FROM candidates
    LEFT JOIN verdicts USING (sample_id, rank)
    WHERE error IS NULL
    GROUP BY sample_id
),
measured AS (
    SELECT
        sample_id, rank, targeted, chrf_gold, c.mean_logprob,
        (SELECT count(*) > 0 FROM verdicts) AS judged
    FROM chosen
    JOIN candidates c USING (sample_id, rank)
    LEFT JOIN signals USING (sample_id, rank)
),
middles AS (
    SELECT approx_quantile(chrf_gold, 0.5) AS chrf, approx_quantile(mean_logprob, 0.5) AS logprob
    FROM measured
),
picked AS (
    (SELECT 1 AS place, sample_id, rank, chrf_gold AS key
    FROM measured WHERE chrf_gold IS NOT NULL ORDER BY key, sample_id LIMIT $n)
    UNION ALL
    (SELECT 2, sample_id, rank, abs(chrf_gold - chrf) AS key
    FROM measured, middles WHERE chrf_gold IS NOT NULL ORDER BY key, sample_id LIMIT $n)
    UNION ALL
    (SELECT 3, sample_id, rank, mean_logprob AS key
    FROM measured WHERE mean_logprob IS NOT NULL ORDER BY key, sample_id LIMIT $n)
    UNION ALL
    (SELECT 4, sample_id, rank, abs(mean_logprob - logprob) AS key
    FROM measured, middles WHERE mean_logprob IS NOT NULL ORDER BY key, sample_id LIMIT $n)
    UNION ALL
    (SELECT 5, sample_id, rank, row_number() OVER (ORDER BY md5(sample_id)) AS key
    FROM measured WHERE judged AND NOT targeted ORDER BY key LIMIT $n)
)
SELECT
    [
        'worst by chrF', 'median by chrF', 'worst by log-probability',
        'median by log-probability', 'without a target'
    ][place] AS "group",
    sample_id, rank, s.source[:1000] AS source, c.text[:1000] AS target,
    CASE WHEN s.gold_visible THEN s.gold[:1000] END AS gold,
    g.chrf_gold, c.mean_logprob, g.length_ratio, v.selected, v.reasons
FROM picked
JOIN samples s USING (sample_id)
JOIN candidates c USING (sample_id, rank)
LEFT JOIN signals g USING (sample_id, rank)
LEFT JOIN verdicts v USING (sample_id, rank)
ORDER BY place, picked.key, sample_id
