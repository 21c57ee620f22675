-- The candidates of one shard with all that was told of them. `portion` holds their rows, and others.
SELECT
    r.place, r."row", r.sample_id, r.prompt_hash, r.rank, r.ordinal, r.score,
    o.text, o.token_ids::INTEGER[] AS token_ids,
    coalesce(o.sum_logprob, r.total) AS sum_logprob,
    coalesce(o.mean_logprob, r.total / len(o.token_ids)) AS mean_logprob,
    o.error,
    CASE
        WHEN o.error IS NOT NULL THEN 'error'
        WHEN o.finish_reason IS NOT NULL THEN o.finish_reason
        WHEN o.token_ids IS NULL OR list_contains($ends, o.token_ids[-1]) THEN 'stop'
        ELSE 'length'
    END AS finish_reason,
    o.token_logprobs, o.topk_ids::INTEGER[] AS topk_ids, o.topk_logprobs, o.tail_logprob,
    CASE WHEN o.topk_ids IS NOT NULL THEN
        coalesce(o.topk_ids_widths, list_resize([]::INTEGER[], len(o.token_ids), o.k::INTEGER))
    END AS widths
FROM ranks AS r
JOIN portion AS o ON o."row" = r."row"
WHERE r.shard = $shard
ORDER BY r.place, r.rank
