-- Scores of whole splits with their 95 % intervals, and what they are over folds.
SELECT
    split, metric, system, stage,
    max(score) FILTER (fold IS NULL) AS score,
    max(ci_low) FILTER (fold IS NULL) AS ci_low,
    max(ci_high) FILTER (fold IS NULL) AS ci_high,
    favg(score) FILTER (fold IS NOT NULL) AS mean_of_folds,
    stddev_samp(score) FILTER (fold IS NOT NULL) AS standard_deviation,
    count(fold) AS folds
FROM evals
GROUP BY ALL
ORDER BY split, metric, system DESC, stage
