-- Similarity to gold by rank: how the candidates of a rank spread, and what choosing the best of the
-- ranks so far would give. Of sources whose gold may be looked at.
WITH measured AS (
    SELECT
        sample_id, rank, chrf_gold, selected,
        max(chrf_gold) OVER (PARTITION BY sample_id ORDER BY rank) AS best
    FROM signals
    JOIN verdicts USING (sample_id, rank)
    WHERE chrf_gold IS NOT NULL
)
SELECT
    rank, count(*) AS candidates, count(*) FILTER (selected) AS selected, avg(chrf_gold) AS mean,
    approx_quantile(chrf_gold, 0.05) AS p5, approx_quantile(chrf_gold, 0.25) AS p25,
    approx_quantile(chrf_gold, 0.5) AS median, approx_quantile(chrf_gold, 0.75) AS p75,
    approx_quantile(chrf_gold, 0.95) AS p95, avg(best) AS best_so_far
FROM measured
GROUP BY rank
ORDER BY rank
