-- Distributions by origin: targets, tokens, stored entries, and the mass outside them.
SELECT
    origin, count(*) AS targets, sum(n_tokens)::BIGINT AS tokens,
    sum(coalesce(k * n_tokens, list_sum(widths)))::BIGINT AS entries,
    sum(list_sum(list_transform(tail_logprob, lambda t: exp(t)))) / sum(len(tail_logprob)) AS mean_tail
FROM logits
GROUP BY origin
ORDER BY origin
