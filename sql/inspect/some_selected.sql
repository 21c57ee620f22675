-- A few selected targets, the same ones every time.
SELECT source, target, mean_logprob
FROM pseudolabels
ORDER BY md5(sample_id), rank
LIMIT 5
