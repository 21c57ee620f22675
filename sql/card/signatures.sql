-- What the scores are.
SELECT DISTINCT metric, signature
FROM evals
WHERE fold IS NULL
ORDER BY metric, signature
