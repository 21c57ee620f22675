-- A row is a score. fold is NULL for the whole split.
CREATE VIEW evals AS
SELECT system, stage, split, metric, fold, score, ci_low, ci_high, signature
FROM raw.evals;
