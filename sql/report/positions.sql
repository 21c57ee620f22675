-- Along a target, by position from 0: how sure the teacher was of the token it chose, and what mass
-- lies outside what is stored. Positions that at least one target in a hundred reaches.
WITH positions AS (
    SELECT
        origin, unnest(range(n_tokens)) AS position,
        unnest(token_logprobs) AS logprob, unnest(tail_logprob) AS tail
    FROM logits
)
SELECT
    origin, position, count(*) AS targets, avg(logprob) AS mean_logprob,
    approx_quantile(logprob, 0.05) AS p5_logprob,
    avg(exp(tail)) AS mean_tail, approx_quantile(exp(tail), 0.5) AS median_tail,
    approx_quantile(exp(tail), 0.95) AS p95_tail
FROM positions
GROUP BY origin, position
QUALIFY count(*) >= 0.01 * max(count(*)) OVER (PARTITION BY origin)
ORDER BY origin, position
