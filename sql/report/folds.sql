-- Scores of folds.
SELECT system, stage, split, metric, fold, score
FROM evals
WHERE fold IS NOT NULL
ORDER BY split, metric, system, stage, fold
