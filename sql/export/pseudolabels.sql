-- The selected targets, in the order of the run's rows, train before unlabeled.
SELECT
    p.sample_id, p.source, p.target, p.rank,
    CASE WHEN isfinite(p.score) THEN p.score END AS score,
    CASE WHEN isfinite(p.mean_logprob) THEN p.mean_logprob END AS mean_logprob,
    p.finish_reason, p.token_ids
FROM pseudolabels AS p
JOIN samples AS s ON s.sample_id = p.sample_id
ORDER BY s.split <> 'train', s."row", p.rank
