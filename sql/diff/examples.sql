-- The targets that changed most.
SELECT
    sample_id, source, alike, first_rank, second_rank, first_target, second_target,
    h.mean_logprob AS first_logprob, t.mean_logprob AS second_logprob
FROM (
    SELECT * FROM pairs WHERE alike IS NOT NULL ORDER BY alike, sample_id, place LIMIT $examples
)
JOIN common USING (sample_id)
JOIN candidates h ON h.sample_id = common.sample_id AND h.rank = first_rank
JOIN other.candidates t ON t.sample_id = common.sample_id AND t.rank = second_rank
ORDER BY alike, sample_id, place
