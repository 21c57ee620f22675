-- How sure the teacher was of a candidate, in nats: mean and least log-probability of its tokens, and
-- the mean entropy of its positions. The first comes with the candidate, the others with distributions
-- and are NULL without. All that is not stored of a distribution counts as one bucket, as in the macro
-- held_entropy, so that the whole distribution's entropy is at least this: the sum over a target's
-- entries and buckets, by its positions. (A probability of 0 counts 0.)
WITH measured AS (
    SELECT
        sample_id,
        rank,
        list_min(token_logprobs) AS min_logprob,
        list_sum(list_transform(topk_logprobs, lambda l: -exp(l) * greatest(l, -1000))) AS entries,
        list_sum(list_transform(tail_logprob, lambda l: -exp(l) * greatest(l, -1000))) AS buckets,
        n_tokens
    FROM logits
    WHERE origin = 'candidate'
)
SELECT
    c.sample_id,
    c.rank,
    c.mean_logprob,
    m.min_logprob,
    (coalesce(m.entries, 0) + m.buckets) / m.n_tokens AS entropy
FROM candidates c
LEFT JOIN measured m USING (sample_id, rank)
