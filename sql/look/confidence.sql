-- When the teacher is sure, does it choose what it is sure of?
--
-- A row is a bin of the top token's probability: positions in it, mean probability of the top token
-- and of the chosen (realised) one, and the share of positions where the chosen token is not the top
-- one. Of gold, top_mean against 1 - not_top is the teacher's calibration. The top token of a
-- sampled row is the most probable of those drawn. Tokens that are stored with equal probability are
-- all the top one.
--
-- Parameters: bins, their number between 0 and 1.
CREATE MACRO confidence(bins := 10) AS TABLE
WITH chosen AS (
    SELECT
        origin, exp(topk_logprobs[1]) AS top, exp(logprob) AS realised,
        COALESCE(topk_logprobs[list_position(topk_ids, token_id)], logprob)
            < topk_logprobs[1] AS beaten
    FROM logits_by_position
    WHERE len(topk_ids) > 0
)
SELECT
    origin, least(floor(top * bins), bins - 1) / bins AS top_from, count(*) AS n,
    avg(top) AS top_mean, avg(realised) AS chosen_mean, avg(beaten::INTEGER) AS not_top
FROM chosen
GROUP BY ALL
ORDER BY ALL;
