-- A row is one target position, counted from 0. tail_mass is the probability outside the stored set.
-- Entries before a position: position * k, or the sum of the widths before it.
CREATE VIEW logits_by_position AS
WITH spans AS (
    SELECT
        *,
        COALESCE(position * k, list_sum(widths[:position]), 0) AS before,
        COALESCE(k, widths[position + 1]) AS width
    FROM logits, unnest(range(n_tokens)) AS positions(position)
)
SELECT
    sample_id, origin, rank,
    position::INTEGER AS position,
    token_ids[position + 1] AS token_id,
    token_logprobs[position + 1] AS logprob,
    topk_ids[before + 1 : before + width] AS topk_ids,
    topk_logprobs[before + 1 : before + width] AS topk_logprobs,
    exp(tail_logprob[position + 1]) AS tail_mass
FROM spans;
