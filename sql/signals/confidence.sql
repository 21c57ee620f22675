-- How sure the teacher was of a candidate: mean log-probability of its tokens, in nats.
SELECT sample_id, rank, mean_logprob, NULL AS min_logprob, NULL AS entropy
FROM candidates
