-- A row is one target position, counted from 0. tail_mass is the probability outside the stored set.
-- Entries before a position: position * k, or the sum of the widths before it. list_select, because
-- a slice of a long list copies the whole list for every position.
CREATE VIEW logits_by_position AS
WITH positions AS (
    SELECT *, unnest(range(n_tokens)) AS position FROM logits
),
spans AS (
    SELECT
        *,
        COALESCE(position * k, list_sum(widths[:position])::BIGINT, 0) AS before,
        COALESCE(k, widths[position + 1]) AS width,
        range(before + 1, before + 1 + width) AS span
    FROM positions
)
SELECT
    sample_id, origin, rank,
    position::INTEGER AS position,
    token_ids[position + 1] AS token_id,
    token_logprobs[position + 1] AS logprob,
    list_select(topk_ids, span) AS topk_ids,
    list_select(topk_logprobs, span) AS topk_logprobs,
    exp(tail_logprob[position + 1]) AS tail_mass
FROM spans;
