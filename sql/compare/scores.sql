-- Scores of whole splits.
SELECT system, stage, split, metric, score, ci_low, ci_high, signature
FROM evals
WHERE fold IS NULL
ORDER BY split, system DESC, stage, metric
