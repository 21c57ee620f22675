-- A shard's candidates, as the run stores them. Text and ids of `completed` are both there by now.
-- $special: ids of special tokens; $starts: those that may open a target.
WITH told AS (
    SELECT
        *, len(token_ids) AS n,
        CASE WHEN finish_reason = 'stop' THEN token_ids[:-2] ELSE token_ids END AS inner_ids
    FROM completed
)
SELECT
    sample_id, prompt_hash, rank, score, text, token_ids,
    n::INTEGER AS n_tokens,
    sum_logprob, mean_logprob, finish_reason, error, ordinal,
    NULL::BIGINT AS seed,
    CASE WHEN text IS NOT NULL AND rank > min(rank) OVER (PARTITION BY sample_id, text)
        THEN min(rank) OVER (PARTITION BY sample_id, text)
    END AS duplicate_of,
    (
        len(list_filter(inner_ids, lambda i: list_contains($special, i)))
        - coalesce(list_contains($starts, inner_ids[1]), false)::INTEGER
    )::INTEGER AS control_tokens,
    NULL::VARCHAR AS reasoning,
    NULL::INTEGER[] AS reasoning_ids
FROM told
ORDER BY place, rank
