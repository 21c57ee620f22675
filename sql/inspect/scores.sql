-- Scores of whole splits, with mean and standard deviation over the folds.
SELECT
    system, stage, split, metric,
    max(score) FILTER (fold IS NULL) AS score,
    max(ci_low) FILTER (fold IS NULL) AS ci_low,
    max(ci_high) FILTER (fold IS NULL) AS ci_high,
    count(fold) AS folds,
    avg(score) FILTER (fold IS NOT NULL) AS fold_mean,
    stddev_samp(score) FILTER (fold IS NOT NULL) AS fold_sd,
    max(signature) FILTER (fold IS NULL) AS signature
FROM evals
GROUP BY system, stage, split, metric
ORDER BY split, metric, system DESC, stage
