-- How uncertain is the teacher along a target?
--
-- A row is a position (from 0) of all targets of an origin: n targets that reach it, and mean,
-- median and 95th percentile of the entropy of the stored distribution, in nats. What is not stored
-- counts as one bucket (`held_entropy`), so that the whole distribution's entropy is at least this.
CREATE MACRO entropy_by_position() AS TABLE
WITH measured AS (
    SELECT origin, position, held_entropy(topk_logprobs, tail_mass) AS entropy
    FROM logits_by_position
)
SELECT
    origin, position, count(*) AS n,
    avg(entropy) AS mean, median(entropy) AS median, quantile_cont(entropy, 0.95) AS p95
FROM measured
GROUP BY origin, position
ORDER BY origin, position;
